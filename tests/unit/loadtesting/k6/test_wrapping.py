"""Users' own scripts run whole inside the wrapper, which ends with the wait for k6's last metrics."""

from __future__ import annotations

import asyncio
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from opsplane_server.loadtesting.k6.inspect import inspect
from opsplane_server.loadtesting.k6.wrapping import wrap

from tests.unit.loadtesting.k6.k6_binary import K6

ONCE = "executor: 'per-vu-iterations', vus: 1, iterations: 1"


def run(folder: Path, script: str, teardown_timeout: timedelta | None = None) -> tuple[int, list[str]]:
    """Runs a user's script in the wrapper; returns k6's exit status and what the script wrote."""
    (folder / "script.js").write_text(script)
    (folder / "main.js").write_text(wrap("script.js", teardown_timeout=teardown_timeout))
    arguments: list[str | Path] = [
        K6,
        "run",
        "--quiet",
        "--no-color",
        "--log-format",
        "raw",
        "--console-output",
        "console",
        "main.js",
    ]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, check=False, timeout=60)
    console = folder / "console"
    return done.returncode, console.read_text().splitlines() if console.exists() else []


def test_every_kind_of_function_is_called(tmp_path: Path) -> None:
    (tmp_path / "helper.js").write_text("export function greet(x) { console.log('named', x) }")
    script = f"""
import {{ greet }} from './helper.js';
export const options = {{ scenarios: {{
  a: {{ {ONCE}, exec: 'named' }}, b: {{ {ONCE}, startTime: '100ms' }} }} }};
export function setup() {{ return {{ x: 1 }} }}
export async function named(data) {{ await Promise.resolve(); greet(data.x) }}
export default async function (data) {{ await Promise.resolve(); console.log('default', data.x) }}
export async function teardown(data) {{ await Promise.resolve(); console.log('teardown', data.x) }}
export function handleSummary() {{ console.log('summary'); return {{}} }}
"""
    assert run(tmp_path, script) == (0, ["named 1", "default 1", "teardown 1", "summary"])


@pytest.mark.parametrize(
    "script",
    [
        "export default function () { console.log('called') }",
        f"export const options = {{ scenarios: {{ a: {{ {ONCE}, exec: 'f' }} }} }};"
        "export function f() { console.log('called') }",
        "module.exports.options = { vus: 1 }; module.exports.default = function () { console.log('called') }",
    ],
    ids=["only a default", "no default", "CommonJS"],
)
def test_scripts_of_every_form_run(tmp_path: Path, script: str) -> None:
    assert run(tmp_path, script) == (0, ["called"])


def test_the_wait_follows_a_teardown_that_fails(tmp_path: Path) -> None:
    script = "export default function () {} export function teardown() { throw new Error('boom') }"
    (tmp_path / "script.js").write_text(script)
    main = wrap("script.js").replace("sleep(1.2);", "sleep(1.2); console.log('waited');")
    (tmp_path / "main.js").write_text(main)
    done = subprocess.run([K6, "run", "--quiet", "main.js"], cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert done.returncode != 0
    assert b"boom" in done.stderr
    assert b"waited" in done.stderr


def test_a_short_limit_of_the_teardown_leaves_room_for_the_wait(tmp_path: Path) -> None:
    script = """
export const options = { vus: 1, iterations: 1, teardownTimeout: '500ms' };
export default function () {}
export function teardown() { console.log('teardown') }
"""
    (tmp_path / "script.js").write_text(script)
    own = asyncio.run(inspect(K6, tmp_path / "script.js"))
    assert own.teardown_timeout == timedelta(milliseconds=500)
    assert run(tmp_path, script, own.teardown_timeout) == (0, ["teardown"])


async def test_options_are_the_scripts_own(tmp_path: Path) -> None:
    script = "export const options = { vus: 3, duration: '7s', tags: { a: 'b' } }; export default function () {}"
    (tmp_path / "script.js").write_text(script)
    (tmp_path / "main.js").write_text(wrap("script.js"))
    own = await inspect(K6, tmp_path / "script.js")
    wrapped = await inspect(K6, tmp_path / "main.js")
    assert wrapped == own
    (tmp_path / "main.js").write_text(wrap("script.js", teardown_timeout=timedelta(seconds=5)))
    longer = await inspect(K6, tmp_path / "main.js")
    assert longer.options == {**own.options, "teardownTimeout": longer.options["teardownTimeout"]}
    assert longer.teardown_timeout == timedelta(seconds=7.2)
