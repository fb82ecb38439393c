import os
import pwd
from pathlib import Path

import pytest
from opsplane_server.errors import FailedPrecondition
from opsplane_server.storage.accounts import (
    Account,
    choose_account,
    create_folder,
    private_folder,
    require_passable,
)

from tests.postgres_fixtures import reachable_folder

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand files to another account")


def nobody() -> Account:
    entry = pwd.getpwnam("nobody")
    return Account(entry.pw_uid, entry.pw_gid, entry.pw_name)


def test_root_never_runs_the_server_itself(tmp_path: Path) -> None:
    assert choose_account(None, tmp_path / "data").uid != 0


@as_root
def test_a_named_user_must_exist_and_not_be_root(tmp_path: Path) -> None:
    assert choose_account("nobody", tmp_path / "data") == nobody()
    with pytest.raises(FailedPrecondition, match="no system user 'no-such-user'"):
        choose_account("no-such-user", tmp_path / "data")
    with pytest.raises(FailedPrecondition, match="does not run as root"):
        choose_account("root", tmp_path / "data")


@as_root
def test_the_owner_of_existing_data_goes_on_running_it(tmp_path: Path) -> None:
    os.chown(tmp_path, nobody().uid, nobody().gid)
    assert choose_account(None, tmp_path) == nobody()
    os.chown(tmp_path, 1, 1)
    with pytest.raises(FailedPrecondition, match="belongs to user number 1"):
        choose_account("nobody", tmp_path)


@as_root
def test_new_folders_can_be_passed_whatever_the_umask(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    before = os.umask(0o077)
    try:
        create_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o711, 0o711]
    assert tmp_path.stat().st_mode & 0o777 == 0o750, "a folder of somebody else was changed"


@as_root
def test_the_closed_folder_on_the_way_is_named() -> None:
    with reachable_folder() as folder:
        data = folder / "closed" / "open"
        data.mkdir(parents=True)
        data.chmod(0o755)
        require_passable(data, nobody())

        (folder / "closed").chmod(0o700)
        with pytest.raises(FailedPrecondition, match=r"may not enter .*/closed: ") as refused:
            require_passable(data, nobody())
        assert refused.value.metadata == {"folder": str(folder / "closed")}

        os.chown(folder / "closed", nobody().uid, 0)
        require_passable(data, nobody())


@as_root
def test_a_prepared_socket_folder_is_not_trusted(tmp_path: Path) -> None:
    private_folder(tmp_path / "own", nobody())
    private_folder(tmp_path / "own", nobody())
    assert ((tmp_path / "own").stat().st_uid, (tmp_path / "own").stat().st_mode & 0o777) == (nobody().uid, 0o700)

    (tmp_path / "foreign").mkdir(mode=0o700)
    os.chown(tmp_path / "foreign", nobody().uid + 1, 0)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    (tmp_path / "own2").mkdir()
    os.chown(tmp_path / "own2", nobody().uid, 0)
    (tmp_path / "own2").chmod(0o770)
    for name in ("foreign", "link", "own2"):
        with pytest.raises(FailedPrecondition, match="not a private folder"):
            private_folder(tmp_path / name, nobody())

    # What a process of ours made, which died before it could hand it over.
    (tmp_path / "half").mkdir(mode=0o700)
    private_folder(tmp_path / "half", nobody())
    assert (tmp_path / "half").stat().st_uid == nobody().uid
