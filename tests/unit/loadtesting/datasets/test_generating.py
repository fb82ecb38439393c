"""Rows that are made up, and what is wrong with those that cannot be."""

from __future__ import annotations

import ipaddress
import json
import re
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.loadtesting.datasets import generating
from opsplane_server.loadtesting.datasets.checking import check_generator
from opsplane_server.loadtesting.datasets.generating import generate
from opsplane_server.loadtesting.datasets.values import RowsError
from opsplane_server.loadtesting.users.model import (
    Choice,
    GeneratedField,
    Generator,
    Hex,
    IntegerRange,
    Made,
    Sequence,
    Template,
    TimestampRange,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, 500_000, UTC)
DAY = timedelta(days=1)


def make(rows: int, seed: int = 1, pool: str = "p", now: datetime = NOW, **kinds: Any) -> list[dict[str, Any]]:
    generator = Generator(rows, tuple(GeneratedField(name, kind) for name, kind in kinds.items()))
    assert list(check_generator(generator, "g")) == []
    return list(json.loads(generate(generator, pool=pool, seed=seed, now=now).file))


def values(rows: int, kind: Any) -> list[Any]:
    return [row["a"] for row in make(rows, a=kind)]


def problems(**kinds: Any) -> list[tuple[str, str]]:
    generator = Generator(1, tuple(GeneratedField(name, kind) for name, kind in kinds.items()))
    return [(violation.field, violation.description) for violation in check_generator(generator, "g")]


def test_integers_are_even_and_reach_both_ends() -> None:
    counts = Counter(values(4000, IntegerRange(-1, 2)))
    assert sorted(counts) == [-1, 0, 1, 2]
    assert all(800 < count < 1200 for count in counts.values())
    assert values(2, IntegerRange(7, 7)) == [7, 7]


def test_integers_beyond_those_of_javascript_are_text() -> None:
    assert values(1, IntegerRange(2**63 - 1, 2**63 - 1)) == ["9223372036854775807"]
    assert all(isinstance(value, str | int) for value in values(100, IntegerRange(-(2**63), 2**63 - 1)))


def test_every_kind_of_value_has_its_form() -> None:
    assert values(3, Sequence(800)) == [800, 801, 802]
    assert len({uuid.UUID(value) for value in values(100, Made.UUID)}) == 100
    assert {uuid.UUID(value).version for value in values(100, Made.UUID)} == {4}
    assert all(re.fullmatch("[0-9a-f]{32}", value) for value in values(100, Hex(32)))
    assert all(len(value) == 1 for value in values(100, Hex(1)))


def test_times_lie_in_their_range_in_whole_seconds() -> None:
    found = [datetime.fromisoformat(value) for value in values(500, TimestampRange(2 * DAY, DAY))]
    assert min(found) >= NOW.replace(microsecond=0) - 2 * DAY
    assert max(found) <= NOW - DAY
    assert max(found) - min(found) > DAY / 2
    assert values(1, TimestampRange(DAY, DAY)) == ["2026-02-28T12:00:00Z"]


