import base64
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.errors import DataLoss, FailedPrecondition
from opsplane_server.storage.secrets import SecretBox

OLD = bytes(range(32))
NEW = bytes(range(32, 64))


def key_file(path: Path, *keys: bytes, mode: int = 0o600) -> Path:
    path.write_text("".join(base64.b64encode(key).decode() + "\n" for key in keys))
    path.chmod(mode)
    return path


@given(plain=st.text(), context=st.text(alphabet=st.characters(codec="utf-8")))
def test_what_is_encrypted_comes_back(plain: str, context: str) -> None:
    plain = plain.encode("utf-8", "ignore").decode()
    box = SecretBox([OLD])
    assert box.decrypt(box.encrypt(plain, context), context) == plain


def test_the_same_secret_never_looks_the_same() -> None:
    box = SecretBox([OLD])
    assert box.encrypt("secret", "connections/a") != box.encrypt("secret", "connections/a")


def test_a_secret_does_not_open_under_another_resource() -> None:
    box = SecretBox([OLD])
    token = box.encrypt("secret", "connections/a")
    with pytest.raises(DataLoss, match="connections/b"):
        box.decrypt(token, "connections/b")


@given(place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_changed_token_is_refused(place: int, bit: int) -> None:
    box = SecretBox([OLD])
    token = bytearray(box.encrypt("secret", "connections/a"))
    token[place % len(token)] ^= 1 << bit
    with pytest.raises((DataLoss, FailedPrecondition)):
        box.decrypt(bytes(token), "connections/a")


@given(length=st.integers(0, 38))
def test_a_shortened_token_is_refused(length: int) -> None:
    box = SecretBox([OLD])
    token = box.encrypt("secret", "connections/a")
    with pytest.raises(DataLoss):
        box.decrypt(token[:length], "connections/a")


def test_another_key_is_told_apart_from_damage() -> None:
    token = SecretBox([OLD]).encrypt("secret", "connections/a")
    with pytest.raises(FailedPrecondition, match="not in the key file") as refused:
        SecretBox([NEW]).decrypt(token, "connections/a")
    assert refused.value.reason == "SECRET_KEY_MISSING"


def test_after_rotation_old_secrets_open_and_new_ones_need_the_new_key(tmp_path: Path) -> None:
    before = SecretBox.from_key_file(key_file(tmp_path / "key", OLD), create=False)
    old_token = before.encrypt("old", "connections/a")

    rotated = SecretBox.from_key_file(key_file(tmp_path / "key", NEW, OLD), create=False)
    assert rotated.decrypt(old_token, "connections/a") == "old"
    new_token = rotated.encrypt("new", "connections/a")
    assert SecretBox([NEW]).decrypt(new_token, "connections/a") == "new"
    with pytest.raises(FailedPrecondition):
        before.decrypt(new_token, "connections/a")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    file = key_file(tmp_path / "key", OLD, mode=mode)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        SecretBox.from_key_file(file, create=True)
    assert file.stat().st_mode & 0o777 == mode


def test_a_missing_key_file_is_made_only_on_request(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "key"
    with pytest.raises(FailedPrecondition, match="can not be used"):
        SecretBox.from_key_file(file, create=False)
    assert not file.parent.exists()

    token = SecretBox.from_key_file(file, create=True).encrypt("secret", "connections/a")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in file.parent.iterdir()] == ["key"]
    assert SecretBox.from_key_file(file, create=True).decrypt(token, "connections/a") == "secret"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no key"),
        (b"\n \n", "has no key"),
        (base64.b64encode(OLD) + b"\nsecret!\n", "line 2"),
        (base64.b64encode(OLD[:31]), "line 1"),
        (b"\xff\xfe", "can not be used"),
    ],
)
def test_a_damaged_key_file_is_refused_without_showing_it(tmp_path: Path, content: bytes, said: str) -> None:
    file = key_file(tmp_path / "key")
    file.write_bytes(content)
    with pytest.raises(FailedPrecondition, match=said) as refused:
        SecretBox.from_key_file(file, create=True)
    assert "secret!" not in str(refused.value)


def test_processes_that_start_together_end_with_one_key(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from opsplane_server.storage.secrets import SecretBox\n"
        "sys.stdout.write('ready\\n'); sys.stdout.flush(); sys.stdin.readline()\n"
        "box = SecretBox.from_key_file(pathlib.Path(sys.argv[1]), create=True)\n"
        "sys.stdout.write(box.encrypt('secret', 'connections/a').hex())\n"
    )
    file = tmp_path / "key"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    tokens = [process.communicate()[0] for process in processes]

    box = SecretBox.from_key_file(file, create=False)
    assert [box.decrypt(bytes.fromhex(token), "connections/a") for token in tokens] == ["secret"] * 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_a_fingerprint_is_known_again_as_long_as_its_key_is_there() -> None:
    old, new = bytes(32), bytes([1]) * 32
    mark = SecretBox([old]).fingerprint(b"body")
    assert b"body" not in mark
    assert SecretBox([new, old]).is_of(mark, b"body")
    assert not SecretBox([new, old]).is_of(mark, b"other body")
    assert not SecretBox([new]).is_of(mark, b"body")
    assert not SecretBox([old]).is_of(b"", b"body")
    assert SecretBox([new]).fingerprint(b"body") != mark
