"""Servers that are away, overloaded, forgetful or that refuse the sender."""

from __future__ import annotations

import pytest
from opsplane.logs import ProblemKind, Shipper

from tests.integration.logs_client.conftest import Shippers, StubServer
from tests.waiting import until


def log(shipper: Shipper, numbers: range, *, wait: float = 0.0) -> None:
    for number in numbers:
        assert shipper.log("info", f"n{number}", wait=wait)


def once(numbers: range) -> dict[str, int]:
    return {f"n{number}": 1 for number in numbers}


async def test_an_unreachable_server_spills_and_gets_all_later(stub: StubServer, shippers: Shippers) -> None:
    shipper = shippers.make()
    log(shipper, range(3000))
    await until(lambda: shipper.stats().spilled == 3000)
    assert shipper.stats().memory_bytes == 0
    assert shipper.stats().pending == 3000
    assert "UNAVAILABLE" in shipper.stats().error
    assert not shipper.flush(0.01)
    (told,) = shippers.told(ProblemKind.UNREACHABLE)
    assert str(shippers.spool) in told
    stub.start()
    assert shipper.flush(60)
    assert stub.stored == once(range(3000))
    assert shipper.stats().spool_bytes == 0
    assert shippers.told(ProblemKind.UNREACHABLE, over=True) == [f"{stub.address} takes log records again"]
    assert shipper.close(10)
    assert not list(shippers.spool.rglob("*.seg"))


async def test_a_server_that_is_killed_loses_and_doubles_nothing(server: StubServer, shippers: Shippers) -> None:
    shipper = shippers.make()
    for start in range(0, 12_000, 3000):
        log(shipper, range(start, start + 2000))
        await until(lambda: shipper.stats().acknowledged > start)  # noqa: B023 - awaited at once
        log(shipper, range(start + 2000, start + 3000))
        server.kill()
        server.start()
    assert shipper.flush(60)
    assert server.stored == once(range(12_000))
    assert shipper.stats().acknowledged == 12_000


async def test_answers_that_are_lost_double_nothing(server: StubServer, shippers: Shippers) -> None:
    server.behave(status="UNAVAILABLE", after_storing=True)
    shipper = shippers.make()
    log(shipper, range(1500))
    await until(lambda: sum(batch["duplicate"] for batch in server.journal) >= 2)
    server.behave()
    assert shipper.flush(60)
    assert server.stored == once(range(1500))


async def test_batches_in_flight_keep_their_ids(server: StubServer, shippers: Shippers) -> None:
    server.behave(hold=True)
    shipper = shippers.make()
    log(shipper, range(10))
    await until(lambda: len(server.journal) == 1)
    server.kill()
    server.behave()
    server.start()
    assert shipper.flush(60)
    first, second = server.journal
    assert (first["batch"], second["duplicate"]) == (second["batch"], True)


def test_what_is_left_at_close_is_shipped_by_the_next(stub: StubServer, shippers: Shippers) -> None:
    first = shippers.make()
    log(first, range(2500))
    assert not first.close(30), "something is left"
    assert first.stats().pending == 2500
    stub.start()
    second = shippers.make()
    log(second, range(2500, 2600))
    assert second.close(60)
    assert stub.stored == once(range(2600))
    assert (second.stats().acknowledged, second.stats().recovered) == (100, 2500)
    assert not list(shippers.spool.rglob("*.seg"))


def test_another_client_or_server_does_not_take_it(stub: StubServer, shippers: Shippers) -> None:
    first = shippers.make(client_id="one")
    log(first, range(10))
    first.close(30)
    stub.start()
    other = shippers.make(client_id="two")
    log(other, range(10, 20))
    assert other.close(30)
    assert stub.stored == once(range(10, 20))
    (told,) = shippers.told(ProblemKind.SPOOL)
    assert "another server or client id" in told
    again = shippers.make(client_id="one")
    log(again, range(20, 21))
    assert again.close(30)
    assert stub.stored == once(range(21))
    assert {batch["client"] for batch in stub.journal} == {"one", "two"}


def test_without_spool_memory_is_the_bound_and_drops_are_shipped_as_a_record(
    stub: StubServer, shippers: Shippers
) -> None:
    shipper = shippers.make(spool=None, memory_bytes=64 * 1024)
    taken = {f"n{number}" for number in range(2000) if shipper.log("info", f"n{number}", filler="x" * 100)}
    assert 0 < len(taken) < 2000
    # What waits for room also has every record before it counted.
    assert not shipper.log("info", "no room", wait=0.05, filler="x" * 100)
    stats = shipper.stats()
    assert stats.accepted == 2001 - stats.dropped <= len(taken)
    assert stats.memory_bytes <= 64 * 1024
    stub.start()
    assert shipper.flush(60)
    shipper.log("info", "last")
    assert shipper.close(30)
    told = [message for message in stub.stored if "dropped" in message]
    assert [int(message.split()[0]) for message in told] == [stats.dropped]
    stored = stub.stored
    assert set(stored) - {*told, "last"} <= taken
    assert len(stored) == stored.total() == stats.accepted + 2
    assert len(shippers.told(ProblemKind.DROPPED)) == 1
    assert shippers.told(ProblemKind.DROPPED, over=True) == told


