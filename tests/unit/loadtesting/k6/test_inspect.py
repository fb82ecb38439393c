"""k6's judgement of scripts: what it accepts, and its messages without the machine's paths."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from opsplane_server.errors import FailedPrecondition, InvalidArgument
from opsplane_server.loadtesting.k6.inspect import inspect, parse_duration

from tests.unit.loadtesting.k6.k6_binary import K6


def written(folder: Path, script: str) -> Path:
    path = folder / "script.js"
    path.write_text(script)
    return path


async def test_a_good_script(tmp_path: Path) -> None:
    script = (
        "export const options = { vus: 7, duration: '1m30s', teardownTimeout: '2s' }; export default function () {}"
    )
    found = await inspect(K6, written(tmp_path, script))
    assert (found.max_vus, found.total_duration) == (7, timedelta(seconds=120))
    assert found.teardown_timeout == timedelta(seconds=2)
    assert found.options["vus"] == 7


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("export default function () { let x = ; }", "script.js: Line 1:38 Unexpected token ;"),
        ("throw new Error('boom \"x\"')", 'Error: boom "x"'),
        ("export function f() {}", "function 'default' not found in exports"),
        ("export const options = { scenarios: { a: { executor: 'nope' } } }", "unknown executor type 'nope'"),
        ("import x from './missing.js'; export default x", "missing.js"),
        ("export const options = { thresholds: { http_reqs: ['p(95'] } }; export default function () {}", "p(95"),
        ("", "no exported functions in script"),
        ("console.error('noise'); throw new Error('boom')", "Error: boom"),
    ],
)
async def test_a_bad_script_is_refused_with_what_k6_says(tmp_path: Path, script: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await inspect(K6, written(tmp_path, script), field="run.script")
    (violation,) = caught.value.violations
    assert violation.field == "run.script"
    assert problem in violation.description
    assert str(tmp_path) not in violation.description
    assert caught.value.reason == "SCRIPT_ERROR"


async def test_init_code_that_does_not_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"did not end within 0\.5 s"):
        await inspect(K6, written(tmp_path, "while (true) {}"), timeout=timedelta(seconds=0.5))
    assert [child for child in psutil.Process().children() if child.name() == "k6"] == []


async def test_init_code_that_writes_much_is_read_to_its_end(tmp_path: Path) -> None:
    script = "const x = 'x'.repeat(10000); for (let i = 0; i < 100; i++) console.log(x); throw new Error('the end')"
    with pytest.raises(InvalidArgument, match="the end") as caught:
        await inspect(K6, written(tmp_path, script))
    assert "xxx" not in str(caught.value)


async def test_init_code_sees_no_secrets_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "DATABASE_PASSWORD", "s3cret")
    script = "if (__ENV.DATABASE_PASSWORD) { throw new Error(__ENV.DATABASE_PASSWORD) } export default function () {}"
    await inspect(K6, written(tmp_path, script))


async def test_a_k6_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await inspect(tmp_path / "k6", written(tmp_path, ""))
    assert caught.value.reason == "K6_MISSING"


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("1h2m3s", 3723), ("1m0.5s", 60.5), ("100ms", 0.1), ("10µs", 0.00001), ("", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)
