from __future__ import annotations

import base64
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.errors import InvalidArgument
from opsplane_server.rpc.paging import DEFAULT, MAX, next_page_token, page_request

BINDING = "/opsplane.common.v1.Platform/ListAuditEvents|principal=ci"

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
keys = st.lists(st.none() | texts | st.integers(-(2**63), 2**63 - 1), max_size=5)


@given(keys)
def test_round_trip(key: list[str | int | None]) -> None:
    token = next_page_token(BINDING, key)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)
    if len(token) <= 2048:
        assert page_request(0, token, binding=BINDING).key == tuple(key)


@given(keys, st.text(min_size=1))
def test_token_of_another_list_is_refused(key: list[str | int | None], other: str) -> None:
    refused(next_page_token(BINDING + other, key))


@given(st.text(max_size=3000) | st.binary(max_size=100).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_any_text_is_refused(token: str) -> None:
    if token:
        refused(token)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_forged_payload_never_yields_what_a_database_refuses(payload: object) -> None:
    digest = json.loads(base64.urlsafe_b64decode(next_page_token(BINDING, []) + "=="))[0]
    forged = base64.urlsafe_b64encode(json.dumps([digest, payload]).encode()).decode().rstrip("=")
    try:
        key = page_request(0, forged, binding=BINDING).key
    except InvalidArgument:
        return
    assert key is not None
    [part] = key
    assert part is None or type(part) in (str, int)
    if isinstance(part, str):
        assert b"\0" not in part.encode()
    if isinstance(part, int):
        assert -(2**63) <= part < 2**63


def test_deep_nesting_is_refused() -> None:
    refused(base64.urlsafe_b64encode(b"[" * 1500).decode())


def refused(token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        page_request(0, token, binding=BINDING)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]
    assert caught.value.reason == "PAGE_TOKEN_INVALID"


@pytest.mark.parametrize(
    ("key", "kinds", "fits"),
    [
        ([7], (int,), True),
        (["a", None], (str, (int, type(None))), True),
        (["7"], (int,), False),
        ([7, 8], (int,), False),
        ([], (int,), False),
    ],
)
def test_key_types_are_checked(key: list[str | int | None], kinds: tuple[type, ...], fits: bool) -> None:
    token = next_page_token(BINDING, key)
    if fits:
        assert page_request(0, token, binding=BINDING, key_types=kinds).key == tuple(key)
    else:
        with pytest.raises(InvalidArgument):
            page_request(0, token, binding=BINDING, key_types=kinds)


@pytest.mark.parametrize(("asked", "size"), [(0, DEFAULT), (1, 1), (MAX, MAX), (MAX + 1, MAX)])
def test_page_size(asked: int, size: int) -> None:
    page = page_request(asked, "", binding=BINDING)
    assert page.size == size
    assert page.key is None


def test_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        page_request(-1, "", binding=BINDING)
    assert caught.value.violations[0].field == "page_size"
