"""Following a table to which many transactions append at once.

Identities are given before the commit, so a reader that goes on from the highest id that it saw skips rows that
were committed later under lower ids. Here a row has its place by the transaction that wrote it, and is read only
when no transaction that could still come before it is running:

    CREATE TABLE windows (
        id bigint GENERATED ALWAYS AS IDENTITY,
        xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        ...
        PRIMARY KEY (xid, id)
    );

    SELECT xid, id, ... FROM windows
    WHERE (xid, id) > ($1, $2) AND {SETTLED} ORDER BY xid, id LIMIT $3

The price is that a transaction which writes and stays open holds back every row written after it began, in all
databases of the server. Rows moved to another server by dump and restore carry foreign numbers; renumber them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Self, TypeVar

from opsplane_server.errors import InvalidArgument
from opsplane_server.storage.signals import Signal

Row = TypeVar("Row")

SETTLED = "xid < pg_snapshot_xmin(pg_current_snapshot())"
"""SQL condition: no transaction that is still running can add a row before this one."""

_FIRST_POLL_SECONDS = 0.05


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """The place of a row: the number of its transaction (64 bits, it never wraps), then its id."""

    xid: int
    id: int

    START: ClassVar[Position]

    def encode(self) -> str:
        """For cursors that callers keep; they must not look inside."""
        return f"{self.xid:x}-{self.id:x}"

    @classmethod
    def decode(cls, text: str) -> Self:
        """The opposite of `encode`; InvalidArgument on `cursor` for any other text."""
        xid, _, row_id = text.partition("-")
        try:
            position = cls(int(xid, 16), int(row_id, 16))
        except ValueError:
            position = None
        # Only what encode gives: int() also takes signs, underscores and blanks.
        if position is None or position.encode() != text or position.xid >= 2**64 or position.id >= 2**63:
            raise InvalidArgument.of("cursor", "is not one that this API gave")
        return position


Position.START = Position(0, 0)


class Follower(Generic[Row]):
    """Reads what is stored and then what is added, each row once, in the order of positions.

    `fetch(after, limit)` returns at most `limit` settled rows after a position, in order. `signal` wakes the
    follower up; without a hint it looks again after `poll_seconds` at the latest.
    """

    def __init__(
        self,
        fetch: Callable[[Position, int], Awaitable[Sequence[tuple[Position, Row]]]],
        signal: Signal,
        *,
        poll_seconds: float = 1.0,
        batch: int = 500,
    ) -> None:
        self._fetch = fetch
        self._signal = signal
        self._poll_seconds = poll_seconds
        self._batch = batch

    async def follow(self, after: Position) -> AsyncGenerator[Sequence[tuple[Position, Row]], None]:
        """Yields batches for ever, none empty; whoever starts again after the last position misses nothing."""
        first_pause = pause = min(_FIRST_POLL_SECONDS, self._poll_seconds)
        while True:
            # Before the reading, so that a hint which comes while reading ends the waiting at once.
            seen = self._signal.generation
            rows = await self._fetch(after, self._batch)
            if rows:
                after = rows[-1][0]
                yield rows
                if len(rows) == self._batch:
                    continue
                pause = first_pause
            # After a sign of life it looks again soon, then ever more rarely: a row that was hinted at may have had
            # to wait for an older transaction, whose end gives no hint.
            hinted = await self._signal.changed(seen, pause)
            pause = first_pause if hinted else min(pause * 2, self._poll_seconds)
