import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from opsplane_server.errors import FailedPrecondition, NotFound
from opsplane_server.loadtesting.runners.endings import describe
from opsplane_server.loadtesting.runners.local import LocalRunner
from opsplane_server.loadtesting.runners.port import Exited, Exporter, GeneratorSpec, Lost, Running

from tests.integration.loadtesting.runner.conftest import Api, Receiver
from tests.integration.loadtesting.runner.scripts import constant, spec
from tests.waiting import until

REPOSITORY = Path(__file__).parents[4]


async def end(runner: LocalRunner, name: str = "run-1") -> Exited | Lost:
    async def has_ended() -> bool:
        return not isinstance(await runner.poll(name), Running)

    await until(has_ended)
    status = await runner.poll(name)
    assert not isinstance(status, Running)
    return status


def folder_of(runner: LocalRunner, name: str = "run-1") -> Path:
    return runner._folder / name


def processes(runner: LocalRunner, name: str = "run-1") -> tuple[psutil.Process, psutil.Process]:
    """The launcher and its k6."""
    launcher = psutil.Process(int((folder_of(runner, name) / "alive").read_text()))
    (k6,) = launcher.children()
    return launcher, k6


def assert_complete(receiver: Receiver, api: Api, vus: int = 3) -> None:
    """All calls were exported; those under way when k6 was stopped it does not count itself."""
    assert api.calls - vus <= receiver.requests <= api.calls


async def cpu_time_is_known(runner: LocalRunner) -> bool:
    status = await runner.poll("run-1")
    return isinstance(status, Running) and bool(status.cpu_seconds) and status.cpus > 0


