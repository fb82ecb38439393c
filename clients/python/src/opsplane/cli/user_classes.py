"""How many users of each class a run has: it tells how many there are, and its classes say how they are shared out."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from opsplane.cli.output import one_line
from opsplane.loadtesting.v1 import runs_pb2, users_pb2

_ON_START = ":on_start"
_MOST_IN_A_LINE = 6


def users_by_class(run: runs_pb2.Run, users: int) -> dict[str, int]:
    """Users of each class when there are `users` in all; empty for a run without classes of users.

    While their number changes, a class may have one more or less at the moment.
    """
    classes = run.user_load.classes
    return dict(zip((one.name for one in classes), _shares(classes, users), strict=True))


def in_words(run: runs_pb2.Run, users: int) -> str:
    """`HeavyUser 5, LightUser 15`; empty for a run without classes of users."""
    counts = users_by_class(run, users)
    listed = [f"{one_line(name, 30)} {count}" for name, count in list(counts.items())[:_MOST_IN_A_LINE]]
    return ", ".join([*listed, *(["..."] if len(counts) > _MOST_IN_A_LINE else [])])


def scenario_label(run: runs_pb2.Run, name: str, users: int) -> str:
    """What a scenario of the results is called: a class with its users, its calls on start, or a scenario."""
    counts = users_by_class(run, users)
    if name in counts:
        return f"{one_line(name)} ({counts[name]} users)"
    user_class = name.removesuffix(_ON_START)
    return f"{one_line(user_class)} on start" if user_class in counts else f"scenario {one_line(name)}"


def _shares(classes: Sequence[users_pb2.UserClass], users: int) -> list[int]:
    """Fixed counts first, the rest by weight and largest remainder, the first ones where remainders are equal."""
    counts = [0] * len(classes)
    weights: dict[int, Fraction] = {}
    left = users
    for index, one in enumerate(classes):
        if one.HasField("fixed_count"):
            counts[index] = min(one.fixed_count, left)
            left -= counts[index]
        else:
            weights[index] = Fraction(one.weight if one.HasField("weight") else 1.0)
    quotas = {index: left * weight / sum(weights.values()) for index, weight in weights.items()}
    for index, quota in quotas.items():
        counts[index] = int(quota)
    by_remainder = sorted(quotas, key=lambda index: (int(quotas[index]) - quotas[index], index))
    for index in by_remainder[: users - sum(counts)]:
        counts[index] += 1
    return counts
