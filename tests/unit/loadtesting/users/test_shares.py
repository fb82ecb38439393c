"""Users shared out to classes: exactly, fixed counts first, the rest by largest remainder."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.definitions import Stage
from opsplane_server.loadtesting.users.model import UserClass
from opsplane_server.loadtesting.users.shares import share, stages, without_users

from tests.unit.loadtesting.users.loads import SECOND, load, user_class

SHARES = st.lists(
    st.one_of(
        st.builds(lambda weight: {"weight": weight}, st.floats(min_value=1e-300, max_value=1e6)),
        st.builds(lambda weight: {"weight": float(weight)}, st.integers(1, 10)),
        st.builds(lambda count: {"fixed_count": count}, st.integers(1, 200)),
        st.just({}),
    ),
    min_size=1,
    max_size=12,
).map(lambda found: [user_class(f"c{n}", **fields) for n, fields in enumerate(found)])


def weights(*values: float) -> list[UserClass]:
    return [user_class(f"c{n}", weight=value) for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("classes", "users", "expected"),
    [
        (weights(1, 3), 4, [1, 3]),
        (weights(1, 3), 100, [25, 75]),
        (weights(1, 3), 5, [1, 4]),
        (weights(1, 3), 2, [1, 1]),  # 0.5 and 1.5: equal remainders, the first class goes first
        (weights(1, 3), 1, [0, 1]),
        (weights(1, 1, 1), 2, [1, 1, 0]),
        (weights(0.1, 0.2), 3, [1, 2]),
        ([user_class("a"), user_class("b", weight=1.0)], 4, [2, 2]),
        ([user_class("a", weight=1.0), user_class("b", fixed_count=3)], 10, [7, 3]),
        ([user_class("a", fixed_count=3), user_class("b", fixed_count=4), user_class("c")], 5, [3, 2, 0]),
        ([user_class("a", fixed_count=3), user_class("b")], 0, [0, 0]),
    ],
)
def test_shares(classes: list[UserClass], users: int, expected: list[int]) -> None:
    assert share(classes, users) == expected


@given(SHARES, st.integers(0, 100_000))
def test_shares_are_exact(classes: list[UserClass], users: int) -> None:
    counts = share(classes, users)
    fixed = [one.fixed_count for one in classes if one.fixed_count is not None]
    weighted = [(Fraction(one.weight or 1), n) for n, one in enumerate(classes) if one.fixed_count is None]

    left = max(0, users - sum(fixed))
    assert sum(counts) == (users if weighted else min(users, sum(fixed)))
    assert sum(counts[n] for _, n in weighted) == (left if weighted else 0)
    total = sum(weight for weight, _ in weighted)
    for weight, n in weighted:
        assert abs(counts[n] - left * weight / total) < 1
    # Who weighs more never has fewer.
    for weight, n in weighted:
        for other, m in weighted:
            assert weight <= other or counts[n] >= counts[m]


@given(SHARES, st.lists(st.integers(1, 500), min_size=1, max_size=8))
def test_every_stage_adds_up(classes: list[UserClass], targets: list[int]) -> None:
    classes = [*classes, user_class("last")]
    course = tuple(Stage(SECOND, target) for target in targets)
    shared = stages(load(*classes, users=0, spawn_rate=0.0, run_time=None, stages=course))
    assert list(shared) == [one.name for one in classes]
    for n, stage in enumerate(course):
        assert sum(of_class[n].target for of_class in shared.values()) == stage.target
        assert all(of_class[n].duration == stage.duration for of_class in shared.values())


def test_fixed_counts_alone_must_be_enough() -> None:
    classes = (user_class("a", fixed_count=2), user_class("b", fixed_count=3))
    assert [found[-1].target for found in stages(load(*classes, users=5)).values()] == [2, 3]
    assert [found[-1].target for found in stages(load(*classes, users=4)).values()] == [2, 2]
    with pytest.raises(InvalidArgument, match="5 together, and there are 6 users") as caught:
        stages(load(*classes, users=6))
    assert [violation.field for violation in caught.value.violations] == ["run.user_load.classes"]


def test_classes_that_are_left_without_users_are_known() -> None:
    classes = (user_class("most", weight=100.0), user_class("few", weight=1.0))
    assert without_users(load(*classes, users=3)) == ("few",)
    assert without_users(load(*classes, users=200)) == ()
