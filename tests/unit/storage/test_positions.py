import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.errors import InvalidArgument
from opsplane_server.storage.followers import Position

positions = st.builds(Position, st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1))


@given(positions)
def test_a_position_survives_encoding(position: Position) -> None:
    assert Position.decode(position.encode()) == position


@given(positions, positions)
def test_positions_are_ordered_by_transaction_then_id(one: Position, other: Position) -> None:
    assert (one < other) == ((one.xid, one.id) < (other.xid, other.id))


@given(positions)
def test_nothing_comes_before_the_start(position: Position) -> None:
    assert position >= Position.START


@given(st.text().filter(lambda text: not re.fullmatch("[0-9a-f]+-[0-9a-f]+", text)))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        Position.decode(text)
    assert refused.value.violations[0].field == "cursor"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1",
        "1-",
        "-1",
        "-1-1",
        "1-1-1",
        " 1-1",
        "1_0-1",
        "+1-1",
        "01-1",
        "0x1-1",
        "A-1",
        f"{2**64:x}-1",
        f"1-{2**63:x}",
    ],
)
def test_near_misses_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Position.decode(text)
