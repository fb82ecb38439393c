"""What a report of a run is about, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opsplane_server.loadtesting.comparison.comparing import RunComparison
from opsplane_server.loadtesting.metrics.course import Calls, Point, names_of
from opsplane_server.loadtesting.metrics.figures import SECOND
from opsplane_server.loadtesting.metrics.histograms import Histogram, merge
from opsplane_server.loadtesting.metrics.results import MissedTarget, RunResults
from opsplane_server.loadtesting.metrics.targets import all_targets, in_words
from opsplane_server.loadtesting.model import Run


@dataclass(frozen=True, slots=True)
class JudgedTarget:
    """A target in words, with how it was missed where it was."""

    words: str
    scenario: str
    missed: MissedTarget | None


@dataclass(frozen=True, slots=True)
class Content:
    """An ended run with its course. `comparison` is None where no baseline was asked for.

    `user_classes` says that its scenarios are classes of users.
    """

    run: Run
    results: RunResults
    points: Sequence[Point]
    comparison: RunComparison | None = None
    baseline: str = ""
    user_classes: bool = False

    @property
    def targets(self) -> list[JudgedTarget]:
        """What the run was judged by. A target that was missed while it lasted and in the end is missed once."""
        missed = (
            {(one.target, one.scenario): one for one in self.run.outcome.missed_targets} if self.run.outcome else {}
        )
        found = []
        for target in all_targets(self.run.plan.test):
            words = in_words(target)
            found.append(JudgedTarget(words, target.scenario, missed.pop((words, target.scenario), None)))
        return [*found, *(JudgedTarget(one.target, one.scenario, one) for one in missed.values())]

    @property
    def seconds(self) -> list[float]:
        """The middle of each point, counted from the start of the load."""
        return [((point.start + point.end) / 2 - self.points[0].start) / SECOND for point in self.points]

    def total(self) -> Series:
        """All calls."""
        return Series("", [point.total for point in self.points])

    def scenarios(self) -> list[Series]:
        """Calls by scenario or user class, the busiest first."""
        return [Series(name, [p.of_scenario(name) for p in self.points]) for name in names_of(self.points, 0)]

    def endpoints(self) -> list[Series]:
        """Calls by endpoint, the busiest first."""
        return [Series(name, [p.of_endpoint(name) for p in self.points]) for name in names_of(self.points, 1)]


@dataclass(frozen=True, slots=True)
class Series:
    """Calls of one name at every point."""

    name: str
    calls: Sequence[Calls]

    @property
    def requests(self) -> int:
        """All its calls."""
        return sum(one.requests for one in self.calls)

    @property
    def failed(self) -> int:
        """All its failures."""
        return sum(one.failed for one in self.calls)

    @property
    def response_time(self) -> Histogram:
        """All its response times."""
        return merge(one.response_time for one in self.calls)

    def quantiles(self, share: float) -> list[float | None]:
        """A percentile at every point, None where there were no calls."""
        return [one.response_time.quantiles(share)[0] if one.response_time.count else None for one in self.calls]

    def rates(self) -> list[float | None]:
        """Calls a second at every point."""
        return [one.rate for one in self.calls]

    def failures(self) -> list[float | None]:
        """Failed calls a second at every point."""
        return [one.rate * min(one.failed / one.requests, 1.0) if one.requests else 0.0 for one in self.calls]
