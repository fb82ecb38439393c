"""A target that is fast enough to keep k6 busy: nginx where there is one, else a small server of our own.

Both answer every call alike and tell how many calls they have had, so that all kinds of runs are counted by the same
counter, which is none of theirs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvloop

from tests.ports import free_port

START_SECONDS = 10.0
BODY = b'{"id": 7, "name": "Pet 7", "kind": "cat"}'

# One process; the default limits of nginx on calls a connection would have k6 connect again and again.
NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 3600;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        default_type application/json;
        location / {{ return 200 '{body}'; }}
        location = /calls {{ stub_status; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Target:
    """What is called. `kind` names the server."""

    url: str
    kind: str

    def calls(self) -> int:
        """Calls that it has had, with this one."""
        with urllib.request.urlopen(f"{self.url}/calls", timeout=10) as response:  # noqa: S310  # our own, on loopback
            # stub_status: the third number of the line below "server accepts handled requests"
            return int(response.read().split()[9])


@contextmanager
def running_target(folder: Path) -> Iterator[Target]:
    """The target, until the block ends; it inherits the cores of this process."""
    port = free_port()
    search = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    if nginx := shutil.which("nginx", path=search):
        version = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True).stderr
        kind = version.rpartition(":")[2].strip()
        configuration = folder / "nginx.conf"
        configuration.write_text(NGINX.format(folder=folder, port=port, body=BODY.decode()), encoding="utf-8")
        command = [nginx, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(configuration)]
    else:
        kind = "asyncio server on uvloop"
        command = [sys.executable, "-m", "tests.bench.loadtest_target", str(port)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            target = Target(f"http://127.0.0.1:{port}", kind)
            _wait(target, process)
            yield target
        finally:
            process.terminate()


def _wait(target: Target, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            target.calls()
            return
        except urllib.error.URLError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class _Protocol(asyncio.Protocol):
    """Answers GET calls, which may come in pieces or several at a time."""

    calls = 0

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *calls, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for call in calls:
            _Protocol.calls += 1
            body = _status(self.calls) if call.startswith(b"GET /calls ") else BODY
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )


def _status(calls: int) -> bytes:
    """The text of nginx's stub_status as far as `Target.calls` reads it."""
    return b"Active connections: 1\nserver accepts handled requests\n %d %d %d\n" % (calls, calls, calls)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Protocol, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    uvloop.run(_serve(parser.parse_args().port))
