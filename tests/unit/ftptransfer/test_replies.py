"""Replies of FTP servers: what is one, whatever pieces it comes in, and what is none."""

# ruff: noqa: E501 - a table is easier to read in lines

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.ftptransfer.failures import ErrorCode, ErrorReason
from opsplane_server.ftptransfer.sessions.refusals import Purpose, refusal
from opsplane_server.ftptransfer.sessions.replies import (
    MAX_LINE,
    MAX_REPLY,
    MalformedReply,
    Reply,
    ReplyParser,
    extended_port,
    passive_address,
    quoted_path,
)

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=60)
CODES = st.integers(100, 559).filter(lambda code: code % 100 < 60)


@st.composite
def replies(draw: st.DrawFn) -> tuple[bytes, Reply]:
    """A reply on the line and as it is read."""
    code = draw(CODES)
    if draw(st.booleans()):
        text = draw(TEXT)
        return f"{code} {text}\r\n".encode(), Reply(code, (text,))
    first, last = draw(TEXT), draw(TEXT)
    # Lines between may look like anything but the last one.
    between = draw(st.lists(TEXT.filter(lambda line: not line.startswith(str(code))), max_size=4))
    lines = (first, *between, last)
    body = "".join(f"{line}\r\n" for line in between)
    return f"{code}-{first}\r\n{body}{code} {last}\r\n".encode(), Reply(code, lines)


@given(st.lists(replies(), max_size=5), st.lists(st.integers(1, 30)))
def test_replies_are_read_in_whatever_pieces_they_come(
    given_replies: list[tuple[bytes, Reply]], cuts: list[int]
) -> None:
    content = b"".join(line for line, _ in given_replies)
    parser = ReplyParser("utf-8")
    found: list[Reply] = []
    for size in cuts:
        found += parser.feed(content[:size])
        content = content[size:]
    found += parser.feed(content)
    assert found == [reply for _, reply in given_replies]
    assert parser.clean


@given(st.binary(max_size=300))
def test_anything_is_read_or_refused(content: bytes) -> None:
    try:
        found = ReplyParser("utf-8").feed(content)
    except MalformedReply:
        return
    assert all(100 <= reply.code < 600 for reply in found)


@pytest.mark.parametrize(
    "line",
    [
        "HTTP/1.1 400 Bad",
        "",
        "22 x",
        "220x",
        "2200 x",
        "999 x",
        "020 x",
        "SSH-2.0-OpenSSH",
        "\N{FULLWIDTH DIGIT TWO}20",
    ],
)
def test_what_is_not_ftp(line: str) -> None:
    with pytest.raises(MalformedReply):
        ReplyParser("utf-8").feed(f"{line}\r\n".encode())


