"""The metrics of several processes as those of one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opsplane_server.telemetry.totals import Totals
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families


class Process:
    """What one process tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter("calls", "Calls.", ["method"], registry=self.registry)
        self.open = Gauge("open_calls", "Open calls.", registry=self.registry)
        self.seconds = Histogram("call_seconds", "Time.", ["method"], buckets=(0.5, 2), registry=self.registry)

    def call(self, method: str, seconds: float) -> None:
        self.calls.labels(method).inc()
        self.seconds.labels(method).observe(seconds)

    @property
    def text(self) -> str:
        return generate_latest(self.registry).decode()


def value(totals: Totals, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(totals.render().decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def test_counters_histograms_and_gauges_add_up() -> None:
    one, two, totals = Process(), Process(), Totals()
    one.call("a", 0.25)
    two.call("a", 1)
    two.call('b "quoted"\n', 3)
    one.open.set(2)
    two.open.set(5)
    totals.update(1, one.text)
    totals.update(2, two.text)
    assert value(totals, "calls_total", method="a") == 2
    assert value(totals, "calls_total", method='b "quoted"\n') == 1
    assert value(totals, "open_calls") == 7
    assert value(totals, "call_seconds_bucket", method="a", le="0.5") == 1
    assert value(totals, "call_seconds_bucket", method="a", le="+Inf") == 2
    assert value(totals, "call_seconds_sum", method="a") == 1.25


def test_what_ended_processes_counted_stays_and_their_gauges_go() -> None:
    one, totals = Process(), Totals()
    one.call("a", 1)
    one.open.set(3)
    totals.update((0, 1), one.text)
    totals.retire((0, 1))
    assert value(totals, "calls_total", method="a") == 1
    assert value(totals, "call_seconds_count", method="a") == 1
    assert value(totals, "open_calls") is None
    totals.retire((0, 1))
    assert value(totals, "calls_total", method="a") == 1


def test_the_sum_is_a_valid_exposition_of_the_same_families() -> None:
    one, totals = Process(), Totals()
    one.call("a", 1)
    totals.update(1, one.text)
    families = {family.name: family.type for family in text_string_to_metric_families(totals.render().decode())}
    expected = {family.name: family.type for family in text_string_to_metric_families(one.text)}
    created = {name for name in expected if name.endswith("_created")}
    assert {name: kind for name, kind in families.items() if name not in created} == {
        name: kind for name, kind in expected.items() if name not in created
    }


def test_malformed_text_is_refused_and_changes_nothing() -> None:
    one, totals = Process(), Totals()
    one.call("a", 1)
    totals.update(1, one.text)
    with pytest.raises(ValueError):  # noqa: PT011
        totals.update(1, "calls_total{ 1 2 3 4\n")
    assert value(totals, "calls_total", method="a") == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["call", "scrape", "die"]), st.integers(0, 2)), max_size=40))
def test_totals_never_fall_whatever_dies_whenever(steps: list[tuple[str, int]]) -> None:
    totals = Totals()
    places = [Process() for _ in range(3)]
    runs = [0, 0, 0]
    highest = 0.0
    for step, place in steps:
        if step == "call":
            places[place].call("a", 1)
        elif step == "scrape":
            totals.update((place, runs[place]), places[place].text)
        else:
            totals.retire((place, runs[place]))
            places[place] = Process()
            runs[place] += 1
        now = value(totals, "calls_total", method="a") or 0.0
        assert now >= highest
        highest = now
