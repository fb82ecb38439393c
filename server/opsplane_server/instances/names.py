"""Resource names of Instances, taken apart and put together.

The servicer has validated names against the patterns of the protos before they come here, so a name that does not fit
is a mistake of ours.
"""

from __future__ import annotations

WILDCARD = "instances/-"


def instance(instance_id: str) -> str:
    """`instances/{instance}`."""
    return f"instances/{instance_id}"


def database(parent: str, database_id: str) -> str:
    """`instances/{instance}/databases/{database}`, of the instance's name."""
    return f"{parent}/databases/{database_id}"


def user(parent: str, user_id: str) -> str:
    """`instances/{instance}/users/{user}`, of the instance's name."""
    return f"{parent}/users/{user_id}"


def parent(name: str) -> str:
    """The instance's name in that of a database or user."""
    return "/".join(name.split("/")[:2])


def last(name: str) -> str:
    """The last id of a name."""
    return name.rsplit("/", 1)[-1]
