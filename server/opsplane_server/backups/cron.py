"""When a schedule is due.

Cron by cronsim, whose answers to the changes of the clock are those of Debian's cron: what falls into the hour that is
left out runs right after it, and what falls into the hour that comes twice runs once.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from opsplane_server.errors import InvalidArgument

_SHORT: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
# Going back, cronsim leaves out the moment that it starts at.
_STEP: Final = timedelta(microseconds=1)
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")


class Timetable:
    """The times of a cron line in a time zone. All moments are aware, those returned in UTC."""

    def __init__(self, cron: str, zone: str) -> None:
        """Raises InvalidArgument on `schedule.cron` or `schedule.time_zone`."""
        self._zone = time_zone(zone)
        fields = _SHORT.get(cron, cron).split(" ")
        # The question mark of other crons, where a day is said by the other field.
        self._line = " ".join("*" if field == "?" and place in (2, 4) else field for place, field in enumerate(fields))
        try:
            if next(self._from(datetime.now(UTC)), None) is None:
                raise InvalidArgument.of("schedule.cron", "never comes")
        except CronSimError as error:
            raise InvalidArgument.of("schedule.cron", f"is no cron expression: {error}") from error

    def after(self, moment: datetime) -> datetime:
        """The first time after a moment."""
        return next(self._from(moment)).astimezone(UTC)

    def latest(self, due: datetime, now: datetime) -> datetime:
        """The last time up to `now`, given that `due` is one; of those that were missed only one is made up for."""
        found = next(CronSim(self._line, (now + _STEP).astimezone(self._zone), reverse=True), None)
        return max(due, found.astimezone(UTC)) if found is not None else due

    def _from(self, moment: datetime) -> CronSim:
        return CronSim(self._line, moment.astimezone(self._zone))


def time_zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name; raises InvalidArgument on `schedule.time_zone`."""
    try:
        if not _ZONE.fullmatch(name):
            raise ValueError(name)
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidArgument.of("schedule.time_zone", f"{name!r} is no time zone") from None