def test_limits() -> None:
    with pytest.raises(MalformedReply):
        ReplyParser("utf-8").feed(b"220 " + b"x" * MAX_LINE + b"\r\n")
    endless = ReplyParser("utf-8")
    with pytest.raises(MalformedReply):
        endless.feed(b"x" * (MAX_LINE + 1))
    parser = ReplyParser("utf-8")
    parser.feed(b"211-\r\n")
    with pytest.raises(MalformedReply):
        parser.feed((b"x" * 1000 + b"\r\n") * (MAX_REPLY // 1000 + 2))


def test_codes_before_each_line() -> None:
    (reply,) = ReplyParser("utf-8").feed(b"211-Features\r\n211-SIZE\r\n SIZE2\r\n211\r\n")
    assert reply.lines == ("Features", "SIZE", " SIZE2", "")


def test_bytes_of_another_encoding_are_no_error() -> None:
    (reply,) = ReplyParser("utf-8").feed(b"550 \xff\xfe\r\n")
    assert reply.code == 550


@given(st.tuples(*[st.integers(0, 255)] * 4), st.integers(1, 65535))
def test_passive_addresses(address: tuple[int, ...], port: int) -> None:
    numbers = ",".join(map(str, (*address, port // 256, port % 256)))
    expected = (".".join(map(str, address)), port)
    for text in (f"Entering Passive Mode ({numbers}).", f"Entering Passive Mode {numbers}", f"={numbers}"):
        assert passive_address(Reply(227, (text,))) == expected


@pytest.mark.parametrize("text", ["", "(1,2,3,4,5)", "(256,0,0,1,1,1)", "(1,2,3,4,0,0)", "(1,2,3,4,5,256)"])
def test_passive_addresses_that_are_none(text: str) -> None:
    with pytest.raises(MalformedReply):
        passive_address(Reply(227, (text,)))


def test_extended_ports() -> None:
    assert extended_port(Reply(229, ("Entering Extended Passive Mode (|||6446|)",))) == 6446
    assert extended_port(Reply(229, ("ok (!!!1!)",))) == 1
    for text in ("", "(|||0|)", "(|||65536|)", "(||6446|)", "(|1|127.0.0.1|6446|)", "(   6446 )"):
        with pytest.raises(MalformedReply):
            extended_port(Reply(229, (text,)))


def test_quoted_paths() -> None:
    assert quoted_path(Reply(257, ('"/a ""b"" c" is the folder',))) == '/a "b" c'
    with pytest.raises(MalformedReply):
        quoted_path(Reply(257, ("/a",)))


@pytest.mark.parametrize(
    ("code", "text", "purpose", "reason", "error_code", "retryable"),
    [
        (530, "Login incorrect.", Purpose.LOGIN, ErrorReason.LOGIN, ErrorCode.CONNECTION_ERROR, False),
        (530, "Sorry, the maximum number of clients (3) for this user", Purpose.LOGIN, ErrorReason.TOO_MANY_SESSIONS, ErrorCode.CONNECTION_ERROR, True),
        (421, "Too many users", Purpose.LOGIN, ErrorReason.TOO_MANY_SESSIONS, ErrorCode.CONNECTION_ERROR, True),
        (500, "Internal error", Purpose.LOGIN, ErrorReason.UNREACHABLE, ErrorCode.CONNECTION_ERROR, True),
        (530, "TLS required", Purpose.LOGIN, ErrorReason.TLS, ErrorCode.CONNECTION_ERROR, False),
        (421, "Timeout", Purpose.READ, ErrorReason.CONNECTION_LOST, ErrorCode.CONNECTION_ERROR, True),
        (425, "Cannot open", Purpose.READ, ErrorReason.DATA_CONNECTION, ErrorCode.CONNECTION_ERROR, True),
        (426, "Aborted", Purpose.WRITE, ErrorReason.CONNECTION_LOST, ErrorCode.CONNECTION_ERROR, True),
        (450, "busy", Purpose.READ, ErrorReason.UNSPECIFIED, ErrorCode.IO_ERROR, True),
        (451, "Local error", Purpose.WRITE, ErrorReason.UNSPECIFIED, ErrorCode.IO_ERROR, True),
        (451, "No space left on device", Purpose.WRITE, ErrorReason.NO_SPACE, ErrorCode.IO_ERROR, True),
        (452, "", Purpose.WRITE, ErrorReason.NO_SPACE, ErrorCode.IO_ERROR, True),
        (552, "", Purpose.WRITE, ErrorReason.NO_SPACE, ErrorCode.IO_ERROR, True),
        (550, "Failed to open file.", Purpose.READ, ErrorReason.NOT_FOUND, ErrorCode.FILE_NOT_FOUND, False),
        (550, "a: No such file or directory", Purpose.READ, ErrorReason.NOT_FOUND, ErrorCode.FILE_NOT_FOUND, False),
        (550, "a: Permission denied", Purpose.READ, ErrorReason.ACCESS_DENIED, ErrorCode.IO_ERROR, False),
        (550, "a: No such file or directory", Purpose.WRITE, ErrorReason.ACCESS_DENIED, ErrorCode.IO_ERROR, False),
        (553, "Could not create file.", Purpose.WRITE, ErrorReason.ACCESS_DENIED, ErrorCode.IO_ERROR, False),
        (522, "SSL connection failed; session reuse required", Purpose.READ, ErrorReason.TLS, ErrorCode.CONNECTION_ERROR, False),
        (530, "Please login", Purpose.READ, ErrorReason.CONNECTION_LOST, ErrorCode.CONNECTION_ERROR, True),
        (500, "what?", Purpose.READ, ErrorReason.UNSPECIFIED, ErrorCode.UNKNOWN_ERROR, True),
    ],
)  # fmt: skip
def test_what_refusals_mean(
    code: int, text: str, purpose: Purpose, reason: ErrorReason, error_code: ErrorCode, retryable: bool
) -> None:
    failure = refusal("RETR", Reply(code, (text,)), purpose)
    assert (failure.reason, failure.code, failure.retryable) == (reason, error_code, retryable)
    assert failure.ftp_code == code
    assert failure.message.startswith(f"RETR: {code}")


@given(CODES, TEXT, st.sampled_from(Purpose))
def test_every_refusal_means_something(code: int, text: str, purpose: Purpose) -> None:
    failure = refusal("X", Reply(code, (text,)), purpose)
    assert failure.code is not ErrorCode.INVALID_CONFIG
    assert len(failure.message) < 400
