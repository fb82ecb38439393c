"""Comparing runs of a project: which ones, from what is stored of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from opsplane_server.errors import FailedPrecondition, InvalidArgument
from opsplane_server.loadtesting.comparison.figures import Change, FigureChange, Tolerance, compare, overall
from opsplane_server.loadtesting.history.port import MetricStore
from opsplane_server.loadtesting.metrics.course import CourseFold, Point, names_of
from opsplane_server.loadtesting.metrics.results import Verdict
from opsplane_server.loadtesting.model import Run, RunPlan, RunState
from opsplane_server.loadtesting.ports import RunStore
from opsplane_server.loadtesting.users.model import EndpointCall, UserLoad, UserTask
from opsplane_server.loadtesting.users.presets import course as course_of_users
from opsplane_server.loadtesting.watch import origin
from opsplane_server.rpc.filters import Condition
from opsplane_server.rpc.paging import PageRequest

DEFAULT_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class RunComparison:
    """One run against the baseline. `notes` are for people to know before they read it."""

    run: str
    change: Change
    figures: Sequence[FigureChange]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs against a baseline, in the order that was asked for."""

    baseline: str
    comparisons: Sequence[RunComparison]


class Comparisons:
    """Compares stored runs."""

    def __init__(self, store: RunStore, history: MetricStore) -> None:
        self._store = store
        self._history = history

    async def named(
        self, parent: str, runs: Sequence[str], baseline: str, tolerances: Sequence[Tolerance]
    ) -> Comparison:
        """The named runs against `baseline`, or the first of them where it is empty.

        Raises NotFound, InvalidArgument for runs of another project, FailedPrecondition for one without results.
        """
        for field, names in (("runs", runs), ("baseline", [baseline] if baseline else [])):
            for name in names:
                if not name.startswith(f"{parent}/"):
                    raise InvalidArgument.of(field, f"{name} is not of {parent}")
        first = await self._store.get_run(baseline or runs[0])
        others = [await self._store.get_run(name) for name in runs if name != first.name]
        return await self._compare(first, others, tolerances)

    async def last(
        self, parent: str, count: int, title: str, baseline: str, tolerances: Sequence[Tolerance]
    ) -> Comparison:
        """The last `count` completed runs with a title (empty for any) against `baseline`, or the oldest of them.

        Raises NotFound, InvalidArgument, FailedPrecondition when there are not two.
        """
        if baseline and not baseline.startswith(f"{parent}/"):
            raise InvalidArgument.of("baseline", f"{baseline} is not of {parent}")
        conditions = [Condition("state", "=", RunState.COMPLETED.value)]
        if title:
            conditions.append(Condition("title", "=", title))
        found = await self._store.list_runs(parent, PageRequest(count, None), conditions)
        runs = [run for run in reversed(found[:count]) if _has_results(run)]
        first = await self._store.get_run(baseline) if baseline else None
        if not runs or (first is None and len(runs) < 2):
            raise FailedPrecondition(f"{parent} has not enough completed runs to compare", reason="RUNS_MISSING")
        first = first or runs[0]
        return await self._compare(first, [run for run in runs if run.name != first.name], tolerances)

    async def pair(self, baseline: str, run: Run, points: Sequence[Point], tolerance: float) -> RunComparison:
        """One run, whose course is known, against a baseline."""
        first = await self._store.get_run(baseline)
        _require_results(first)
        before = await course(self._history, first)
        return await asyncio.to_thread(_compared, first, before, run, points, [Tolerance(tolerance)])

    async def _compare(self, first: Run, others: Sequence[Run], tolerances: Sequence[Tolerance]) -> Comparison:
        for run in (first, *others):
            _require_results(run)
        before = await course(self._history, first)
        found = []
        for run in others:
            points = await course(self._history, run)
            found.append(await asyncio.to_thread(_compared, first, before, run, points, tolerances))
        return Comparison(first.name, found)


async def course(history: MetricStore, run: Run) -> list[Point]:
    """The course of an ended run."""
    points = await _read(history, run)
    known = run.outcome.results.total.requests if run.outcome else 0
    if known != sum(calls.requests for point in points for calls in point.calls.values()):
        points = await _read(history, run)  # it was compacted in between
    return points


async def _read(history: MetricStore, run: Run) -> list[Point]:
    fold = CourseFold(origin(run), run.plan.generators)
    async with aclosing(history.read(run)) as batches:
        async for batch in batches:
            # Merging histograms of many endpoints takes its time.
            await asyncio.to_thread(fold.add, [row for _, row in batch])
    return await asyncio.to_thread(fold.points)


def _compared(
    first: Run, before: Sequence[Point], run: Run, points: Sequence[Point], tolerances: Sequence[Tolerance]
) -> RunComparison:
    figures = compare(before, points, tolerances)
    return RunComparison(run.name, overall(figures), figures, tuple(_notes(first, before, run, points)))


def _has_results(run: Run) -> bool:
    return run.outcome is not None and run.outcome.results.total.requests > 0


def _require_results(run: Run) -> None:
    if not run.state.ended:
        raise FailedPrecondition(f"{run.name} has not ended", reason="RUN_ACTIVE")
    if not _has_results(run):
        raise FailedPrecondition(f"{run.name} has no results: it made no calls", reason="RESULTS_MISSING")


def _notes(first: Run, before: Sequence[Point], run: Run, points: Sequence[Point]) -> list[str]:
    notes = [
        f"{one.name} is not to be judged: its verdict is INVALID"
        for one in (first, run)
        if one.verdict is Verdict.INVALID
    ]
    if _load(first.plan) != _load(run.plan):
        notes.append("the load was another one than in the baseline")
    for part, kind in ((0, "class of users" if run.plan.users else "scenario"), (1, "endpoint")):
        ours, theirs = set(names_of(points, part)), set(names_of(before, part))
        notes += [f"{kind} {name} is in this run only" for name in sorted(ours - theirs)]
        notes += [f"{kind} {name} is in the baseline only" for name in sorted(theirs - ours)]
    return notes


def _load(plan: RunPlan) -> RunPlan:
    """What of a plan decides the load: not where it goes to, nor what it is judged by."""
    test = replace(plan.test, title="", base_url="", base_url_overridden=False, targets=(), credentials=None)
    judged = [
        replace(one, response_time_target=None, error_ratio_target=None, endpoint=replace(one.endpoint, server_url=""))
        for one in test.scenarios
    ]
    return replace(
        plan,
        test=replace(test, scenarios=tuple(judged)),
        users=_user_load(plan.users) if plan.users else None,
        endpoints=(),
        labels={},
        timeout=None,
        teardown_timeout=None,
    )


def _user_load(load: UserLoad) -> UserLoad:
    """The same for users: nor what their random choices are, nor how the course of their number was said."""
    classes = [
        replace(one, tasks=tuple(map(_anywhere, one.tasks)), on_start=tuple(map(_anywhere, one.on_start)))
        for one in load.classes
    ]
    return UserLoad(classes=tuple(classes), pools=load.pools, stages=course_of_users(load))


def _anywhere(task: UserTask) -> UserTask:
    if not isinstance(task.action, EndpointCall):
        return task
    endpoint = replace(task.action.endpoint, server_url="")
    return replace(task, action=replace(task.action, endpoint=endpoint, base_url=""))
