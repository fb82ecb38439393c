"""What a load test is made of: the described API and the load on it. Plain data, shared by `openapi` and `k6`.

The shapes follow `proto/opsplane/loadtesting/v1/{specs,scenarios,runs}.proto`; rules that a single field can be
checked by live there, rules that need the whole run live in `k6.loads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from pydantic import JsonValue

# --- the API under test -------------------------------------------------------------------------------------------


class ParameterLocation(StrEnum):
    """Where a parameter goes."""

    PATH = "path"
    QUERY = "query"
    HEADER = "header"
    COOKIE = "cookie"


class ParameterStyle(StrEnum):
    """How arrays and objects are written in a parameter; the names are OpenAPI's."""

    SIMPLE = "simple"
    FORM = "form"
    LABEL = "label"
    MATRIX = "matrix"
    SPACE_DELIMITED = "spaceDelimited"
    PIPE_DELIMITED = "pipeDelimited"
    TAB_DELIMITED = "tabDelimited"
    DEEP_OBJECT = "deepObject"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of an endpoint. `sample` is what scripts send: from its example, default, enum or schema."""

    location: ParameterLocation
    name: str
    required: bool
    sample: JsonValue
    style: ParameterStyle
    explode: bool
    description: str = ""


@dataclass(frozen=True, slots=True)
class RequestBody:
    """The body of an endpoint: `sample` is its text as it is sent, `content_type` the exact header for it."""

    content_type: str
    required: bool
    sample: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An operation: a method on a path template.

    `success_statuses` are the codes that the document names; empty where it names none exactly (then 200 to 399
    count). `security` are ids of security schemes. `server_url` is set where the operation has another server than
    the document.
    """

    method: str
    path: str
    operation_id: str = ""
    summary: str = ""
    description: str = ""
    deprecated: bool = False
    tags: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    body: RequestBody | None = None
    success_statuses: tuple[int, ...] = ()
    security: tuple[str, ...] = ()
    server_url: str = ""

    @property
    def label(self) -> str:
        """Method and path template: what figures of this endpoint are filed under."""
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag, declared by the document or only used by an operation."""

    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class SecurityScheme:
    """How calls identify themselves. `type` is `http`, `apiKey`, `oauth2`, `openIdConnect` or `mutualTLS`.

    `scheme` is `bearer`, `basic`, ... for `http`, and the place of the key (`header`, `query`, `cookie`) for
    `apiKey`; `parameter_name` is the name of that header, query parameter or cookie.
    """

    id: str
    type: str
    scheme: str = ""
    parameter_name: str = ""


@dataclass(frozen=True, slots=True)
class Specification:
    """An OpenAPI document without its endpoints. `base_url` is its first server, empty when it names none."""

    title: str
    version: str
    description: str
    openapi_version: str
    base_url: str
    servers: tuple[str, ...]
    tags: tuple[Tag, ...]
    security_schemes: tuple[SecurityScheme, ...]
    source_url: str
    size_bytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnalyzedSpec:
    """What the analysis of a document gives; endpoints in the document's order."""

    specification: Specification
    endpoints: tuple[Endpoint, ...]


# --- the load -----------------------------------------------------------------------------------------------------


class Executor(StrEnum):
    """How the load of a scenario is shaped; the names are k6's."""

    CONSTANT_VUS = "constant-vus"
    RAMPING_VUS = "ramping-vus"
    CONSTANT_ARRIVAL_RATE = "constant-arrival-rate"
    RAMPING_ARRIVAL_RATE = "ramping-arrival-rate"
    PER_VU_ITERATIONS = "per-vu-iterations"
    SHARED_ITERATIONS = "shared-iterations"

    @property
    def arrival_rate(self) -> bool:
        """True when the load is calls a second, whatever the response time."""
        return self in (Executor.CONSTANT_ARRIVAL_RATE, Executor.RAMPING_ARRIVAL_RATE)

    @property
    def iterations(self) -> bool:
        """True when the load is a number of calls."""
        return self in (Executor.PER_VU_ITERATIONS, Executor.SHARED_ITERATIONS)


@dataclass(frozen=True, slots=True)
class Stage:
    """`target` is virtual users, or calls a second for arrival rates, at the end of `duration`."""

    duration: timedelta
    target: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """Load on one endpoint. Zero, None and empty mean "not said": the defaults are those of the proto."""

    name: str
    endpoint: Endpoint
    executor: Executor
    stages: tuple[Stage, ...] = ()
    think_time: timedelta = timedelta()
    iterations: int = 0
    vus: int = 0
    max_vus: int = 0
    start_time: timedelta = timedelta()
    graceful_stop: timedelta | None = None
    timeout: timedelta | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    content_type: str = ""
    expected_statuses: tuple[int, ...] = ()
    response_time_target: timedelta | None = None
    error_ratio_target: float | None = None


class TargetMetric(StrEnum):
    """Figures that a target can be set for: response times in ms, the error ratio 0 to 1, calls a second."""

    RESPONSE_TIME_P50 = "p50"
    RESPONSE_TIME_P90 = "p90"
    RESPONSE_TIME_P95 = "p95"
    RESPONSE_TIME_P99 = "p99"
    RESPONSE_TIME_AVG = "avg"
    RESPONSE_TIME_MAX = "max"
    ERROR_RATIO = "error_ratio"
    TPS = "tps"


@dataclass(frozen=True, slots=True)
class Target:
    """A limit on a figure, of one scenario or (`scenario` empty) of the run. TPS must reach it, others not exceed
    it.

    With `sustained` it is missed only when beyond the limit for that long; `abort_on_fail` then ends the run at
    once.
    """

    metric: TargetMetric
    limit: float
    scenario: str = ""
    sustained: timedelta | None = None
    abort_on_fail: bool = False


@dataclass(frozen=True, slots=True)
class BearerToken:
    """Sent as `Authorization: Bearer ...`."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class BasicCredentials:
    """HTTP basic authentication."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key in a header, query parameter or cookie."""

    location: ParameterLocation
    parameter_name: str
    value: str = field(repr=False)


Credentials = BearerToken | BasicCredentials | ApiKey


@dataclass(frozen=True, slots=True)
class LoadTest:
    """What a run does. `base_url` is absolute; an endpoint's own `server_url` goes before it unless it was
    overridden.

    `base_url_overridden` is True when the caller named the URL: then every call goes there, so that a test against
    a staging system never reaches the production server that one operation of the document names.
    """

    title: str
    base_url: str
    scenarios: tuple[Scenario, ...]
    target_tps: float = 0.0
    targets: tuple[Target, ...] = ()
    credentials: Credentials | None = None
    base_url_overridden: bool = False
