"""Records that are sent, acknowledged, rejected or refused by a server that is there."""

from __future__ import annotations

import logging
import threading

import pytest
from opsplane.logingest.v1 import records_pb2
from opsplane.logs import OpsplaneHandler, ProblemKind

from tests.integration.logs_client.conftest import Shippers, StubServer
from tests.waiting import until


def test_every_record_is_acknowledged_once(server: StubServer, shippers: Shippers) -> None:
    shipper = shippers.make()
    for number in range(5000):
        assert shipper.log("info", f"n{number}", number=number)
    assert shipper.flush(30)
    stats = shipper.stats()
    assert (stats.accepted, stats.acknowledged, stats.pending, stats.dropped) == (5000, 5000, 0, 0)
    assert stats.connected
    assert stats.memory_bytes == 0
    assert server.stored == {f"n{number}": 1 for number in range(5000)}
    ids = [batch["batch"] for batch in server.journal]
    assert len(set(ids)) == len(ids) >= 5
    assert shipper.close(10)
    assert shippers.problems == []
    assert not list(shippers.spool.rglob("*")), "nothing is written when all goes well"


async def test_a_record_comes_without_flush(server: StubServer, shippers: Shippers) -> None:
    shippers.make().log("info", "alone")
    await until(lambda: server.stored["alone"] == 1)


def test_what_a_record_does_not_say_is_filled_in(server: StubServer, shippers: Shippers) -> None:
    shipper = shippers.make(environment="prod", host="h1", service_version="2", client_id="me/1", token="secret-1")
    given = records_pb2.LogRecord(level=records_pb2.LEVEL_INFO, message="m", host="other")
    assert shipper.send(given)
    assert not given.service, "the record of the caller stays as it is"
    assert shipper.flush(10)
    (batch,) = server.journal
    assert (batch["client"], batch["token"]) == ("me/1", "Bearer secret-1")


@pytest.mark.parametrize("settings", [{"gzip": True}, {"durability": "fast"}, {"window": 1}, {"spool": None}])
def test_settings(server: StubServer, shippers: Shippers, settings: dict[str, object]) -> None:
    shipper = shippers.make(**settings)
    for number in range(2500):
        shipper.log("info", str(number))
    assert shipper.flush(30)
    assert sum(server.stored.values()) == 2500


def test_rejected_records_are_told(server: StubServer, shippers: Shippers) -> None:
    server.behave(reject="bad")
    rejected: list[tuple[str, str]] = []
    shipper = shippers.make(on_rejected=lambda record, why: rejected.append((record.message, why.field)))
    for message in ("good 1", "bad 1", "good 2", "bad 2"):
        shipper.log("info", message)
    assert shipper.flush(10)
    assert rejected == [("bad 1", "message"), ("bad 2", "message")]
    assert (shipper.stats().acknowledged, shipper.stats().rejected) == (2, 2)
    (told,) = shippers.told(ProblemKind.REJECTED)
    assert "2 of 4" in told
    assert "too long" in told


def test_a_refused_batch_is_told_record_by_record(server: StubServer, shippers: Shippers) -> None:
    server.behave(refuse=True)
    rejected: list[str] = []
    shipper = shippers.make(on_rejected=lambda record, why: rejected.append(record.message))
    shipper.log("info", "a")
    shipper.log("info", "b")
    assert shipper.flush(10)
    assert rejected == ["a", "b"]
    assert shipper.stats().rejected == 2


def test_a_callback_that_fails_or_logs_does_not_stop_shipping(server: StubServer, shippers: Shippers) -> None:
    server.behave(reject="bad")
    logger = logging.Logger("app")

    def failing(record: records_pb2.LogRecord, why: records_pb2.RejectedRecord) -> None:
        logger.error("bad: rejected %s", record.message)
        raise RuntimeError("of the callback")

    shipper = shippers.make(on_rejected=failing)
    logger.addHandler(OpsplaneHandler(shipper))
    logger.error("bad one")
    assert shipper.flush(10)
    logger.error("good one")
    assert shipper.flush(10)
    assert server.stored == {"bad one": 1, "good one": 1}, "what is logged about shipping is not shipped"
    assert "of the callback" in shippers.told(ProblemKind.INTERNAL)[0]


def test_many_threads(server: StubServer, shippers: Shippers) -> None:
    shipper = shippers.make()

    def log(thread: int) -> None:
        for number in range(1000):
            assert shipper.log("info", f"{thread}-{number}", wait=10)

    threads = [threading.Thread(target=log, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shipper.close(30)
    assert server.stored == {f"{thread}-{number}": 1 for thread in range(8) for number in range(1000)}
    assert shipper.stats().acknowledged == 8000


def test_after_close_records_are_counted_as_dropped(server: StubServer, shippers: Shippers) -> None:
    shipper = shippers.make()
    shipper.log("info", "before")
    assert shipper.close(10)
    assert not shipper.log("info", "after")
    assert shipper.stats().dropped == 1
    assert shippers.told(ProblemKind.DROPPED) == ["a log record was dropped: the shipper is closed"]
    assert shipper.close(10)
    assert shipper.flush(1)
