"""Random log records for property tests: mostly good, often at a limit, sometimes beyond it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from opsplane.logingest.v1 import records_pb2
from opsplane_server.logingest.rules import END_OF_TIME, KEY, MAX_PAIRS, TEXTS, VALUE, TextRule

NOW = 1_790_000_000


def texts(rule: TextRule) -> st.SearchStrategy[str]:
    """Texts around the limits of a rule, of one to four bytes a character."""
    most = rule.max_length or rule.max_bytes
    at_limit = st.builds(
        lambda character, beyond: character * (most // (len(character.encode()) if rule.max_bytes else 1) + beyond),
        st.sampled_from(["a", "é", "語", "😀", '"', "\n"]),
        st.integers(-1, 1),
    )
    short = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    choices = [short, short, short, st.sampled_from(["", "a\0b", "\\", '"quoted"', "tab\there", "back\\slash"])]
    # Texts of a megabyte have their own test: drawn here they would be nearly all of the time.
    return st.one_of(*choices, at_limit) if most <= 20_000 else st.one_of(*choices)


def numbers(*edges: int) -> st.SearchStrategy[int]:
    """Numbers at some edges and one beside them."""
    return st.sampled_from([number for edge in edges for number in (edge - 1, edge, edge + 1)])


def metadata() -> st.SearchStrategy[dict[str, str]]:
    """Maps, mostly small."""
    many = st.sampled_from([MAX_PAIRS, MAX_PAIRS + 1]).map(lambda count: {f"k{i}": "v" for i in range(count)})
    return st.one_of(
        st.just({}), st.dictionaries(texts(KEY), texts(VALUE), max_size=3), st.just({"plain": "value"}), many
    )


JSON_TEXTS = st.sampled_from(["", "", "", '{"a": {"b": [1, 2.5, null, true]}}', "{}"])


@st.composite
def records(draw: st.DrawFn) -> records_pb2.LogRecord:
    """A record in which any field may be anything that its type allows."""
    record = records_pb2.LogRecord(
        level=draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, -1, 2**31 - 1, 3, 3, 3])),  # type: ignore[arg-type]
        http_status=draw(st.one_of(st.sampled_from([0, 200]), numbers(0, 100, 999, 32767))),
        metadata=draw(metadata()),
        metadata_json=draw(JSON_TEXTS),
    )
    for name, rule in TEXTS.items():
        if name != "metadata_json":
            setattr(record, name, draw(st.one_of(st.just("some"), st.just("some"), texts(rule))))
    if draw(st.booleans()):
        record.duration_ms = draw(st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 12.5])))
    if draw(st.booleans()):
        record.timestamp.seconds = draw(st.one_of(st.just(NOW), numbers(0, END_OF_TIME)))
        record.timestamp.nanos = draw(st.one_of(st.just(5), st.sampled_from([0, 999_999_999])))
    return record


def good(**fields: Any) -> records_pb2.LogRecord:
    """A record that keeps every rule."""
    values: dict[str, Any] = {"level": records_pb2.LEVEL_INFO, "service": "api", "message": "hello"}
    record = records_pb2.LogRecord(**{**values, **fields})
    record.timestamp.seconds = record.timestamp.seconds or NOW
    return record
