"""Messages for StreamLogs that are wrong in every way we could think of, mixed with good ones, and the right answers.

Each record is good or has one fault, so that its answer is certain: where a field stands twice in a message the last
one counts, and a fault is a field added to a good record.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from opsplane.logingest.v1 import records_pb2

from tests.logs_shippers import Key, numbered

Reject = records_pb2.RejectedRecord
Refusal = records_pb2.BatchRefusal
Reasons: TypeAlias = frozenset[Reject.Reason.ValueType]

# By number: the short texts of a record, and how many characters they may have.
_SHORT = {3: 100, 5: 100, 6: 100, 7: 255, 9: 255, 10: 64, 11: 64, 12: 255, 13: 255, 14: 255, 15: 20, 19: 255}
_TEXTS = (*_SHORT, 4, 16, 20)
_NAMES = {field.number: field.name for field in records_pb2.LogRecord.DESCRIPTOR.fields}
_NOT_UTF8 = (
    b"\xff", b"\x80", b"a\xc3", b"\xc0\xaf", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xf0\x9f\x98",
    b"ok \xf8\x88\x80\x80\x80",
)  # fmt: skip
_NO_JSON = (
    b"{", b"[]", b"1", b'"text"', b"null", b"{'a':1}", b'{"a":}', b'{"a":1}x', b"\xef\xbb\xbf{}", b'{"a":NaN}',
    b'{"a":"\\u0000"}', b'{"\\u0000":1}', b'{"a":"\\ud800"}', b'{"a":1e999}', b'{"a":-1e400}', b'{"a":1e-20000}',
    b'{"a":' * 65 + b"1" + b"}" * 65, b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", b'{"a":' * 20_000,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a record must be rejected: one of `reasons`, with the path of the field unless that is None."""

    reasons: Reasons
    path: str | None


@dataclass(slots=True)
class Case:
    """A message and its answer: refused for one of `refusals`, or stored but for the records in `rejected`."""

    name: str
    message: bytes
    keys: list[Key] = field(default_factory=list)
    rejected: dict[int, Fault] = field(default_factory=dict)
    refusals: frozenset[Refusal.Reason.ValueType] = frozenset()

    def check(self, result: records_pb2.BatchResult) -> None:
        """AssertionError unless this is the answer."""
        told = f"{self.name}: {str(result)[:500]} for {self.message[:200]!r}"
        if self.refusals:
            assert result.refusal.reason in self.refusals, told
            assert (result.stored_count, len(result.rejected_records)) == (0, 0), told
            return
        assert not result.HasField("refusal"), told
        assert not result.duplicate, told
        assert result.stored_count == len(self.keys), told
        assert [one.index for one in result.rejected_records] == sorted(self.rejected), told
        for one in result.rejected_records:
            fault = self.rejected[one.index]
            assert one.reason in fault.reasons, told
            assert fault.path is None or one.field == fault.path, told
            assert one.message, told