async def test_a_full_spool_keeps_the_rest_in_memory_then_drops(stub: StubServer, shippers: Shippers) -> None:
    shipper = shippers.make(spool_bytes=256 * 1024, memory_bytes=64 * 1024)
    accepted = []
    number = 0
    while shipper.stats().dropped < 10:
        if shipper.log("info", f"n{number}", wait=0.2, filler="x" * 500):
            accepted.append(f"n{number}")
        number += 1
    stats = shipper.stats()
    assert 100 * 1024 < stats.spool_bytes <= 256 * 1024
    assert stats.memory_bytes <= 64 * 1024
    assert any("holds its" in message for message in shippers.told(ProblemKind.SPOOL))
    stub.start()
    assert shipper.flush(60)
    assert shipper.close(30)
    stored = stub.stored
    assert {message: stored[message] for message in accepted} == dict.fromkeys(accepted, 1)
    assert sum(int(message.split()[0]) for message in stored if "dropped" in message) == shipper.stats().dropped


def test_a_folder_that_can_not_be_written_is_told_and_memory_is_used(stub: StubServer, shippers: Shippers) -> None:
    shippers.spool.write_text("a file, not a folder")
    shipper = shippers.make()
    log(shipper, range(10))
    assert not shipper.flush(0.5)
    assert shippers.told(ProblemKind.SPOOL)
    stub.start()
    assert shipper.close(30)
    assert stub.stored == once(range(10))


def test_records_are_lost_at_close_only_without_a_spool_and_it_is_told(stub: StubServer, shippers: Shippers) -> None:
    shipper = shippers.make(spool=None)
    log(shipper, range(10))
    assert not shipper.close(0.3)
    assert (shipper.stats().dropped, shipper.stats().pending) == (10, 0)
    assert "10 log records are lost" in shippers.told(ProblemKind.DROPPED)[-1]


@pytest.mark.parametrize("status", ["UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"])
async def test_a_refusal_is_told_and_records_are_spooled(server: StubServer, shippers: Shippers, status: str) -> None:
    server.behave(status=status)
    shipper = shippers.make()
    log(shipper, range(10))
    await until(lambda: shipper.stats().spilled == 10)
    log(shipper, range(10, 20))
    await until(lambda: shipper.stats().spilled == 20)
    (told,) = shippers.told(ProblemKind.REFUSED)
    assert "refuses log records: as the test wants it" in told
    assert status in told
    server.behave()
    assert shipper.flush(60)
    assert server.stored == once(range(20))
    assert len(shippers.told(ProblemKind.REFUSED, over=True)) == 1


async def test_a_server_that_asks_to_wait_is_left_alone(server: StubServer, shippers: Shippers) -> None:
    server.behave(status="RESOURCE_EXHAUSTED", retry_seconds=3600)
    shipper = shippers.make()
    log(shipper, range(10))
    await until(lambda: bool(shippers.told(ProblemKind.OVERLOADED)))
    log(shipper, range(10, 20))
    assert not shipper.flush(0.5)
    assert len(server.journal) == 1
    assert not shipper.close(60), "it does not wait for long to be let in"
    assert len(server.journal) == 1
    server.behave()
    later = shippers.make()
    later.log("info", "n20")
    assert later.close(60)
    assert server.stored == once(range(21))


async def test_a_short_wait_that_the_server_asks_for(server: StubServer, shippers: Shippers) -> None:
    server.behave(status="UNAVAILABLE", retry_seconds=1)
    shipper = shippers.make()
    log(shipper, range(10))
    await until(lambda: bool(shippers.told(ProblemKind.UNREACHABLE)))
    server.behave()
    assert shipper.flush(60)
    assert server.stored == once(range(10))


async def test_a_damaged_spool_is_told_and_the_rest_is_shipped(stub: StubServer, shippers: Shippers) -> None:
    shipper = shippers.make()
    for number in range(5):
        log(shipper, range(number, number + 1))
        await until(lambda: shipper.stats().spilled == number + 1)  # noqa: B023 - awaited at once
    shipper.close(0)
    (segment,) = shippers.spool.rglob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(b"n1")] ^= 1  # a bit of the second batch
    segment.write_bytes(data[:-3])  # and a torn tail
    stub.start()
    again = shippers.make()
    assert again.flush(10)
    await until(lambda: again.stats().recovered == 3)
    assert stub.stored == {"n0": 1, "n2": 1, "n3": 1}
    assert again.close(10)
    assert shippers.told(ProblemKind.DAMAGED)


async def test_a_server_that_hangs_is_no_reason_to_use_more_memory(server: StubServer, shippers: Shippers) -> None:
    server.behave(hold=True)
    shipper = shippers.make(memory_bytes=256 * 1024)
    number = 0
    while shipper.stats().spilled < 3000:
        assert shipper.log("info", f"n{number}", wait=30, filler="x" * 200)
        number += 1
    assert shipper.stats().memory_bytes <= 256 * 1024
    server.behave()
    assert shipper.flush(60)
    assert server.stored == once(range(number))
    assert shipper.stats().dropped == 0
