"""The proxy as a process of its own, in front of small servers that say who they are."""

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from opsplane_server.instances.providers.local.proxy import routes
from opsplane_server.instances.providers.local.proxy.process import LOG_FILE, ROUTES_FILE, ProxyProcess
from opsplane_server.instances.providers.local.proxy.routes import Route, Target
from opsplane_server.storage.accounts import choose_account

from tests.ports import free_port
from tests.postgres_fixtures import reachable_folder
from tests.server_process import kill
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST = "127.0.0.1"

Nodes = Callable[[str], Awaitable["Node"]]


class Node:
    """A server that answers each line with its name and the line, and counts its connections."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.taken = 0
        self.cancels: list[bytes] = []
        self.silent = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def target(self) -> Target:
        return Target(self.name, HOST, self.port)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        self._writers.add(writer)
        try:
            head = await reader.readexactly(8)
            if head[4:8] == b"\x04\xd2\x16\x2e":
                self.cancels.append(head + await reader.readexactly(8))
                return
            line = head + await reader.readline()
            while line.endswith(b"\n") and not self.silent:
                writer.write(self.name.encode() + b" " + line)
                await writer.drain()
                line = await reader.readline()
            while self.silent and await reader.read(1 << 16):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            with suppress(OSError):
                writer.close()


class Client:
    """A connection that says lines."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Client":
        return cls(*await asyncio.open_connection(HOST, port, limit=1 << 26))

    async def ask(self, text: str = "good day") -> str:
        """The name of the node that answers."""
        self.writer.write(text.encode() + b"\n")
        answer = (await self.reader.readline()).decode()
        assert answer.endswith(f" {text}\n"), answer
        return answer.split()[0]

    async def cut(self) -> bool:
        """Waits until the other end has closed the connection."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.transport.abort()


@pytest_asyncio.fixture(loop_scope="module")
async def nodes() -> AsyncIterator[Nodes]:
    started: list[Node] = []

    async def start(name: str) -> Node:
        node = Node(name)
        await node.start()
        started.append(node)
        return node

    yield start
    for node in started:
        await node.stop()


@asynccontextmanager
async def running_proxy() -> AsyncIterator[ProxyProcess]:
    with reachable_folder() as folder:
        proxy = ProxyProcess(folder / "proxy", choose_account(None, folder / "none"))
        try:
            yield proxy
        finally:
            await proxy.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy() -> AsyncIterator[ProxyProcess]:
    """One for all, which each test gives routes of its own."""
    async with running_proxy() as running:
        await running.start()
        yield running


async def serve(proxy: ProxyProcess, *nodes: Node) -> int:
    """Routes a port to these nodes; returns when it is open."""
    port = free_port()
    proxy.write([Route("orders/rw", HOST, port, tuple(node.target for node in nodes))])
    await until(lambda: _listens(port))
    return port


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True


async def test_a_client_talks_to_the_node_of_its_port(proxy: ProxyProcess, nodes: Nodes) -> None:
    node = await nodes("one")
    client = await Client.open(await serve(proxy, node))
    assert [await client.ask(), await client.ask("again, please")] == ["one", "one"]
    client.close()


async def test_connections_are_spread_over_the_nodes_with_the_fewest(proxy: ProxyProcess, nodes: Nodes) -> None:
    first, second = await nodes("first"), await nodes("second")
    port = await serve(proxy, first, second)
    clients = [await Client.open(port) for _ in range(10)]
    answers = [await client.ask() for client in clients]
    assert sorted(answers) == ["first"] * 5 + ["second"] * 5
    for client, answer in zip(clients, answers, strict=True):
        if answer == "first":
            client.close()
    more = []
    await until(lambda: len(first._writers) == 0)
    for _ in range(5):
        clients.append(await Client.open(port))
        more.append(await clients[-1].ask())
    assert more == ["first"] * 5
    for client in clients:
        client.close()


async def test_a_client_waits_for_a_node(proxy: ProxyProcess, nodes: Nodes) -> None:
    port = await serve(proxy)
    client = await Client.open(port)
    answer = asyncio.create_task(client.ask())
    node = await nodes("late")
    assert not answer.done()
    proxy.write([Route("orders/rw", HOST, port, (node.target,))])
    assert await answer == "late"
    client.close()


async def test_a_client_waits_for_a_node_that_refuses(proxy: ProxyProcess, nodes: Nodes) -> None:
    node = await nodes("down")
    port = await serve(proxy, node)
    await node.stop()
    client = await Client.open(port)
    answer = asyncio.create_task(client.ask())
    await until(lambda: _log_has(proxy, "route opened", port=port))
    await node.start()
    assert await answer == "down"
    client.close()


async def test_a_refusing_node_is_passed_over(proxy: ProxyProcess, nodes: Nodes) -> None:
    dead, live = await nodes("dead"), await nodes("live")
    port = await serve(proxy, dead, live)
    await dead.stop()
    for _ in range(4):
        client = await Client.open(port)
        assert await client.ask() == "live"
        client.close()


async def test_a_node_that_breaks_off_before_its_first_word_is_replaced(proxy: ProxyProcess, nodes: Nodes) -> None:
    hung, other = await nodes("hung"), await nodes("other")
    hung.silent = True
    port = await serve(proxy, hung)
    client = await Client.open(port)
    client.writer.write(b"good day")
    await until(lambda: hung.taken == 1)
    client.writer.write(b" sir\n")
    proxy.write([Route("orders/rw", HOST, port, (hung.target, other.target))])
    await until(lambda: _log_has(proxy, "route changed", nodes=["hung", "other"]))
    await hung.stop()
    assert await client.reader.readline() == b"other good day sir\n"
    client.close()


async def test_a_connection_is_cut_when_its_node_dies_or_leaves(proxy: ProxyProcess, nodes: Nodes) -> None:
    old, new = await nodes("old"), await nodes("new")
    port = await serve(proxy, old)
    client, second = await Client.open(port), await Client.open(port)
    assert [await client.ask(), await second.ask()] == ["old", "old"]
    proxy.write([Route("orders/rw", HOST, port, (new.target,))])
    assert await client.cut()
    assert await second.cut()
    third = await Client.open(port)
    assert await third.ask() == "new"
    await new.stop()
    assert await third.cut()
    for each in (client, second, third):
        each.close()


async def test_a_request_to_cancel_reaches_every_node(proxy: ProxyProcess, nodes: Nodes) -> None:
    first, second = await nodes("first"), await nodes("second")
    port = await serve(proxy, first, second)
    request = struct.pack("!iiii", 16, 80877102, 4711, 42)
    client = await Client.open(port)
    client.writer.write(request)
    assert await client.cut()
    assert (first.cancels, second.cancels) == ([request], [request])
    client.close()


async def test_much_data_goes_through_a_slow_reader(proxy: ProxyProcess, nodes: Nodes) -> None:
    node = await nodes("one")
    client = await Client.open(await serve(proxy, node))
    text = "x" * 500_000
    for _ in range(40):
        client.writer.write(text.encode() + b"\n")
    for _ in range(40):
        assert await client.reader.readline() == f"one {text}\n".encode()
    proxied = proxy.find()
    assert proxied is not None
    assert proxied.memory_info().rss < 200 << 20
    client.close()


async def test_it_outlives_its_starter_and_is_found_again(proxy: ProxyProcess, nodes: Nodes) -> None:
    node = await nodes("one")
    port = await serve(proxy, node)
    client = await Client.open(port)
    assert await client.ask() == "one"
    again = ProxyProcess(proxy._folder, proxy._account)
    first, second = proxy.find(), await again.start()
    assert first is not None
    assert second.pid == first.pid
    assert again.routes() == proxy.routes()
    assert await client.ask() == "one"
    client.close()


async def test_two_starters_make_one_proxy() -> None:
    async with running_proxy() as proxy:
        found = await asyncio.gather(*(ProxyProcess(proxy._folder, proxy._account).start() for _ in range(3)))
        await until(lambda: _proxies(proxy) == {found[0].pid})
        assert {process.pid for process in found} == {found[0].pid}


async def test_a_killed_proxy_is_started_again_with_its_routes(proxy: ProxyProcess, nodes: Nodes) -> None:
    node = await nodes("one")
    port = await serve(proxy, node)
    first = proxy.find()
    assert first is not None
    kill(first.pid)
    await until(lambda: proxy.find() is None)
    second = await proxy.start()
    assert second.pid != first.pid
    await until(lambda: _listens(port))
    client = await Client.open(port)
    assert await client.ask() == "one"
    client.close()


async def test_the_number_of_another_process_is_no_proxy() -> None:
    async with running_proxy() as proxy:
        await proxy.start()
        await proxy.stop()
        (proxy._folder / "proxy.pid").write_text(f"{os.getpid()}\n")
        assert proxy.find() is None


async def test_it_does_not_stay_root(proxy: ProxyProcess) -> None:
    await proxy.start()
    found = proxy.find()
    assert found is not None
    await until(lambda: found.uids().real != 0)


async def test_a_damaged_file_changes_nothing(proxy: ProxyProcess, nodes: Nodes) -> None:
    node = await nodes("one")
    port = await serve(proxy, node)
    client = await Client.open(port)
    assert await client.ask() == "one"
    (proxy._folder / ROUTES_FILE).write_text(json.dumps({"routes": [{"name": "orders/rw"}]}))
    await until(lambda: _log_has(proxy, "routes can not be read"))
    assert await client.ask() == "one"
    assert proxy.routes() == []
    client.close()


async def test_a_port_that_is_taken_is_opened_when_it_is_free(proxy: ProxyProcess, nodes: Nodes) -> None:
    node = await nodes("one")
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        proxy.write([Route("orders/rw", HOST, port, (node.target,))])
        await until(lambda: _log_has(proxy, "port can not be opened", port=port))
    await until(lambda: _log_has(proxy, "route opened", port=port))
    client = await Client.open(port)
    assert await client.ask() == "one"
    client.close()


async def test_closed_routes_take_no_connections(proxy: ProxyProcess, nodes: Nodes) -> None:
    node = await nodes("one")
    port = await serve(proxy, node)
    client = await Client.open(port)
    assert await client.ask() == "one"
    proxy.write([])
    assert await client.cut()

    async def closed() -> bool:
        return not await _listens(port)

    await until(closed)
    client.close()


async def test_routes_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "routes.json"
    assert routes.read(file) == ()
    wanted = [
        Route("b/r", HOST, 2, (Target("b-1", HOST, 4), Target("b-2", "::1", 5)), greets=True),
        Route("a/rw", HOST, 1),
    ]
    routes.write(file, wanted)
    assert list(routes.read(file)) == sorted(wanted, key=lambda route: route.name)
    assert os.listdir(tmp_path) == ["routes.json"]


def _logged(proxy: ProxyProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (proxy._folder / LOG_FILE).read_text().splitlines()]


def _log_has(proxy: ProxyProcess, event: str, **facts: object) -> bool:
    return any(record["event"] == event and facts.items() <= record.items() for record in _logged(proxy))


def _proxies(proxy: ProxyProcess) -> set[int]:
    folder = str(proxy._folder)
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if folder in (process.info["cmdline"] or []) and process.status() != psutil.STATUS_ZOMBIE
    }