class Maker:
    """Makes cases, the same for the same seed. Its records are those of a shipper of that name.

    `number` is the field that a message has its batch in: 2 in those of streams, 1 in those of calls.
    """

    def __init__(self, name: str, seed: int, *, number: int = 2) -> None:
        self._name = name
        self._number = number
        self._chance = Random(f"{name} {seed}")  # noqa: S311
        self._count = 0
        self._batches = 0

    def case(self) -> Case:
        """One of any kind: most are batches with good and bad records in any order."""
        if self._chance.random() < 0.25:
            return self._chance.choice(_MESSAGES)(self)
        return self.batch([self.good() if self._chance.random() < 0.5 else self.bad() for _ in range(self._some())])

    def good(self) -> tuple[bytes, Key]:
        """A record to be stored, perhaps an odd one."""
        key = (self._name, self._count)
        self._count += 1
        return numbered(*key).SerializeToString() + self._chance.choice(_ODDITIES), key

    def bad(self) -> tuple[bytes, Fault]:
        """A record to be rejected."""
        (raw, _), (extra, fault) = self.good(), self._chance.choice(_FAULTS)(self._chance)
        return raw + extra, fault

    def batch(self, records: Sequence[tuple[bytes, Key | Fault]], name: str = "records") -> Case:
        """A batch of such records, mostly with an id."""
        batch_id = self.new_id() if self._chance.random() < 0.8 else b""
        case = Case(name, batch_message(batch_id, [raw for raw, _ in records], self._number))
        for index, (_, what) in enumerate(records):
            if isinstance(what, Fault):
                case.rejected[index] = what
            else:
                case.keys.append(what)
        return case

    def new_id(self) -> bytes:
        """An id that no other batch has."""
        self._batches += 1
        return f"{self._name}-{self._batches}".encode()

    def _some(self) -> int:
        return self._chance.choice((1, 1, 2, 3, 5, 8))

    # Messages that are wrong as a whole.

    def _garbage(self) -> Case:
        raw = self._chance.choice((b"\x00", b"\x06", b"\x07", b"\x0f")) + self._chance.randbytes(
            self._chance.randrange(200)
        )
        return refused("garbage", raw, Refusal.REASON_MALFORMED)

    def _truncated(self) -> Case:
        whole = batch_message(self.new_id(), [self.good()[0]], self._number)
        return refused("truncated", whole[: self._chance.randrange(1, len(whole))], Refusal.REASON_MALFORMED)

    def _cut_within(self) -> Case:
        """The frame of the message is right, that of its batch is not."""
        batch = ld(1, self.new_id()) + ld(2, self.good()[0])
        return refused(
            "cut within", ld(self._number, batch[: -self._chance.randrange(1, 20)]), Refusal.REASON_MALFORMED
        )

    def _empty(self) -> Case:
        raw = self._chance.choice(
            (b"", ld(self._number, b""), ld(self._number, ld(1, b"an-id")), ld(9, b"unknown field"))
        )
        return refused("empty", raw, Refusal.REASON_EMPTY)

    def _not_a_batch(self) -> Case:
        kind, value = self._chance.choice(((0, b"\x05"), (5, b"abcd"), (1, b"abcdefgh")))  # as a number
        raw = varint(self._number << 3 | kind) + value
        return refused("not a batch", raw, Refusal.REASON_MALFORMED, Refusal.REASON_EMPTY)

    def _invalid_id(self) -> Case:
        batch_id = self._chance.choice((b"has space", b"x" * 65, b"\xff", b"a\0b", "é".encode(), b"a/b", b"line\n"))
        return refused(
            "invalid id", batch_message(batch_id, [self.good()[0]], self._number), Refusal.REASON_INVALID_BATCH_ID
        )

    def _too_many(self) -> Case:
        record = self.good()[0] if self._chance.random() < 0.5 else b""
        count = 1001 if record else self._chance.choice((1001, 100_000))
        raw = batch_message(self.new_id(), [record] * count, self._number)
        return refused("too many", raw, Refusal.REASON_TOO_MANY_RECORDS)

    def _in_two_parts(self) -> Case:
        """A field that stands twice is merged, which for a message is what both say."""
        (one, first), (other, second) = self.good(), self.good()
        number = self._number
        raw = ld(number, ld(1, self.new_id()) + ld(2, one)) + ld(number, ld(2, other))
        return Case("in two parts", raw, [first, second])

    def _split_character(self) -> Case:
        """Two texts that are wrong each by itself, and right one after the other."""
        path = self._chance.choice((3, 4, 7))
        fault = Fault(frozenset({Reject.REASON_INVALID_UTF8}), _NAMES[path])
        ends, begins = self.good()[0] + ld(path, b"caf\xc3"), self.good()[0] + ld(path, b"\xa9!")
        return self.batch([(ends, fault), (begins, fault), self.good()], "split character")

    def _random(self) -> Case:
        """A good record between two of noise."""
        fault = Fault(frozenset(Reject.Reason.values()), None)
        noise = [(self._chance.randbytes(self._chance.randrange(1, 80)), fault) for _ in range(2)]
        return self.batch([noise[0], self.good(), noise[1]], "random records")


def refused(name: str, message: bytes, *reasons: Refusal.Reason.ValueType) -> Case:
    """A message that is refused as a whole."""
    return Case(name, message, refusals=frozenset(reasons))


def batch_message(batch_id: bytes, records: Sequence[bytes], number: int = 2) -> bytes:
    """A message with one batch."""
    return ld(number, (ld(1, batch_id) if batch_id else b"") + b"".join(ld(2, record) for record in records))


