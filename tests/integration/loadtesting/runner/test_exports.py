"""What the real k6 exports, and that its figures are ours."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from opsplane_server.loadtesting.metrics.results import RunFold, RunResults
from opsplane_server.loadtesting.metrics.windows import WindowAssembler
from opsplane_server.loadtesting.runners.local import LocalRunner
from opsplane_server.loadtesting.runners.port import Exited, Exporter, GeneratorSpec, Lost, segments

from tests.integration.loadtesting.runner.conftest import Api, Receiver
from tests.integration.loadtesting.runner.scripts import SHARED_ITERATIONS, TWO_SCENARIOS, spec
from tests.waiting import until


async def run(runner: LocalRunner, *specs: GeneratorSpec) -> None:
    for one in specs:
        await runner.start(one)
    for one in specs:
        await until(lambda name=one.name: ended(runner, name))  # type: ignore[misc]
        assert await runner.poll(one.name) == Exited(0), await runner.console(one.name)


async def ended(runner: LocalRunner, name: str) -> bool:
    return isinstance(await runner.poll(name), Exited | Lost)


def fold(receiver: Receiver, generators: int = 1) -> RunResults:
    fold = RunFold(min(row.start_unix_nano for row in receiver.rows), generators)
    for row in receiver.rows:
        fold.add(row)
    return fold.results()


async def test_figures_of_a_real_run(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    await run(runner, spec(TWO_SCENARIOS, Exporter(receiver.address, "to,ken="), api=api.url))

    results = fold(receiver)
    assert receiver.authorizations == {"Bearer to,ken="}
    assert {row.instance for row in receiver.rows} == {"run-1"}
    # The first export comes within the first second, later ones a second apart.
    assert all(row.time_unix_nano - row.start_unix_nano < 1.5e9 for row in receiver.rows)
    assert results.total.requests == api.calls
    good, bad = sorted(results.scenarios, key=lambda s: s.stats.failed_requests)
    assert (good.name, bad.name) == ("good", "bad")
    assert good.stats.failed_requests == 0
    assert bad.stats.failed_requests == bad.stats.requests > 0
    assert [e.name for e in results.endpoints] == ["GET /bad", "GET /ok"]
    assert results.iterations == results.total.requests
    # One virtual user makes at most 10 of the 50 calls a second.
    assert results.dropped_iterations > 50
    assert (results.checks_passed, results.checks_failed) == (good.stats.requests, bad.stats.requests)
    assert results.received_bytes > 0
    assert results.sent_bytes > 0
    assert results.incomplete_reason == ""
    assert results.vus is not None
    assert results.vus.max == 3
    assert results.total.response_time is not None
    assert results.total.tps is not None
    assert results.total.tps.max < api.calls


async def test_windows_of_a_real_run(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    await run(runner, spec(TWO_SCENARIOS, Exporter(receiver.address, "t"), api=api.url))

    assembler = WindowAssembler(origin=0)
    windows = list(assembler.feed([(str(i), row) for i, row in enumerate(receiver.rows)], now=0))

    assert len(windows) == len(receiver.rows) >= 3
    assert windows[-1].total_requests == api.calls
    assert not any(window.gap_seconds for window in windows)
    assert windows[0].total.requests > 0
    assert windows[-1].total.requests == 0  # the wait at its end
    assert windows[-1].vus == 0


async def test_the_receiver_may_be_a_unix_socket(
    api: Api, receiver: Receiver, runner: LocalRunner, tmp_path: Path
) -> None:
    await run(runner, spec(SHARED_ITERATIONS, Exporter(f"unix://{tmp_path}/otlp.sock", "t"), api=api.url))

    assert receiver.requests == 2001


def raw_durations(lines: Iterable[str]) -> list[float]:
    """Every response time that k6 measured, from its JSON output."""
    points = (json.loads(line) for line in lines if '"http_req_duration"' in line)
    return sorted(point["data"]["value"] for point in points if point["type"] == "Point")


def quantile(ordered: list[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


async def test_two_parts_of_a_load_are_exact_together(
    api: Api, receiver: Receiver, runner: LocalRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A second output of k6 itself is the judge: every sample, in a file of each part's folder.
    wrapper = tmp_path / "k6"
    k6 = (await LocalRunner(tmp_path)._find()).path
    wrapper.write_text(f'#!/bin/sh\nif [ "$1" = run ]; then set -- "$@" --out=json=raw.json; fi\nexec "{k6}" "$@"\n')
    wrapper.chmod(0o700)
    runner = LocalRunner(tmp_path / "generators", k6=wrapper)
    specs = [
        spec(SHARED_ITERATIONS, Exporter(receiver.address, "t"), api=api.url, name=f"part-{i}", segment=segment)
        for i, segment in enumerate(segments(2))
    ]

    await run(runner, *specs)

    results = fold(receiver, generators=2)
    values: list[float] = []
    for one in specs:
        with (tmp_path / "generators" / one.name / "raw.json").open() as lines:
            values += raw_durations(lines)
    values.sort()
    found = results.total.response_time
    assert found is not None
    assert {row.instance for row in receiver.rows} == {"part-0", "part-1"}
    assert results.total.requests == results.iterations == api.calls == len(values) == 2001
    assert (found.min_ms, found.max_ms) == (values[0], values[-1])
    assert found.avg_ms == pytest.approx(sum(values) / len(values))
    for share, figure in ((0.5, found.p50_ms), (0.9, found.p90_ms), (0.95, found.p95_ms), (0.99, found.p99_ms)):
        assert figure == pytest.approx(quantile(values, share), rel=results.percentile_error_ratio)


async def test_only_what_is_wanted_is_asked_of_k6(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    """The names that `metrics.otlp` looks for are those that this k6 sends."""
    await run(runner, spec(TWO_SCENARIOS, Exporter(receiver.address, "t"), api=api.url))

    assert {"http_reqs", "http_req_duration", "vus", "iterations", "dropped_iterations"} < receiver.names
    assert {"data_sent", "data_received"} < receiver.names
    assert any(name.startswith("http_req_failed") for name in receiver.names)
    assert any(name.startswith("checks") for name in receiver.names)
