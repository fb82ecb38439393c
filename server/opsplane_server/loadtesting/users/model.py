"""What simulated users are. Plain data; the shapes follow `proto/opsplane/loadtesting/v1/users.proto`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from opsplane_server.loadtesting.definitions import Endpoint, Stage


class Preset(StrEnum):
    """Known sizes of load; the names are those of the API without their prefix."""

    SMOKE = "SMOKE"
    LOAD = "LOAD"
    STRESS = "STRESS"
    ANALYTICS = "ANALYTICS"
    SOAK = "SOAK"


class WaitRule(StrEnum):
    """How long a user rests between tasks."""

    NONE = "none"
    BETWEEN = "between"
    CONSTANT = "constant"
    CONSTANT_PACING = "constant_pacing"
    CONSTANT_THROUGHPUT = "constant_throughput"
    POISSON = "poisson"


@dataclass(frozen=True, slots=True)
class WaitTime:
    """`low` and `high` are seconds for BETWEEN, `low` seconds for CONSTANT and CONSTANT_PACING, and tasks a second
    for CONSTANT_THROUGHPUT and POISSON."""

    rule: WaitRule = WaitRule.NONE
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, slots=True)
class EndpointCall:
    """A call of an endpoint of a specification with its samples. `name` is the endpoint's resource name.

    `base_url` is that of its specification. `parameters` and `body` replace samples and may hold templates.
    """

    name: str
    endpoint: Endpoint
    base_url: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    body: str = ""


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """A call given directly. Everything but `method` may hold templates."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Script:
    """k6 JavaScript of the user's own, the body of a function."""

    code: str


@dataclass(frozen=True, slots=True)
class UserTask:
    """Something that a user does. `name` is empty where it is not said; `weight` 0 means 1.

    `captures` are names to JSON paths in the answer.
    """

    action: EndpointCall | RequestTemplate | Script
    name: str = ""
    weight: float = 0.0
    expected_statuses: tuple[int, ...] = ()
    captures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UserClass:
    """Users that behave alike. `fixed_count` goes before `weight`; both None mean weight 1.

    `user_id` and `session_id` are templates, filled in once a user; empty for those of the server.
    """

    name: str
    tasks: tuple[UserTask, ...]
    weight: float | None = None
    fixed_count: int | None = None
    wait_time: WaitTime = WaitTime()
    on_start: tuple[UserTask, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    session_header: str = ""
    keep_cookies: bool = False
    user_id: str = ""
    session_id: str = ""


# --- data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IntegerRange:
    """Whole numbers from `min` to `max`, both included."""

    min: int
    max: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """Whole numbers counting up from `start`."""

    start: int


class Made(StrEnum):
    """Values that need no more said: random UUIDs, private IPv4 addresses."""

    UUID = "uuid"
    PRIVATE_IP = "private_ip"


@dataclass(frozen=True, slots=True)
class Hex:
    """So many random hexadecimal digits."""

    digits: int


@dataclass(frozen=True, slots=True)
class TimestampRange:
    """Times from `from_ago` to `to_ago` before the start of the run."""

    from_ago: timedelta
    to_ago: timedelta


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the values; `weights` are empty for even odds."""

    values: tuple[str, ...]
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """Text with templates, which may use the fields before it: `{{row.NAME}}`."""

    text: str


@dataclass(frozen=True, slots=True)
class GeneratedField:
    """Makes up one field of a row."""

    name: str
    kind: IntegerRange | Sequence | Made | Hex | TimestampRange | Choice | Template


@dataclass(frozen=True, slots=True)
class Generator:
    """Makes up rows."""

    rows: int
    fields: tuple[GeneratedField, ...]


@dataclass(frozen=True, slots=True)
class DataPool:
    """Rows that users draw from: those of a data set (its resource name), or made up.

    Each user has a part of `rows_per_user` rows (0 for all), of which the next user has the share `overlap_ratio` too.
    """

    name: str
    source: str | Generator
    rows_per_user: int = 0
    overlap_ratio: float = 0.0
    limit: int = 0
    fallback: Generator | None = None


# --- the load -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserLoad:
    """Load by simulated users, as it was asked for; `presets.course` says what follows from it.

    `seed` is never 0: where none was given, the server has chosen one, and `seed_given` is False.
    """

    classes: tuple[UserClass, ...]
    pools: tuple[DataPool, ...] = ()
    preset: Preset | None = None
    users: int = 0
    spawn_rate: float = 0.0
    run_time: timedelta | None = None
    stages: tuple[Stage, ...] = ()
    seed: int = 1
    seed_given: bool = True
