"""What this process has counted of backups, and what the leading one knows of all. No locks: one event loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from opsplane_server.backups.model import Backup, Schedule, VerificationState


@dataclass(frozen=True, slots=True)
class Overview:
    """How things stand: backups by state, schedules, and by instance the moment of its last good backup."""

    states: Mapping[str, int]
    schedules: Sequence[Schedule]
    good_times: Mapping[str, datetime]
    time: datetime


@dataclass(slots=True)
class BackupFigures:
    """made_total: by type and outcome. overview: None in a process that does not lead, so that it is told once."""

    made_total: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes_total: int = 0
    seconds_total: float = 0.0
    verified_total: Counter[str] = field(default_factory=Counter)
    overview: Overview | None = None

    def made(self, backup: Backup) -> None:
        """Counts a backup that is complete."""
        self.made_total[backup.type.value, "completed"] += 1
        if backup.copy is not None:
            self.bytes_total += backup.copy.size_bytes
            self.seconds_total += (backup.copy.complete_time - backup.copy.start_time).total_seconds()

    def not_made(self, backup: Backup, *, cancelled: bool) -> None:
        """Counts one that came to nothing."""
        self.made_total[backup.type.value, "cancelled" if cancelled else "failed"] += 1

    def verified(self, state: VerificationState) -> None:
        """Counts a verification."""
        self.verified_total[state.value.lower()] += 1
