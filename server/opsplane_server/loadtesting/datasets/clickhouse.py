"""Rows of a query to a ClickHouse server, over its native protocol. Blocks: it runs in a process of its own.

The query can read and nothing else: it is sent with the setting `readonly`, but for a user who has it already, and whom
it then forbids to set anything. The server is asked to stop by itself at the limits of rows and of time; here they are
kept to in any case.
"""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from clickhouse_driver import Client, errors

from opsplane_server.loadtesting.addresses import may_connect
from opsplane_server.loadtesting.datasets.model import DEFAULT_LIMIT, DEFAULT_TIMEOUT, ClickHouseQuery, Rows
from opsplane_server.loadtesting.datasets.values import RowsError, Writer, check_fields, plain

PORT: Final = 9000
TLS_PORT: Final = 9440
CONNECT_SECONDS: Final = 10.0

# Less than the time that this process is given to end.
_CANCEL_SECONDS: Final = 1.0
_BLOCK_ROWS: Final = 8192
_MESSAGE_LENGTH: Final = 500
_TRACE: Final = re.compile(r"[.,]? Stack trace:.*", re.DOTALL)
_CODE: Final = re.compile(r"^Code: \d+\.\s*")
_ADDRESS: Final = re.compile(r" ?\(\S+:\d+\)$")
_TLS: Final = re.compile(r"\[SSL: \w+\] | ?\(_ssl\.c:\d+\)")
_PREFIX: Final = re.compile(r"^(?:Code: \d+\.\s*)?(?:DB::\w*Exception: )*")


class _Interrupted(BaseException):
    """No Exception: with those the driver closes the connection before the server can be told."""


def query(source: ClickHouseQuery, password: str, limit: int = 0) -> Rows:
    """The first rows of the query: at most its own limit, and `limit` unless 0. RowsError says what went wrong."""
    timeout = (source.timeout or DEFAULT_TIMEOUT).total_seconds()
    most = min(limit or source.limit or DEFAULT_LIMIT, source.limit or DEFAULT_LIMIT)
    try:
        client = _connect(source, password, timeout)
        try:
            with _interrupted_after(timeout):
                return _rows(client, source.query, most, timeout)
        except (_Interrupted, RowsError) as error:
            _cancel(client)
            if isinstance(error, RowsError):
                raise
            raise RowsError(f"the query was not done within {timeout:g} s") from None
        finally:
            client.disconnect()
    except errors.ServerException as error:
        raise RowsError(f"ClickHouse refuses: {_message(error.message or '', password)}") from None
    except (errors.SocketTimeoutError, TimeoutError):
        # The socket's own limit is the same.
        raise RowsError(f"the query was not done within {timeout:g} s") from None
    except (errors.Error, OSError, EOFError) as error:
        raise RowsError(f"ClickHouse breaks off: {_message(str(error) or type(error).__name__, password)}") from None


def _connect(source: ClickHouseQuery, password: str, timeout: float) -> Client:
    # A column of times without a zone is in the server's, unless that is our own: so both become UTC.
    os.environ["TZ"] = "UTC"
    time.tzset()
    port = source.port or (TLS_PORT if source.tls else PORT)
    problem: Exception | None = None
    for address in _addresses(source.host, port):
        client = Client(
            address,
            port=port,
            database=source.database or "default",
            user=source.user or "default",
            password=password,
            client_name="opsplane",
            secure=source.tls,
            server_hostname=source.host,
            connect_timeout=min(CONNECT_SECONDS, timeout),
            send_receive_timeout=timeout,
            disable_reconnect=True,
        )
        # Left out, the system's authorities are used; the driver puts in a list of its own.
        client.connection.ssl_options.pop("ca_certs", None)
        try:
            client.connection.connect()
        except (errors.NetworkError, errors.SocketTimeoutError) as error:
            problem = error
            continue
        except (EOFError, errors.UnexpectedPacketFromServerError):
            client.disconnect()
            hint = "it may want TLS" if not source.tls else "it may be another server"
            raise RowsError(f"no ClickHouse answers at {source.host}:{port}; {hint}") from None
        except BaseException:
            client.disconnect()
            raise
        client.connection.server_info.timezone = "UTC"
        return client
    raise RowsError(f"{source.host}:{port} cannot be reached: {_network(problem, tls=source.tls)}")


def _addresses(host: str, port: int) -> list[str]:
    """Databases are in private networks; addresses of the machine's own surroundings stay closed all the same."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RowsError(f"{host} cannot be found: {getattr(error, 'strerror', None) or error}") from None
    addresses = dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)
    allowed = [each for each in addresses if may_connect(ipaddress.ip_address(each), allow_private=True)]
    if not allowed:
        raise RowsError(f"{host} has only addresses that are not allowed: link-local or multicast")
    return allowed


def _rows(client: Client, text: str, most: int, timeout: float) -> Rows:
    settings = {
        "readonly": 2,
        "max_execution_time": max(1, round(timeout)),
        "max_result_rows": most,
        "result_overflow_mode": "break",
        "max_block_size": min(_BLOCK_ROWS, most),
    }
    # 1 forbids a user to set anything, 2 anything but this.
    match _readonly(client):
        case "1":
            settings = {}
        case "2":
            del settings["readonly"]
    result: Iterator[Sequence[Any]] = client.execute_iter(text, settings=settings, with_column_types=True)
    columns = next(result, None)
    if not columns:
        raise RowsError("the query gives no rows: it is no SELECT")
    fields = [str(name) for name, _ in columns]
    check_fields(fields, "column")
    writer = Writer(fields)
    for number, row in enumerate(result, start=1):
        writer.add(plain(value) for value in row)
        if number == most:
            break
    return writer.rows()


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Raises _Interrupted after so long, and at SIGTERM, when nobody waits any more.

    The driver knows limits of single reads alone, and a server tells its progress all the time.
    """

    def interrupt(number: int, frame: object) -> None:
        raise _Interrupted

    numbers = signal.SIGALRM, signal.SIGTERM
    before = [signal.signal(number, interrupt) for number in numbers]
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _cancel(client: Client) -> None:
    """Has the server end the query, which it may not do when the connection is gone, and waits for it a little."""
    connection = client.connection
    until = time.monotonic() + _CANCEL_SECONDS
    with suppress(errors.Error, OSError, EOFError, AttributeError):  # of a connection that is closed already
        connection.send_cancel()
        connection.socket.shutdown(socket.SHUT_WR)
        connection.socket.settimeout(_CANCEL_SECONDS)
        # Closed with something unread, it would be reset, and what was sent last be lost.
        while connection.socket.recv(1 << 16) and time.monotonic() < until:
            pass


def _readonly(client: Client) -> str:
    found = client.execute("SELECT value FROM system.settings WHERE name = 'readonly'")
    return str(found[0][0]) if found else "0"


def _network(error: Exception | None, *, tls: bool) -> str:
    """What a connection failed of, in the words of the system and without the address once more."""
    if isinstance(error, errors.SocketTimeoutError):
        return "it does not answer in time"
    text = _CODE.sub("", _ADDRESS.sub("", _TLS.sub("", str(error))))
    if "reset" in text and not tls:
        text += "; it may want TLS"
    if "wrong version number" in text:
        text += "; it may not speak TLS"
    return text


def _message(text: str, password: str) -> str:
    """What a server says, without its stack trace, and without the password should it say that."""
    text = _PREFIX.sub("", _TRACE.sub("", text)).strip().removesuffix(".")
    if password:
        text = text.replace(password, "***")
    return text if len(text) <= _MESSAGE_LENGTH else f"{text[:_MESSAGE_LENGTH]}…"
