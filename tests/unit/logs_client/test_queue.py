"""The queue between the application and the sender."""

from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st
from opsplane.logs.queue import OVERHEAD_BYTES, RecordQueue


def queue(limit: int = 10_000, *, records: int = 10, size: int = 1000) -> tuple[RecordQueue, list[None]]:
    woken: list[None] = []
    return RecordQueue(limit, records, size, lambda: woken.append(None)), woken


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=200))
def test_no_more_than_the_limit_is_held_and_all_comes_out_in_order(sizes: list[int]) -> None:
    made, _ = queue(5000)
    put = [record for index, size in enumerate(sizes) if made.put(record := bytes([index]) * size)]
    assert made.used <= 5000
    assert made.dropped == len(sizes) - len(put)
    taken: list[bytes] = []
    while not made.empty:
        batch, cost = made.take()
        assert 1 <= len(batch) <= 10
        assert sum(map(len, batch)) <= 1000
        made.release(cost)
        taken += batch
    assert taken == put
    assert made.used == 0
    assert not made.batch_full


def test_a_record_larger_than_a_batch_goes_alone() -> None:
    made, _ = queue()
    made.put(b"a")
    made.put(b"b" * 2000)
    made.put(b"c")
    assert [made.take()[0] for _ in range(3)] == [[b"a"], [b"b" * 2000], [b"c"]]


def test_it_wakes_for_the_first_and_for_a_full_batch() -> None:
    made, woken = queue(records=5)
    for count in range(8):
        made.put(b"x")
        assert len(woken) == (1 if count < 5 else 2)
    made.take()
    made, woken = queue(size=100)
    for count in range(8):
        made.put(b"x" * 30)
        assert len(woken) == (1 if count < 3 else 2 if count < 6 else 3)


def test_one_that_waits_is_let_in_when_there_is_room() -> None:
    made, _ = queue(OVERHEAD_BYTES + 10)
    assert made.put(b"x" * 10)
    assert not made.put(b"y", 0.01)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(made.put(b"z", 60)))
    thread.start()
    made.release(made.take()[1])
    thread.join(60)
    assert done == [True]
    assert (made.accepted, made.dropped) == (2, 1)


def test_it_may_be_entered_again_by_its_own_thread() -> None:
    """As a signal handler does that logs while its thread is in here."""
    made: RecordQueue
    again: list[bool] = []

    class Nasty(bytes):
        def __len__(self) -> int:
            if not again:
                again.append(True)
                made.put(b"from the handler")
            return 5

    made, _ = queue()
    assert made.put(Nasty(b"outer"))
    assert made.accepted == 2


def test_threads_do_not_wait_for_each_other() -> None:
    """One that holds the lock and is taken off its core keeps nobody waiting; all records are there in the end."""
    made, woken = queue(10**9, records=100, size=10**6)
    start = threading.Barrier(8)

    def put(thread: int) -> None:
        start.wait()
        for number in range(2000):
            assert made.put(b"%d %d" % (thread, number))

    with made._lock:
        other = threading.Thread(target=made.put, args=(b"while it is locked",))
        other.start()
        other.join(60)
        assert not other.is_alive()
    assert woken
    assert made.take()[0] == [b"while it is locked"]
    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken: list[bytes] = []
    while not made.empty:
        records, cost = made.take()
        made.release(cost)
        taken += records
    for number in range(8):
        mine = [record for record in taken if record.startswith(b"%d " % number)]
        assert mine == [b"%d %d" % (number, n) for n in range(2000)], "in the order of each thread"
    assert made.accepted == 16_001
    assert made.used == OVERHEAD_BYTES + len(b"while it is locked")


def test_who_waits_for_room_learns_of_a_drop_even_when_the_queue_is_busy() -> None:
    made, _ = queue(limit=OVERHEAD_BYTES + 10)
    made.put(b"x" * 10)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(made.put(b"y", wait=0.01)))
    with made._lock:  # as another thread would hold it
        waiting.start()
        waiting.join(0.1)
        assert answers == []
    waiting.join(10)
    assert answers == [False]
    assert made.dropped == 1
