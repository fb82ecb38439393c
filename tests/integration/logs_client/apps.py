"""Programs that log, for tests that kill and fork them: `python -m ...apps NAME ADDRESS SPOOL [ARGUMENTS]`."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
import threading
import time

# Handlers run last to first before a fork: this one after that of the shipper.
_threads_at_fork: list[int] = []
os.register_at_fork(before=lambda: _threads_at_fork.append(len(os.listdir("/proc/self/task"))))

from opsplane.logs import OpsplaneHandler, Shipper  # noqa: E402


def make(address: str, spool: str, **settings: float) -> Shipper:
    return Shipper(address, service="app", spool=spool, linger_seconds=0.005, **settings)  # type: ignore[arg-type]


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def log_forever(address: str, spool: str, name: str) -> None:
    """Logs numbered records until it is killed; says how many are safe: acknowledged or spooled."""
    shipper = make(address, spool)
    number = 0
    while True:
        for _ in range(50):
            shipper.log("info", f"{name}-{number}", wait=10)
            number += 1
        stats = shipper.stats()
        say(str(max(stats.acknowledged, stats.spilled)))


def exit_without_close(address: str, spool: str, count: str) -> None:
    """Logs and ends."""
    handler = OpsplaneHandler(make(address, spool))
    logger = logging.getLogger("app")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    for number in range(int(count)):
        logger.info("n%d", number)


def fork(address: str, spool: str, children: str) -> None:
    """Logs, forks while the shipper works, and logs in parent and children."""
    shipper = make(address, spool)
    for number in range(500):
        shipper.log("info", f"before-{number}")
    pids = []
    for child in range(int(children)):
        shipper.log("info", f"parent-{child}")
        pid = os.fork()
        if pid == 0:
            for number in range(200):
                shipper.log("info", f"child{child}-{number}")
            ended = shipper.close(30)
            os._exit(0 if ended else 1)
        pids.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    assert shipper.flush(30), shipper.stats()
    say(f"statuses {statuses} acknowledged {shipper.stats().acknowledged}")


def made_before_fork(address: str, spool: str) -> None:
    """The shipper is made by the parent and used by the children alone, as servers do that load the program first."""
    shipper = make(address, spool)
    pids = []
    for child in range(3):
        pid = os.fork()
        if pid == 0:
            shipper.log("info", f"child{child}")
            os._exit(0 if shipper.close(30) else 1)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]


def forgotten(address: str, spool: str) -> None:
    """Logs and lets go of the shipper."""
    make(address, spool).log("info", "forgotten")
    gc.collect()


def fork_unreachable(address: str, spool: str) -> None:
    """Forks while there is no server: each has a spool of its own."""
    shipper = make(address, spool)
    shipper.log("info", "parent")
    shipper.flush(0.3)
    pid = os.fork()
    shipper.log("info", "parent again" if pid else "child")
    if pid == 0:
        shipper.close(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    shipper.close(1)


def fork_threads(address: str, spool: str) -> None:
    """Forks while many threads log."""
    shipper = make(address, spool)
    stop = threading.Event()

    def log(name: int) -> None:
        number = 0
        while not stop.is_set():
            shipper.log("info", f"{name}-{number}", wait=10)
            number += 1
            time.sleep(0.001)

    threads = [threading.Thread(target=log, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    statuses = []
    for child in range(10):
        pid = os.fork()
        if pid == 0:
            shipper.log("info", f"child-{child}")
            os._exit(0 if shipper.close(30) else 1)
        statuses.append(os.waitpid(pid, 0)[1])
    stop.set()
    for thread in threads:
        thread.join()
    assert shipper.close(30)
    say(f"statuses {statuses} accepted {shipper.stats().accepted}")


def _work(child: int) -> None:
    logging.getLogger("app").info("child%d", child)


def multiprocess(address: str, spool: str) -> None:
    """Children of multiprocessing log and end, without anything said to the shipper."""
    logger = logging.getLogger("app")
    logger.addHandler(OpsplaneHandler(make(address, spool)))
    logger.setLevel(logging.INFO)
    logger.info("parent")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_work, args=(child,)) for child in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    say(str([process.exitcode for process in processes]))


def threads_at_fork(address: str, spool: str) -> None:
    """How many threads the process has as it forks: itself and the shipper's own, but none of gRPC."""
    shipper = make(address, spool)
    for number in range(5):
        shipper.log("info", f"n{number}")
        assert shipper.flush(30)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    say(str(_threads_at_fork))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