async def test_a_load_runs_to_its_end(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    await runner.start(spec(constant("1s"), Exporter(receiver.address, "t"), api=api.url))
    _, k6 = processes(runner)
    pid = k6.pid

    assert await runner.poll("run-1") == Running()
    await until(lambda: cpu_time_is_known(runner))
    assert os.getsid(pid) != os.getsid(0)
    assert "t" not in k6.cmdline()
    assert stat.S_IMODE(folder_of(runner).stat().st_mode) == 0o700
    assert await end(runner) == Exited(0)
    assert receiver.requests == api.calls > 0
    assert not psutil.pid_exists(pid)
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
    assert await runner.console("run-1") == []


async def test_a_start_happens_once(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    one = spec(constant("20s", vus=1), Exporter(receiver.address, "t"), api=api.url)
    others = [LocalRunner(runner._folder) for _ in range(4)]

    await asyncio.gather(*(other.start(one) for other in others))
    launcher, _ = processes(runner)
    await until(lambda: api.calls > 0)
    await runner.start(one)

    assert processes(runner)[0] == launcher
    await runner.stop("run-1")
    await runner.start(one)
    assert await runner.poll("run-1") == Exited(105)


async def test_a_stopped_load_has_sent_all_its_metrics(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    await runner.start(spec(constant("60s"), Exporter(receiver.address, "t"), api=api.url))
    await until(lambda: receiver.requests > 0)

    status = await runner.stop("run-1")

    assert status == Exited(105)
    assert describe(status, await runner.console("run-1")).reason == "ABORTED"
    assert_complete(receiver, api)
    assert await runner.stop("run-1") == Exited(105)


async def test_a_load_that_does_not_stop_is_killed(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    script = constant("60s").replace("sleep(1.2)", "sleep(60)")
    await runner.start(spec(script, Exporter(receiver.address, "t"), api=api.url))
    await until(lambda: receiver.requests > 0)

    status = await runner.stop("run-1", grace=timedelta(seconds=0.3))

    assert status == Exited(-signal.SIGKILL)
    assert describe(status, []).reason == "GENERATOR_KILLED"


async def test_a_stop_during_the_start_is_not_lost(receiver: Receiver, runner: LocalRunner) -> None:
    script = "const until = Date.now() + 60000; while (Date.now() < until) {}\nexport default function () {}"
    await runner.start(spec(script, Exporter(receiver.address, "t")))

    assert await runner.stop("run-1") in (Exited(105), Exited(-signal.SIGINT), Exited(-signal.SIGKILL))


@pytest.mark.parametrize(
    ("script", "code", "reason", "words"),
    [
        ("export default function( {", 107, "SCRIPT_ERROR", "main.js: Line 1"),
        ("throw new Error('boom'); export default function () {}", 107, "SCRIPT_ERROR", "boom"),
        ("import x from 'k6/x/missing'; export default function () {}", 107, "SCRIPT_ERROR", "k6/x/missing"),
        ("export const options = { scenarios: { a: {} } }; export default function () {}", 104, "SCRIPT_ERROR", ""),
        (
            "import exec from 'k6/execution'; export default function () { exec.test.abort('enough') }",
            108,
            "SCRIPT_ABORTED",
            "enough",
        ),
    ],
)
async def test_scripts_that_fail_say_why(
    receiver: Receiver, runner: LocalRunner, script: str, code: int, reason: str, words: str
) -> None:
    await runner.start(spec(script, Exporter(receiver.address, "t")))

    status = await end(runner)
    ending = describe(status, await runner.console("run-1"))

    assert status == Exited(code)
    assert ending.reason == reason
    assert words in ending.message
    assert str(runner._folder) not in ending.message


async def test_crossed_thresholds(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    script = constant("1s") + "\noptions.thresholds = { http_reqs: ['count<1'] };"
    exporter = Exporter(receiver.address, "t")
    await runner.start(spec(script, exporter, api=api.url, thresholds=True))
    await runner.start(spec(script, exporter, api=api.url, name="run-2"))

    assert describe(await end(runner), []).reason == "THRESHOLDS_CROSSED"
    assert await end(runner, "run-2") == Exited(0)


async def test_a_target_that_refuses(receiver: Receiver, runner: LocalRunner) -> None:
    await runner.start(spec(constant("1s", vus=1), Exporter(receiver.address, "t"), api="http://127.0.0.1:1"))

    assert await end(runner) == Exited(0)
    failed = sum(series.failed for row in receiver.rows for series in row.series)
    assert failed == receiver.requests > 0
    assert any("connection refused" in line.message for line in await runner.console("run-1"))


async def test_a_chatty_script_does_not_fill_the_disk(receiver: Receiver, tmp_path: Path) -> None:
    runner = LocalRunner(tmp_path / "generators", max_console_bytes=200_000)
    script = """
        export const options = { iterations: 3000 };
        export default function () { console.log("x".repeat(1000)) }
        export function teardown() { console.error("last words") }
    """
    await runner.start(spec(script, Exporter(receiver.address, "t")))

    assert await end(runner) == Exited(0)
    sizes = [path.stat().st_size for path in folder_of(runner).glob("console*.log")]
    assert 50_000 < sum(sizes) <= 200_000
    lines = await runner.console("run-1")
    assert (lines[-1].level, lines[-1].message) == ("ERROR", "last words")
    assert 10 < len(lines) < 65
    await runner.clean_up("run-1")


async def test_a_missing_k6(tmp_path: Path) -> None:
    runner = LocalRunner(tmp_path, k6=tmp_path / "k6")

    with pytest.raises(FailedPrecondition) as refusal:
        await runner.start(spec(constant("1s"), Exporter("127.0.0.1:1", "t")))

    assert refusal.value.reason == "K6_MISSING"
    with pytest.raises(NotFound):
        await runner.poll("run-1")


async def test_a_k6_that_vanished_may_come_back(api: Api, receiver: Receiver, tmp_path: Path) -> None:
    k6 = tmp_path / "k6"
    real = (await LocalRunner(tmp_path)._find()).path
    k6.symlink_to(real)
    runner = LocalRunner(tmp_path / "generators", k6=k6)
    one = spec(constant("1s"), Exporter(receiver.address, "t"), api=api.url)
    await runner.version()
    k6.unlink()

    with pytest.raises(FailedPrecondition, match="No such file"):
        await runner.start(one)
    k6.symlink_to(real)
    await runner.start(one)

    assert await end(runner) == Exited(0)


async def test_what_was_not_started_is_not_found(runner: LocalRunner) -> None:
    for call in (runner.poll, runner.stop, runner.console):
        with pytest.raises(NotFound):
            await call("run-1")
    await runner.clean_up("run-1")
    with pytest.raises(ValueError, match="no name"):
        await runner.poll("../run-1")


@pytest.mark.parametrize("name", ["../main.js", "exit", "alive", "a/b.js", ".hidden", ""])
async def test_files_of_a_script_stay_in_its_folder(runner: LocalRunner, name: str) -> None:
    one = GeneratorSpec("run-1", {name: ""}, "main.js", "run-1", Exporter("127.0.0.1:1", "t"))

    with pytest.raises(ValueError, match="no name of a file"):
        await runner.start(one)


async def test_cleaning_up_ends_what_runs(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    await runner.start(spec(constant("60s"), Exporter(receiver.address, "t"), api=api.url))
    _, k6 = processes(runner)

    await runner.clean_up("run-1")

    assert not k6.is_running()
    assert {path.name for path in folder_of(runner).iterdir()} == {"started", "removed"}
    for call in (runner.poll, runner.stop, runner.console):
        with pytest.raises(NotFound):
            await call("run-1")


@pytest.mark.parametrize("ran", [True, False])
async def test_what_was_cleaned_up_does_not_come_back(
    api: Api, receiver: Receiver, runner: LocalRunner, ran: bool
) -> None:
    """A process that slept may wake up just before it starts a load generator of a run that has ended since."""
    one = spec(constant("60s"), Exporter(receiver.address, "t"), api=api.url)
    if ran:
        await runner.start(one)
    await runner.clean_up("run-1")
    calls = api.calls

    await runner.start(one)

    with pytest.raises(NotFound):
        await runner.poll("run-1")
    assert api.calls == calls
    await runner.clean_up("run-1")


async def test_marks_of_long_ago_are_removed(runner: LocalRunner) -> None:
    for name in ("old", "new"):
        await runner.clean_up(name)
    os.utime(folder_of(runner, "old") / "removed", (0, 0))

    await runner.clean_up("newest")

    assert {path.name for path in runner._folder.iterdir()} == {"new", "newest"}


# --- the server dies ---


@asynccontextmanager
async def server(runner: LocalRunner, api: Api, receiver: Receiver, duration: str) -> AsyncIterator[None]:
    """A process that has started `run-1` in the folder of the runner; it is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.loadtesting.runner.starter"),
        *(str(runner._folder), api.url, receiver.address, duration),
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        await until(lambda: api.calls > 0)
        yield
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_load_outlives_the_server(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    async with server(runner, api, receiver, "2s"):
        _, k6 = processes(runner)

    assert k6.is_running()
    assert await runner.poll("run-1") == Running()
    assert await end(runner) == Exited(0)
    assert receiver.requests == api.calls > 0


async def test_a_load_of_a_dead_server_can_be_stopped(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    async with server(runner, api, receiver, "60s"):
        await until(lambda: receiver.requests > 0)

    assert await runner.stop("run-1") == Exited(105)
    assert_complete(receiver, api)


async def test_an_exit_that_nobody_saw_is_not_lost(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    async with server(runner, api, receiver, "60s"):
        launcher, k6 = processes(runner)
    k6.kill()
    await until(lambda: not launcher.is_running() or launcher.status() == psutil.STATUS_ZOMBIE)

    assert await runner.poll("run-1") == Exited(-signal.SIGKILL)


async def test_without_its_launcher_a_load_is_ended(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    await runner.start(spec(constant("60s"), Exporter(receiver.address, "t"), api=api.url))
    launcher, k6 = processes(runner)
    launcher.kill()

    status = await end(runner)

    assert status == Lost()
    await until(lambda: not k6.is_running() or k6.status() == psutil.STATUS_ZOMBIE)
    assert await runner.stop("run-1") == Lost()


async def test_a_process_with_the_number_of_a_dead_launcher_is_left_alone(runner: LocalRunner) -> None:
    other = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    try:
        folder = folder_of(runner)
        folder.mkdir(parents=True)
        (folder / "alive").write_text(str(other.pid))
        (folder / "started").touch()

        assert await runner.poll("run-1") == Lost()
        assert await runner.stop("run-1") == Lost()
        await runner.clean_up("run-1")

        assert psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE
    finally:
        other.kill()
        await other.wait()


async def test_signals_to_all_do_not_lose_the_exit(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    """As a service manager stops a service: every process of it is told."""
    await runner.start(spec(constant("60s"), Exporter(receiver.address, "t"), api=api.url))
    await until(lambda: receiver.requests > 0)
    launcher, _ = processes(runner)

    os.killpg(launcher.pid, signal.SIGTERM)

    assert await end(runner) == Exited(105)


async def test_looking_does_not_hinder_a_start(api: Api, receiver: Receiver, runner: LocalRunner) -> None:
    """Those who look take the launcher's lock for a moment."""
    looking = True

    async def look() -> None:
        while looking:
            with suppress(NotFound):
                await LocalRunner(runner._folder).poll("run-1")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(look())
        await runner.start(spec(constant("1s"), Exporter(receiver.address, "t"), api=api.url))
        status = await end(runner)
        looking = False

    assert status == Exited(0)
