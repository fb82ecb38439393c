from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.rpc.ids import encode, new_id

numbers = st.integers(0, 2**110 - 1)


def test_ids_are_valid_unique_and_in_order() -> None:
    made = [new_id() for _ in range(10_000)]
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", each) for each in made)
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_threads_never_share_an_id() -> None:
    with ThreadPoolExecutor(4) as threads:
        made = [each for batch in threads.map(lambda _: [new_id() for _ in range(2000)], range(4)) for each in batch]
    assert len(set(made)) == 8000


@given(numbers, numbers)
def test_text_sorts_as_its_number(first: int, second: int) -> None:
    assert (encode(first) < encode(second)) == (first < second)
    assert len(encode(first)) == 22


def test_clock_set_back_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_id()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert new_id() > before
