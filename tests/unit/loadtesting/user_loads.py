"""Loads by users of every kind, for tests."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

from hypothesis import strategies as st
from opsplane_server.loadtesting.definitions import Endpoint, Stage
from opsplane_server.loadtesting.users.model import (
    Choice,
    DataPool,
    EndpointCall,
    GeneratedField,
    Generator,
    Hex,
    IntegerRange,
    Made,
    Preset,
    RequestTemplate,
    Script,
    Sequence,
    Template,
    TimestampRange,
    UserClass,
    UserLoad,
    UserTask,
    WaitRule,
    WaitTime,
)

T = TypeVar("T")

NAME = "projects/shop/specs/{}/endpoints/e{}"
ENDPOINTS = {
    NAME.format(spec, number): (Endpoint("GET", f"/pets/{number}", server_url=server), f"https://{spec}.example")
    for spec, number, server in (("pets", 1, ""), ("pets", 2, "https://other.example"), ("toys", 1, ""))
}

_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,9}", fullmatch=True)
_texts = st.text(max_size=10)
_words = st.text(min_size=1, max_size=10)
_maps = st.dictionaries(_words, _texts, max_size=3)
_positive = st.floats(min_value=0.001, max_value=1000)
_spans = st.timedeltas(min_value=timedelta(), max_value=timedelta(hours=1))
_integers = st.integers(-(2**63), 2**63 - 1)


def _tuples(elements: st.SearchStrategy[T], least: int = 0) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(elements, min_size=least, max_size=3).map(tuple)


def _waits() -> st.SearchStrategy[WaitTime]:
    seconds = _spans.map(lambda span: span / timedelta(seconds=1))
    return st.one_of(
        st.just(WaitTime()),
        st.builds(WaitTime, st.just(WaitRule.BETWEEN), seconds, seconds),
        st.builds(WaitTime, st.sampled_from([WaitRule.CONSTANT, WaitRule.CONSTANT_PACING]), seconds),
        st.builds(WaitTime, st.sampled_from([WaitRule.CONSTANT_THROUGHPUT, WaitRule.POISSON]), _positive),
    )


def _tasks() -> st.SearchStrategy[UserTask]:
    def call(name: str, parameters: dict[str, str], body: str) -> EndpointCall:
        return EndpointCall(name, *ENDPOINTS[name], parameters, body)

    rest = {"name": _texts, "weight": st.just(0.0) | _positive}
    of_calls = {"expected_statuses": _tuples(st.integers(100, 599)), "captures": st.dictionaries(_names, _words)}
    return st.one_of(
        st.builds(UserTask, st.builds(call, st.sampled_from([*ENDPOINTS]), _maps, _texts), **rest, **of_calls),
        st.builds(
            UserTask,
            st.builds(RequestTemplate, st.just("GET"), _words, _maps, _maps, _texts, _texts),
            **rest,
            **of_calls,
        ),
        st.builds(UserTask, st.builds(Script, _words), **rest),
    )


def _classes() -> st.SearchStrategy[UserClass]:
    shares = st.one_of(
        st.just((None, None)),
        st.tuples(_positive, st.none()),
        st.tuples(st.none(), st.integers(1, 100_000)),
    )
    rest = st.fixed_dictionaries(
        {
            "name": _names,
            "tasks": _tuples(_tasks(), 1),
            "wait_time": _waits(),
            "on_start": _tuples(_tasks()),
            "headers": _maps,
            "session_header": _texts,
            "keep_cookies": st.booleans(),
            "user_id": _texts,
            "session_id": _texts,
        }
    )
    return st.builds(lambda share, given: UserClass(weight=share[0], fixed_count=share[1], **given), shares, rest)


def _generators() -> st.SearchStrategy[Generator]:
    kinds = st.one_of(
        st.tuples(_integers, _integers).map(lambda bounds: IntegerRange(min(bounds), max(bounds))),
        st.builds(Sequence, _integers),
        st.sampled_from(Made),
        st.builds(Hex, st.integers(1, 256)),
        st.builds(TimestampRange, _spans, _spans),
        st.builds(Choice, _tuples(_texts, 1), _tuples(_positive)),
        st.builds(Template, _words),
    )
    return st.builds(Generator, st.integers(1, 1000), _tuples(st.builds(GeneratedField, _names, kinds), 1))


def loads() -> st.SearchStrategy[UserLoad]:
    """Any load that can be written down, whether it makes sense or not."""
    pools = st.builds(
        DataPool,
        name=_names,
        source=st.just("projects/shop/dataSets/bundles") | _generators(),
        rows_per_user=st.integers(0, 100),
        overlap_ratio=st.floats(0, 0.99),
        limit=st.integers(0, 100),
        fallback=st.none() | _generators(),
    )
    return st.builds(
        UserLoad,
        classes=_tuples(_classes(), 1),
        pools=_tuples(pools),
        preset=st.none() | st.sampled_from(Preset),
        users=st.integers(0, 100_000),
        spawn_rate=st.just(0.0) | _positive,
        run_time=st.none() | _spans,
        stages=_tuples(st.builds(Stage, _spans, st.integers(0, 100_000))),
        seed=_integers.filter(bool),
    )
