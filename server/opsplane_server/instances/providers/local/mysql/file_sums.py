"""The files of a copy with their sizes and checksums: the tools of these engines write no such list themselves."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opsplane_server.errors import DataLoss
from opsplane_server.instances.providers.local.bulk import Tally, files_below
from opsplane_server.instances.providers.local.manifest import write_durably

_NAME: Final = "files.json"
_BLOCK: Final = 1024 * 1024
_THREADS: Final = 2
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class FileSum:
    """Of one file."""

    size: int
    sha256: str


def read(copy: Path) -> Mapping[str, FileSum]:
    """By path below the copy's data. DataLoss when the list is missing or damaged. Blocks."""
    path = copy / _NAME
    try:
        content = json.loads(path.read_bytes())
        return {name: FileSum(int(size), str(digest)) for name, (size, digest) in content["files"].items()}
    except FileNotFoundError:
        raise DataLoss(f"{path} is missing", reason="COPY_DAMAGED") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLoss(f"{path} is damaged: {error}", reason="COPY_DAMAGED") from error


def write(copy: Path, sums: Mapping[str, FileSum]) -> None:
    """Makes the list durable. Blocks."""
    content = {"files": {name: [each.size, each.sha256] for name, each in sums.items()}}
    write_durably(copy / _NAME, json.dumps(content, indent=0).encode() + b"\n")


def take(data: Path, tally: Tally, *, durable: bool) -> Mapping[str, FileSum]:
    """Reads every file. durable: syncs them too, and their folders. Blocks."""
    names = [(path, str(path.relative_to(data))) for path, _ in files_below(data)]
    with ThreadPoolExecutor(_THREADS) as threads:
        sums = list(threads.map(lambda item: _sum(item[0], tally.add, durable=durable), names))
    if durable:
        for folder in sorted({path.parent for path, _ in names} | {data}):
            _sync(folder)
    return {name: each for (_, name), each in zip(names, sums, strict=True)}


def compare(data: Path, wanted: Mapping[str, FileSum], tally: Tally) -> None:
    """DataLoss that names files that are missing, changed or too many. Blocks."""
    # Sizes first: what is cut off is seen at once.
    found = {str(path.relative_to(data)): status.st_size for path, status in files_below(data)}
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} does not belong there" for name in found if name not in wanted]
    problems += [
        f"{name} has {found[name]:,} bytes instead of {each.size:,}"
        for name, each in wanted.items()
        if name in found and found[name] != each.size
    ]
    if not problems:
        sums = take(data, tally, durable=False)
        problems = [f"{name} is changed" for name, each in wanted.items() if sums.get(name) != each]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataLoss(
            f"the files are not those of the copy: {', '.join(sorted(problems)[:_SHOWN])}{more}", reason="COPY_DAMAGED"
        )


def sync(data: Path) -> None:
    """Makes every file durable. Blocks."""
    folders = {data}
    for path, _ in files_below(data):
        _sync(path)
        folders.add(path.parent)
    for folder in sorted(folders):
        _sync(folder)


def _sum(path: Path, add: Callable[[int], None], *, durable: bool) -> FileSum:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
            add(len(block))
        if durable:
            os.fsync(stream.fileno())
    return FileSum(size, digest.hexdigest())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
