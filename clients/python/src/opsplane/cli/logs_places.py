"""How far a file was shipped, in a small file of its own.

A batch is written down before it is sent: which bytes of the file it holds, and its id. Whenever the program dies, the
next one makes the same batches of the same bytes and sends them under the same ids, so the server stores each once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from opsplane.cli.logs_files import Identity

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class PlaceError(Exception):
    """The place of a file can not be used: another program does, or what was saved is damaged."""


@dataclass(slots=True)
class Batch:
    """Bytes of the file that were sent as one batch. `done` tells that the server has answered."""

    start: int
    end: int
    batch_id: str
    done: bool = False


@dataclass(slots=True)
class Place:
    """How far one file was shipped: up to `offset`; `batches` follow, in order and without gaps."""

    identity: Identity
    offset: int = 0
    batches: list[Batch] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Up to where it was sent."""
        return self.batches[-1].end if self.batches else self.offset

    def finish(self, batch: Batch) -> None:
        """Takes note of the answer to a batch."""
        batch.done = True
        while self.batches and self.batches[0].done:
            self.offset = self.batches.pop(0).end


class PlaceFile:
    """Keeps the place of one path for one server. A context manager that keeps other programs out."""

    def __init__(self, folder: Path, path: Path, address: str) -> None:
        key = hashlib.sha256(f"{address}\n{path.absolute()}".encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9._-]", "_", path.name)[:64]
        self._file = folder / f"{name}-{key}.json"
        self._path = path
        self._lock: int | None = None

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if fcntl is not None:
            self._lock = os.open(self._file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._lock)
                raise PlaceError(f"{self._path} is shipped by another program already") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def load(self) -> Place | None:
        """The place that was saved last, None if there is none. Raises PlaceError."""
        try:
            saved: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
            batches = [Batch(**batch) for batch in saved["batches"]]
            return Place(Identity(**saved["identity"]), int(saved["offset"]), batches)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            raise PlaceError(f"{self._file} is damaged; without it {self._path} is shipped from its start") from None

    def save(self, place: Place) -> None:
        """Writes it to the disk."""
        new = self._file.with_suffix(".new")
        with new.open("w", encoding="utf-8") as stream:
            json.dump({"path": str(self._path.absolute()), **asdict(place)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(self._file)
