"""Names of series that a copy tells apart: few, since a time series database keeps each in its index for good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from opsplane_server.loadtesting.metrics.histograms import merge
from opsplane_server.loadtesting.metrics.otlp import MAX_SERIES
from opsplane_server.loadtesting.metrics.rows import OTHER, Series

# Whoever calls each URL by its own name makes long ones.
MAX_CHARACTERS = 250

Key = tuple[str, str]


class SeriesNames:
    """The first `limit` names of a run are kept, later ones become `other` of their scenario.

    The same rows in the same order give the same names, so that writing them again writes the same.
    """

    def __init__(self, known: Iterable[Key] = (), limit: int = MAX_SERIES) -> None:
        self._known = dict.fromkeys(known)
        self._limit = limit

    @property
    def known(self) -> Sequence[Key]:
        """The names so far, in the order in which they came: scenario and name."""
        return tuple(self._known)

    def apply(self, series: Iterable[Series]) -> list[Series]:
        """The series of a row under the names that they are kept by, each name once."""
        groups: dict[Key, list[Series]] = {}
        for one in series:
            groups.setdefault(self._kept(_shown(one.scenario), _shown(one.name)), []).append(one)
        return [
            Series(
                scenario,
                name,
                sum(part.requests for part in parts),
                sum(part.failed for part in parts),
                merge(part.response_time for part in parts),
            )
            for (scenario, name), parts in groups.items()
        ]

    def _kept(self, scenario: str, name: str) -> Key:
        rest = (scenario, OTHER)
        # The rest of each scenario is kept besides.
        for key, limit in (((scenario, name), self._limit), (rest, 2 * self._limit)):
            if key in self._known:
                return key
            if len(self._known) < limit:
                self._known[key] = None
                return key
        return OTHER, OTHER


def _shown(text: str) -> str:
    """A name as every time series database keeps it: without control characters, backslashes and blanks at its end."""
    visible = "".join(char if char.isprintable() else " " for char in text[:MAX_CHARACTERS])
    return visible.replace("\\", "/").rstrip()
