from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.errors import Aborted
from opsplane_server.rpc.etags import check, etag

names = st.from_regex(r"projects/[a-z][a-z0-9-]{0,10}", fullmatch=True)
revisions = st.integers(0, 2**63 - 1)


@given(names, revisions)
def test_own_etag_and_none_pass(name: str, revision: int) -> None:
    check(etag(name, revision), name, revision)
    check("", name, revision)


@given(st.lists(st.tuples(names, revisions), min_size=2, max_size=2, unique=True))
def test_etag_of_another_resource_or_revision_is_refused(pairs: list[tuple[str, int]]) -> None:
    (name, revision), (other_name, other_revision) = pairs
    with pytest.raises(Aborted) as caught:
        check(etag(other_name, other_revision), name, revision)
    assert caught.value.reason == "ETAG_MISMATCH"
    assert caught.value.metadata == {"resource": name}