def test_addresses_are_of_all_private_networks() -> None:
    networks = [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
    found = Counter(
        next(network for network in networks if ipaddress.ip_address(value) in network)
        for value in values(900, Made.PRIVATE_IP)
    )
    assert all(200 < found[network] < 400 for network in networks)


def test_choices_follow_their_weights() -> None:
    counts = Counter(values(4000, Choice(("a", "b", "c"), (3, 0, 1))))
    assert counts["b"] == 0
    assert 2800 < counts["a"] < 3200
    assert 800 < Counter(values(3000, Choice(("x", "y", "z"))))["z"] < 1200


def test_templates_use_earlier_fields_and_functions() -> None:
    rows = make(
        50,
        n=Sequence(1),
        user=Template("load_{{row.n}}_{{int 5 5}}"),
        path=Template('/{{row.user}}/{{choice "a b"}}/{{weighted 1 z 0 y}}/{{sequence 9}}/{{hex 4}}/{{now}}'),
        when=Template("{{timestamp -1h -1h}} {{uuid}} {{private_ip}}"),
    )
    assert rows[1]["user"] == "load_2_5"
    assert re.fullmatch(r"/load_50_5/a b/z/58/[0-9a-f]{4}/2026-03-01T12:00:00Z", rows[49]["path"])
    assert rows[0]["when"].startswith("2026-03-01T11:00:00Z ")


def test_the_same_seed_and_time_give_the_same_rows_wherever_they_are_made() -> None:
    kinds: dict[str, Any] = {"a": Made.UUID, "b": IntegerRange(1, 1000), "c": TimestampRange(DAY, timedelta())}
    assert make(3, seed=42, **kinds) == make(3, seed=42, **kinds)
    # As they were when this was written: they must not change with Python or with this code.
    assert make(2, seed=42, a=Hex(8), b=IntegerRange(1, 1000), c=Choice(("x", "y", "z"), (1, 2, 3))) == [
        {"a": "52bc2fe3", "b": 363, "c": "y"},
        {"a": "db914d08", "b": 676, "c": "z"},
    ]


def test_another_seed_pool_or_time_gives_other_rows() -> None:
    kinds: dict[str, Any] = {"a": Hex(32), "t": TimestampRange(DAY, timedelta())}
    first = make(5, **kinds)
    assert first != make(5, seed=2, **kinds)
    assert first != make(5, pool="q", **kinds)
    later = make(5, now=NOW + DAY, **kinds)
    assert [row["a"] for row in later] == [row["a"] for row in first]
    assert [row["t"] for row in later] != [row["t"] for row in first]


def test_more_rows_and_fields_leave_the_others_as_they_were() -> None:
    few = make(3, a=Hex(8), b=Made.UUID)
    many = make(9, a=Hex(8), x=Hex(4), b=Made.UUID)
    assert [{"a": row["a"], "b": row["b"]} for row in many[:3]] == few


@given(st.integers(1, 2**63), st.integers(0, 2**63))
def test_numbers_stay_below_their_bound(bound: int, seed: int) -> None:
    source = generating.Random(seed)
    assert all(0 <= generating._below(source, bound) < bound for _ in range(5))


def test_text_that_repeats_itself_is_bounded() -> None:
    with pytest.raises(RowsError, match="a template gives more than 1 MiB"):
        make(1, a=Template("x" * 4096), b=Template("{{row.a}}" * 300))


def test_generators_that_cannot_be_are_told_by_their_fields() -> None:
    assert problems(a=Choice(("x",), (0.0,)), b=TimestampRange(DAY, 2 * DAY)) == [
        ("g.fields[0].choice.weights", "one of them must be above 0"),
        ("g.fields[1].timestamp.to_ago", "must not be above from_ago"),
    ]
    twice = Generator(1, (GeneratedField("a", Made.UUID), GeneratedField("a", Made.UUID)))
    assert [violation.field for violation in check_generator(twice, "g")] == ["g.fields[1].name"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x{{row.b}}", "at character 2: there is no field 'b' before this one; the fields before it are n"),
        ("{{pool.p.id}}", "at character 1: pools, captured values and users are not there yet"),
        ("{{captured.token}}", "at character 1: pools, captured values and users are not there yet"),
        ("{{user.id}}", "at character 1: pools, captured values and users are not there yet"),
        ("{{nothing}}", "at character 1: there is no 'nothing'"),
        ("{{int 2 1}}", "at character 1: int is written {{int MIN MAX}}"),
        ("a {{", "at character 3:"),
    ],
)
def test_templates_that_cannot_be_are_told_with_their_place(text: str, problem: str) -> None:
    [(field, found)] = problems(n=Sequence(1), a=Template(text), b=Made.UUID)
    assert field == "g.fields[1].template"
    assert found.startswith(problem)
