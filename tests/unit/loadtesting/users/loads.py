"""Loads by users to test with."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from opsplane_server.loadtesting.definitions import LoadTest
from opsplane_server.loadtesting.users.model import (
    DataPool,
    Generator,
    RequestTemplate,
    UserClass,
    UserLoad,
    UserTask,
)

SECOND = timedelta(seconds=1)
TEST = LoadTest("a test", "http://127.0.0.1:1/base/", (), base_url_overridden=True)
BROWSE = UserTask(RequestTemplate("GET", "/"))


def user_class(name: str = "Visitor", *tasks: UserTask, **fields: Any) -> UserClass:
    """Users that look at the front page, or do `tasks`."""
    return UserClass(name, tasks or (BROWSE,), **fields)


def load(*classes: UserClass, **fields: Any) -> UserLoad:
    """Ten users for a minute."""
    numbers: dict[str, Any] = {"users": 10, "spawn_rate": 5.0, "run_time": 60 * SECOND}
    return UserLoad(classes or (user_class(),), **(numbers | fields))


def pool(name: str, *, part: int = 0, overlap: float = 0.0) -> DataPool:
    """Rows that a test brings itself."""
    return DataPool(name, Generator(1, ()), rows_per_user=part, overlap_ratio=overlap)
