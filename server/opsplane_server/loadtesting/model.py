"""The resources of load testing. Plain data: `definitions` has what a load test is made of, `metrics` its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from opsplane_server.loadtesting import definitions
from opsplane_server.loadtesting.metrics.results import MissedTarget, RunResults, Verdict
from opsplane_server.loadtesting.users.model import UserLoad


@dataclass(frozen=True, slots=True)
class Project:
    """Times are None until it is stored, `key` is the store's own. The counts are as of the reading."""

    name: str
    title: str
    summary: str = ""
    description: str = ""
    key: int = 0
    revision: int = 0
    create_time: datetime | None = None
    update_time: datetime | None = None
    spec_count: int = 0
    run_count: int = 0
    data_set_count: int = 0


@dataclass(frozen=True, slots=True)
class Spec:
    """A stored specification. `tag_counts` says how many endpoints carry each tag."""

    name: str
    specification: definitions.Specification
    endpoint_count: int
    tag_counts: Mapping[str, int]
    key: int = 0
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint with its resource name."""

    name: str
    definition: definitions.Endpoint
    key: int = 0


class RunState(StrEnum):
    """Where a run stands; the names are those of the API without their prefix."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """True when the run will not change any more."""
        return self in (RunState.COMPLETED, RunState.CANCELLED, RunState.FAILED)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run does, kept for good, without credentials.

    `endpoints` are the resource names of the scenarios' endpoints, in the order of `test.scenarios`. With `users` the
    load is theirs, and there are no scenarios. `script` is the user's own k6 script, empty when one is generated, and
    `teardown_timeout` what it sets as its own.
    """

    test: definitions.LoadTest
    endpoints: tuple[str, ...] = ()
    users: UserLoad | None = None
    script: str = ""
    teardown_timeout: timedelta | None = None
    generators: int = 1
    timeout: timedelta | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    planned_duration: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run."""

    results: RunResults
    missed_targets: tuple[MissedTarget, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """A load test with its state. `key` is the store's own; `outcome` is None until it has ended.

    `operation` names the operation that supervises it.
    """

    name: str
    title: str
    description: str
    plan: RunPlan
    creator: str
    trace_id: str
    operation: str = ""
    key: int = 0
    state: RunState = RunState.PENDING
    verdict: Verdict | None = None
    failure_reason: str = ""
    failure_message: str = ""
    notes: tuple[str, ...] = ()
    generator_version: str = ""
    outcome: Outcome | None = None
    create_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a run's log: of the load generator's console (`source` console), or what the server did (event)."""

    time: datetime
    source: str
    level: str
    message: str
    key: int = 0


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended: its last state and, where it failed, why."""

    state: RunState
    verdict: Verdict
    outcome: Outcome
    failure_reason: str = ""
    failure_message: str = ""
    notes: tuple[str, ...] = ()
