"""Metadata of many records becomes JSON that says the same."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from opsplane.logingest.v1 import records_pb2
from opsplane_server.logingest import metadata

from tests.unit.logingest.records import good
from tests.unit.logingest.test_rules import decoded

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
MAPS = st.dictionaries(TEXT.filter(bool), TEXT, max_size=4)
DOCUMENTS = MAPS.map(json.dumps)


def parsed(some: list[records_pb2.LogRecord]) -> list[object]:
    """The metadata of each record, None for none, as JSON reads it."""
    column = metadata.jsonb(decoded(*some))
    if column is None:
        return [None] * len(some)
    texts = column.to_pylist()
    assert all(text is None or text[:1] == b"\x01" for text in texts)
    return [None if text is None else json.loads(text[1:]) for text in texts]


@given(st.lists(MAPS, min_size=1, max_size=6))
def test_flat_metadata(maps: list[dict[str, str]]) -> None:
    assert parsed([good(metadata=one) for one in maps]) == [one or None for one in maps]


@given(st.lists(st.one_of(MAPS, DOCUMENTS), min_size=1, max_size=6))
def test_flat_and_nested_metadata_in_one_group(some: list[dict[str, str] | str]) -> None:
    records = [good(metadata_json=one) if isinstance(one, str) else good(metadata=one) for one in some]
    expected = [json.loads(one) if isinstance(one, str) else one or None for one in some]
    assert parsed(records) == expected
