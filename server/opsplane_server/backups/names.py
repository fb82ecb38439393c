"""Resource names of Backups, taken apart and put together.

The servicer has validated names against the patterns of the protos before they come here, so a name that does not fit
is a mistake of ours.
"""

from __future__ import annotations


def backup(backup_id: str) -> str:
    """`backups/{backup}`."""
    return f"backups/{backup_id}"


def schedule(schedule_id: str) -> str:
    """`schedules/{schedule}`."""
    return f"schedules/{schedule_id}"


def instance(instance_id: str) -> str:
    """`instances/{instance}`."""
    return f"instances/{instance_id}"


def last(name: str) -> str:
    """The id at the end of a name."""
    return name.rsplit("/", 1)[-1]
