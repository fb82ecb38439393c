"""What k6 wrote on its console: JSON lines, and plain text where it panics."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

_LEVELS = {"warning": "WARN", "warn": "WARN", "error": "ERROR", "fatal": "ERROR", "panic": "ERROR", "info": "INFO"}
_MAX_MESSAGE = 8192


@dataclass(frozen=True, slots=True)
class ConsoleLine:
    """A line. `level` is DEBUG, INFO, WARN or ERROR; `time` is None where the line has none."""

    time: datetime | None
    level: str
    message: str


def read_tail(paths: list[Path], max_bytes: int) -> list[str]:
    """The last whole lines of files that go on one after the other, from up to `max_bytes`."""
    data = b""
    cut = False
    for path in reversed(paths):
        wanted = max_bytes - len(data)
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(size - wanted, 0))
                data = file.read(wanted) + data
                cut = size > wanted
        except FileNotFoundError:
            continue
        if cut:
            break
    lines = data.decode("utf-8", "replace").splitlines()
    return lines[1:] if cut else lines


def parse(text: str, folder: Path) -> ConsoleLine:
    """A line as k6 wrote it, without the path of the folder that it ran in."""
    time, level, message = None, "ERROR", text
    try:
        entry = json.loads(text)
    except ValueError:
        entry = None
    if isinstance(entry, dict) and "msg" in entry:
        level = _LEVELS.get(str(entry.get("level")), "DEBUG")
        parts = (str(entry["msg"]).strip(), str(entry.get("error") or "").strip())
        message = ": ".join(part for part in parts if part)
        time = _time(entry.get("time"))
    for path in (folder.resolve(), folder):
        message = message.replace(f"file://{path}/", "").replace(f"{path}/", "")
    return ConsoleLine(time, level, message[:_MAX_MESSAGE])


def _time(text: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo else None
