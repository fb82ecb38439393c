"""Resource names of load testing, taken apart and put together.

The servicer has validated names against the patterns of the protos before they come here, so a name that does not fit
is a mistake of ours.
"""

from __future__ import annotations

WILDCARD = "-"


def project(project_id: str) -> str:
    """`projects/{project}`."""
    return f"projects/{project_id}"


def spec(project_id: str, spec_id: str) -> str:
    """`projects/{project}/specs/{spec}`."""
    return f"projects/{project_id}/specs/{spec_id}"


def endpoint(project_id: str, spec_id: str, endpoint_id: str) -> str:
    """`projects/{project}/specs/{spec}/endpoints/{endpoint}`."""
    return f"projects/{project_id}/specs/{spec_id}/endpoints/{endpoint_id}"


def data_set(project_id: str, data_set_id: str) -> str:
    """`projects/{project}/dataSets/{data_set}`."""
    return f"projects/{project_id}/dataSets/{data_set_id}"


def run(project_id: str, run_id: str) -> str:
    """`projects/{project}/runs/{run}`."""
    return f"projects/{project_id}/runs/{run_id}"


def ids(name: str) -> tuple[str, ...]:
    """The ids of a name in order: `projects/a/specs/b` gives `("a", "b")`."""
    return tuple(name.split("/")[1::2])
