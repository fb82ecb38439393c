"""How users are shared out to their classes: fixed counts first, the rest by largest remainder, at every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor

from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.definitions import Stage
from opsplane_server.loadtesting.users import presets
from opsplane_server.loadtesting.users.model import UserClass, UserLoad

Stages = Mapping[str, tuple[Stage, ...]]


def stages(load: UserLoad) -> Stages:
    """The stages of every class, by name, in the order of the classes; at each stage their targets add up exactly.

    InvalidArgument as `presets.course`, and where all classes have fixed counts that are too few for the users.
    """
    course = presets.course(load)
    _require_all_shared(load, max(stage.target for stage in course))
    shares = [share(load.classes, stage.target) for stage in course]
    return {
        user_class.name: tuple(Stage(stage.duration, counts[i]) for stage, counts in zip(course, shares, strict=True))
        for i, user_class in enumerate(load.classes)
    }


def share(classes: Sequence[UserClass], users: int) -> list[int]:
    """How many of `users` are of each class.

    Fixed counts are filled in the order of the classes as far as the users go. What is left is shared by weight: each
    class gets the whole part of its quota, and those with the largest remainders one more, the first ones where they
    are equal. Exact for any weights. As with every sharing that keeps to quotas this way, a class can lose a user to
    others when their number grows.
    """
    counts = [0] * len(classes)
    left = users
    for i, user_class in enumerate(classes):
        if user_class.fixed_count is not None:
            counts[i] = min(user_class.fixed_count, left)
            left -= counts[i]
    weights = {i: Fraction(_weight(one)) for i, one in enumerate(classes) if one.fixed_count is None}
    total = sum(weights.values())
    quotas = {i: left * weight / total for i, weight in weights.items()}
    for i, quota in quotas.items():
        counts[i] = floor(quota)
    missing = left - sum(counts[i] for i in quotas) if quotas else 0
    by_remainder = sorted(quotas, key=lambda i: (floor(quotas[i]) - quotas[i], i))
    for i in by_remainder[:missing]:
        counts[i] += 1
    return counts


def without_users(load: UserLoad) -> tuple[str, ...]:
    """Classes that have no user at any stage, because there are too few users: worth a note of the run."""
    return tuple(name for name, course in stages(load).items() if not any(stage.target for stage in course))


def _weight(user_class: UserClass) -> float:
    return 1.0 if user_class.weight is None else user_class.weight


def _require_all_shared(load: UserLoad, users: int) -> None:
    fixed = [one.fixed_count for one in load.classes if one.fixed_count is not None]
    if len(fixed) == len(load.classes) and sum(fixed) < users:
        problem = f"all have fixed counts, {sum(fixed)} together, and there are {users} users; give one a weight"
        raise InvalidArgument.of("run.user_load.classes", problem)
