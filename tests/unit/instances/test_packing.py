"""Archives of copies hold what was in the folder, whatever it is, and tell their true size and digest."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opsplane_server.instances.providers.local.bulk import Stopped, Tally
from opsplane_server.instances.providers.local.packing import write_tar

UNPACKERS = {"TAR": "cat", "TAR_GZIP": "gzip -dc", "TAR_ZSTD": "zstd -dc"}
names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 200
)


@settings(max_examples=25, deadline=None)
@given(
    files=st.dictionaries(names, st.binary(max_size=3000), max_size=6),
    packing=st.sampled_from(sorted(UNPACKERS)),
    deep=st.integers(0, 12),
)
def test_what_is_packed_is_unpacked(files: dict[str, bytes], packing: str, deep: int) -> None:
    place = "/".join(["a long name of a folder"] * deep + ["data"])
    with tempfile.TemporaryDirectory() as folder:
        entries = [(Path(folder), place)]
        for number, (name, content) in enumerate(files.items()):
            path = Path(folder, str(number))
            path.write_bytes(content)
            entries.append((path, f"{place}/{name}"))
        target = io.BytesIO()
        tally = Tally(sum(len(content) for content in files.values()))
        size, digest = write_tar(target, entries, packing, tally)
    packed = target.getvalue()
    assert (size, digest) == (len(packed), hashlib.sha256(packed).hexdigest())
    with tarfile.open(fileobj=io.BytesIO(_unpacked(packed, packing)), mode="r:") as archive:
        found = {member.name: member for member in archive}
        assert found.keys() == {place, *(f"{place}/{name}" for name in files)}
        assert found[place].isdir()
        for name, content in files.items():
            stream = archive.extractfile(f"{place}/{name}")
            assert stream is not None
            assert stream.read() == content
    assert tally.percent in (0, 100)


@pytest.mark.parametrize("packing", sorted(UNPACKERS))
def test_large_files_are_whole_and_the_same_twice(tmp_path: Path, packing: str) -> None:
    content = b"".join(hashlib.sha256(str(number).encode()).digest() * 3 for number in range(40000)) + b"end"
    (tmp_path / "large").write_bytes(content)
    results = []
    for _ in range(2):
        target = io.BytesIO()
        results.append((write_tar(target, [(tmp_path / "large", "large")], packing, Tally(0)), target.getvalue()))
    assert results[0] == results[1]
    with tarfile.open(fileobj=io.BytesIO(_unpacked(results[0][1], packing)), mode="r:") as archive:
        stream = archive.extractfile("large")
        assert stream is not None
        assert stream.read() == content


@pytest.mark.parametrize("packing", sorted(UNPACKERS))
def test_it_stops_when_nobody_wants_it_any_more(tmp_path: Path, packing: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    tally = Tally(7)
    tally.stop()
    with pytest.raises(Stopped):
        write_tar(io.BytesIO(), [(tmp_path / "file", "file")], packing, tally)


def _unpacked(packed: bytes, packing: str) -> bytes:
    """By the programs that people have."""
    return subprocess.run(UNPACKERS[packing].split(), input=packed, check=True, capture_output=True).stdout