def varint(value: int) -> bytes:
    """A number as protobuf writes it; negative ones in 10 bytes."""
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def ld(number: int, value: bytes) -> bytes:
    """A field of bytes."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def vi(number: int, value: int) -> bytes:
    """A field of a number."""
    return varint(number << 3) + varint(value)


def entry(key: bytes, value: bytes) -> bytes:
    """An entry of the metadata."""
    return ld(21, ld(1, key) + ld(2, value))


def stamp(seconds: int, nanos: int = 0) -> bytes:
    """A time."""
    return ld(1, vi(1, seconds) + vi(2, nanos))


_Faulty = tuple[bytes, Fault]


def _fault(extra: bytes, path: str | None, *reasons: Reject.Reason.ValueType) -> _Faulty:
    return extra, Fault(frozenset(reasons), path)


def _not_utf8(chance: Random) -> _Faulty:
    number = chance.choice(_TEXTS)
    return _fault(ld(number, chance.choice(_NOT_UTF8)), _NAMES[number], Reject.REASON_INVALID_UTF8)


def _nul(chance: Random) -> _Faulty:
    number = chance.choice(_TEXTS)
    return _fault(
        ld(number, chance.choice((b"\0", b"a\0b", "é\0".encode()))), _NAMES[number], Reject.REASON_NUL_CHARACTER
    )


def _too_long(chance: Random) -> _Faulty:
    number = chance.choice(tuple(_SHORT))
    character = chance.choice(("x", "é", "가", "😀"))
    return _fault(ld(number, (character * (_SHORT[number] + 1)).encode()), _NAMES[number], Reject.REASON_TOO_LONG)


def _huge(chance: Random) -> _Faulty:
    number, size = chance.choice(((4, 1048577), (16, 8193), (16, 100_000), (20, 1048577), (22, 262_145)))
    return _fault(ld(number, b"x" * size), _NAMES[number], Reject.REASON_TOO_LONG)


def _required(chance: Random) -> _Faulty:
    extra, path = chance.choice(((vi(2, 0), "level"), (ld(3, b""), "service"), (ld(4, b""), "message")))
    return _fault(extra, path, Reject.REASON_REQUIRED)


def _unknown_level(chance: Random) -> _Faulty:
    return _fault(vi(2, chance.choice((7, 99, -1, 2**31 - 1, -(2**31)))), "level", Reject.REASON_UNKNOWN_VALUE)


def _out_of_range(chance: Random) -> _Faulty:
    duration = chance.choice((math.nan, math.inf, -math.inf, -1.0, -5e-324))
    extra, path = chance.choice(
        (
            (vi(17, chance.choice((1, 99, 1000, -200, 2**31 - 1))), "http_status"),
            (varint(18 << 3 | 1) + struct.pack("<d", duration), "duration_ms"),
            (stamp(chance.choice((-1, -(2**63), 2**63 - 1, 4_102_444_800, 10**15))), "timestamp"),
            (stamp(int(time.time()), chance.choice((-1, 10**9, 2**31 - 1, -(2**31)))), "timestamp"),
        )
    )
    return _fault(extra, path, Reject.REASON_OUT_OF_RANGE)


def _wrong_time(chance: Random) -> _Faulty:
    seconds = chance.choice((0, 1, 315_532_800, int(time.time()) + 86_400, 4_102_444_799))
    return _fault(stamp(seconds), "timestamp", Reject.REASON_TIME_NOT_ACCEPTED)


def _metadata(chance: Random) -> _Faulty:
    bad_text = chance.choice(_NOT_UTF8)
    return chance.choice(
        (
            _fault(entry(b"", b"v"), "metadata", Reject.REASON_REQUIRED),
            _fault(entry(b"k" * 256, b"v"), "metadata", Reject.REASON_TOO_LONG),
            _fault(entry("é".encode() * 256, b"v"), "metadata", Reject.REASON_TOO_LONG),
            _fault(entry(b"a\0", b"v"), "metadata", Reject.REASON_NUL_CHARACTER),
            _fault(entry(bad_text, b"v"), "metadata", Reject.REASON_INVALID_UTF8),
            _fault(entry(b"k", bad_text), 'metadata["k"]', Reject.REASON_INVALID_UTF8),
            _fault(entry(b"k", b"a\0"), 'metadata["k"]', Reject.REASON_NUL_CHARACTER),
            _fault(entry(b"k", b"v" * 16_385), 'metadata["k"]', Reject.REASON_TOO_LONG),
            _fault(b"".join(entry(b"%d" % n, b"") for n in range(129)), "metadata", Reject.REASON_TOO_MANY),
            _fault(entry(b"", b"") * 10_000, "metadata", Reject.REASON_REQUIRED, Reject.REASON_TOO_MANY),
            _fault(ld(22, b'{"a":1}'), "metadata_json", Reject.REASON_CONFLICT),
        )
    )


def _malformed(chance: Random) -> _Faulty:
    extra = chance.choice(
        (
            varint(4 << 3 | 2) + varint(1000) + b"short",
            varint(3 << 3 | 2) + b"\xff" * 10,
            b"\x00\x00",
            b"\x0e",
            b"\x24",  # the end of a group that has no beginning
            ld(1, b"\xff\xff"),
            ld(21, b"\x0a\x7f"),
            varint(18 << 3 | 1) + b"1234",
            b"\x80" * 11,
        )
    )
    return _fault(extra, None, Reject.REASON_MALFORMED)


def _noise(chance: Random) -> _Faulty:
    """Appended to a good record it is a fault for certain only where it can not be read."""
    return _fault(b"\x07" + chance.randbytes(chance.randrange(100)), None, Reject.REASON_MALFORMED)


_FAULTS: Sequence[Callable[[Random], _Faulty]] = (
    *(_not_utf8, _nul, _too_long, _required, _unknown_level, _out_of_range, _wrong_time, _metadata, _malformed, _noise)
    * 20,
    _huge,
)
# What may be added to a good record without a fault.
_ODDITIES = (
    *(b"",) * 6,
    ld(1000, b"a field of later versions"),
    vi(99, 2**64 - 1),
    entry(b"k", b"1") + entry(b"k", b"2"),
    entry(b"same", b"") * 200,
    ld(3, b"replaced") + ld(3, ("가" * 100).encode()),
    b"\x1a\x85\x80\x00later",  # a length in more bytes than it needs
    stamp(int(time.time()) - 3600, 999_999_999),
    ld(20, "trace 😀\n".encode() * 50),
    vi(17, 0),
)
_MESSAGES: Sequence[Callable[[Maker], Case]] = (
    *(
        Maker._garbage, Maker._truncated, Maker._cut_within, Maker._empty, Maker._not_a_batch, Maker._invalid_id,
        Maker._in_two_parts, Maker._split_character, Maker._random,
    ) * 6,
    Maker._too_many,
)  # fmt: skip
