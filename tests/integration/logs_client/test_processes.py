"""Processes that are killed, end, fork, and share a spool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.logs_client.conftest import App, Shippers, StubServer

RunApp = Callable[..., App]
FORK_SUPPORT = pytest.mark.parametrize("support", ["0", "1"])


@pytest.mark.parametrize("lost", [False, True], ids=["while unreachable", "as answers are lost"])
def test_what_a_killed_process_has_spooled_is_shipped_once(
    stub: StubServer, shippers: Shippers, run_app: RunApp, lost: bool
) -> None:
    """Many processes share the spool and are killed amid their writing; the next one ships all of it."""
    if lost:
        stub.behave(status="UNAVAILABLE", after_storing=True)
        stub.start()
    apps = [run_app("log_forever", f"app{number}") for number in range(3)]
    safe = {}
    for number, app in enumerate(apps):
        while (count := int(app.line() or 0)) < 2000:
            pass
        safe[f"app{number}"] = count
        app.kill()
    stub.behave()
    if not lost:
        stub.start()
    shipper = shippers.make(service="app")
    shipper.log("info", "next")
    assert shipper.close(60)
    stored = stub.stored
    assert set(stored.values()) == {1}
    for name, count in safe.items():
        numbers = sorted(int(message.partition("-")[2]) for message in stored if message.startswith(name))
        assert numbers == list(range(len(numbers))), "in order and without a gap"
        assert len(numbers) >= count, "what was safe is there"
    assert not list(shippers.spool.rglob("*.seg"))


def test_a_process_that_is_killed_twice_as_it_replays(stub: StubServer, shippers: Shippers, run_app: RunApp) -> None:
    app = run_app("log_forever", "first")
    while (safe := int(app.line() or 0)) < 5000:
        pass
    app.kill()
    stub.start()
    stub.behave(hold=True)
    for name in ("second", "third"):
        again = run_app("log_forever", name)
        again.line()
        again.kill()
    stub.behave()
    shipper = shippers.make(service="app")
    shipper.log("info", "next")
    assert shipper.close(60)
    assert set(stub.stored.values()) == {1}
    assert len([message for message in stub.stored if message.startswith("first-")]) >= safe


@pytest.mark.parametrize("reachable", [True, False])
def test_all_is_flushed_at_exit(stub: StubServer, shippers: Shippers, run_app: RunApp, reachable: bool) -> None:
    if reachable:
        stub.start()
    run_app("exit_without_close", "1500").end()
    if not reachable:
        stub.start()
        shipper = shippers.make(service="app")
        shipper.log("info", "next")
        assert shipper.close(60)
    assert {message: 1 for message in stub.stored if message != "next"} == {f"n{n}": 1 for n in range(1500)}
    assert set(stub.stored.values()) == {1}


@FORK_SUPPORT
def test_parent_and_children_ship_after_a_fork(server: StubServer, run_app: RunApp, support: str) -> None:
    out, _ = run_app("fork", "5", GRPC_ENABLE_FORK_SUPPORT=support).end()
    assert out == f"statuses {[0] * 5} acknowledged 505\n"
    assert server.stored == {
        **{f"before-{number}": 1 for number in range(500)},
        **{f"parent-{child}": 1 for child in range(5)},
        **{f"child{child}-{number}": 1 for child in range(5) for number in range(200)},
    }
    prefixes = {batch["batch"].partition("-")[0] for batch in server.journal}
    assert len(prefixes) == 6, "each process has ids of its own"


@FORK_SUPPORT
def test_no_thread_of_grpc_is_there_at_a_fork(server: StubServer, run_app: RunApp, support: str) -> None:
    out, _ = run_app("threads_at_fork", GRPC_ENABLE_FORK_SUPPORT=support).end()
    assert out == f"{[2] * 5}\n"


@FORK_SUPPORT
def test_forks_while_threads_log(server: StubServer, run_app: RunApp, support: str) -> None:
    out, _ = run_app("fork_threads", GRPC_ENABLE_FORK_SUPPORT=support).end()
    accepted = int(out.split()[-1])
    assert out.startswith(f"statuses {[0] * 10} ")
    assert sum(server.stored.values()) == accepted + 10
    assert set(server.stored.values()) == {1}


def test_one_that_was_made_before_the_fork(server: StubServer, run_app: RunApp) -> None:
    run_app("made_before_fork").end()
    assert server.stored == {"child0": 1, "child1": 1, "child2": 1}
    assert len({batch["batch"] for batch in server.journal}) == 3


def test_one_that_nobody_holds_is_flushed_at_exit(server: StubServer, run_app: RunApp) -> None:
    run_app("forgotten").end()
    assert server.stored == {"forgotten": 1}


def test_parent_and_child_spool_apart(stub: StubServer, shippers: Shippers, run_app: RunApp) -> None:
    run_app("fork_unreachable").end()
    assert len(list(shippers.spool.rglob("*.seg"))) == 2
    stub.start()
    shipper = shippers.make(service="app")
    shipper.log("info", "next")
    assert shipper.close(60)
    assert stub.stored == {"parent": 1, "parent again": 1, "child": 1, "next": 1}


def test_children_of_multiprocessing_flush_at_their_end(server: StubServer, run_app: RunApp) -> None:
    out, _ = run_app("multiprocess").end()
    assert out == f"{[0] * 4}\n"
    assert server.stored == {"parent": 1, **{f"child{child}": 1 for child in range(4)}}


def test_a_living_process_keeps_its_folder(
    stub: StubServer, shippers: Shippers, run_app: RunApp, tmp_path: Path
) -> None:
    app = run_app("log_forever", "living")
    while int(app.line() or 0) < 500:
        pass
    other = shippers.make(service="app")
    other.log("info", "other")
    assert not other.close(1)
    assert other.stats().recovered == 0
    assert len({segment.parent for segment in shippers.spool.rglob("*.seg")}) == 2
    app.kill()
