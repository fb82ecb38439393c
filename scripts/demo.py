"""`make demo`: a load test of a sample API from nothing to stored results, in about half a minute.

It uses the server at OPSPLANE_ADDRESS if one answers there, else it starts one. It ends what it has started, and
nothing else, however it ends itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opsplane.client import DEFAULT_ADDRESS, connect, is_local
from opsplane.loadtesting.v1 import runs_pb2
from opsplane_server.config import default_data_dir

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".opsplane"
LOG = WORK / "demo-server.log"
ANALYZE_REQUEST = WORK / "analyze-petstore.json"
PROJECT = "demo"
SPEC = "petstore"
SAMPLE_PORT = 8080
SERVER_START_SECONDS = 120.0
STOP_SECONDS = 30.0
BAD_VERDICT = 3
SERVICE = "opsplane.loadtesting.v1.LoadTesting"

started = time.monotonic()


class DemoError(Exception):
    """The demo can not go on; the message says why."""


def say(text: str) -> None:
    """Prints a line of progress with the time since the start."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"{bold}[{time.monotonic() - started:5.1f} s] {text}{plain}", flush=True)


def shown(path: Path) -> str:
    """A path as short as it can be from the checkout."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# --- processes that the demo starts


@contextlib.contextmanager
def child(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is gone when the block ends. Ctrl-C in the terminal does not reach it."""
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, text=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def server_command(address: str) -> list[str]:
    """Root's server keeps its data in the default place: PostgreSQL runs as another user, who may not come here."""
    host, _, port = address.rpartition(":")
    flags = [f"--host={host}", f"--port={port}", "--metrics-port=0"]
    return flags if os.geteuid() == 0 else [*flags, f"--data-dir={WORK / 'data'}"]


@contextlib.contextmanager
def server(address: str) -> Iterator[bool]:
    """A server at `address`; True if it was started for this."""
    if asyncio.run(healthy(address)):
        say(f"a server answers at {address}: using it")
        yield False
        return
    if address.startswith("unix"):
        raise DemoError(f"no server answers at {address}, and the demo starts one on host:port alone")
    flags = server_command(address)
    say(f"starting a server: opsplane serve {shlex.join(flags)}  (log: {shown(LOG)})")
    with (
        LOG.open("w") as log,
        child([sys.executable, "-m", "opsplane_server", *flags], stdout=log, stderr=log) as process,
    ):
        deadline = time.monotonic() + SERVER_START_SECONDS
        while not asyncio.run(healthy(address)):
            if process.poll() is not None:
                raise DemoError(f"the server ended: {last_line(LOG)}")
            if time.monotonic() > deadline:
                raise DemoError(f"the server is not ready after {SERVER_START_SECONDS:.0f} s; see {shown(LOG)}")
            time.sleep(0.1)
        say(f"the server is ready at {address}")
        yield True
        say("stopping the server")


async def healthy(address: str) -> bool:
    """Whether a server at `address` serves."""
    async with connect(address) as client:
        try:
            check = health_pb2_grpc.HealthStub(client.channel).Check
            answer = await check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return False
            raise DemoError(f"what answers at {address} is not an Opsplane server: {error.details()}") from None
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def last_line(log: Path) -> str:
    """The last line of a log, its first 500 characters."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line[:500] for line in reversed(lines) if line.strip()), "it has said nothing")


@contextlib.contextmanager
def sample_api() -> Iterator[str]:
    """The sample API; its URL. On port 8080 if that is free, so that calls printed at the end stay right."""
    for port in (SAMPLE_PORT, 0):
        command = [sys.executable, str(ROOT / "examples" / "sample_api.py"), f"--port={port}"]
        with child(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            line = process.stdout.readline()  # it says where it is, or ends
            if line:
                url = next(word for word in line.replace(",", " ").split() if word.startswith("http://"))
                say(f"the sample API is up at {url}")
                yield url
                return
    raise DemoError("the sample API does not start; try `python examples/sample_api.py --port 0`")


# --- steps


def opsplane(address: str, *arguments: str, quiet: bool = False) -> int:
    """Runs the command line and returns its status.

    Ctrl-C is for the command, which shares our terminal: `run` cancels its run. The demo ends when it has ended.
    """
    if not quiet:
        say(f"$ opsplane {shlex.join(arguments)}")
    out = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(
        [sys.executable, "-m", "opsplane.cli", *arguments],
        env={**os.environ, "OPSPLANE_ADDRESS": address},
        stdout=out,
        stderr=out,
    )
    interrupted = False
    try:
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt:
                interrupted = True
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if interrupted:
        raise KeyboardInterrupt
    return status


def step(address: str, *arguments: str) -> None:
    """Runs a command that must succeed."""
    if status := opsplane(address, *arguments):
        raise DemoError(f"`opsplane {shlex.join(arguments)}` ended with status {status}")


def analyze(address: str, url: str) -> None:
    """Analyzes the API's document. It is sent, because a server does not fetch from loopback unless it is told to."""
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as response:  # noqa: S310  # our own, on loopback
        content = response.read().decode()
    request = {"parent": f"projects/{PROJECT}", "content": content, "baseUrl": url}
    ANALYZE_REQUEST.write_text(json.dumps(request, indent=1) + "\n", encoding="utf-8")
    opsplane(address, "loadtest", "specs", "delete", f"{PROJECT}/{SPEC}", quiet=True)  # of the last demo, if any
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder) / "openapi.json"
        document.write_text(content, encoding="utf-8")
        step(address, "loadtest", "analyze", str(document), "--project", PROJECT, "--create-project",
             "--spec-id", SPEC, "--base-url", url)  # fmt: skip


def load_test(address: str, url: str) -> str:
    """Runs the load test and returns its name."""
    run_id = f"demo-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    arguments = ("loadtest", "run", "--project", PROJECT, "--file", shown(ROOT / "examples" / "petstore.yaml"),
                 "--base-url", url, "--run-id", run_id)  # fmt: skip
    status = opsplane(address, *arguments)
    if status not in (0, BAD_VERDICT):
        raise DemoError(f"the load test ended with status {status}")
    return f"projects/{PROJECT}/runs/{run_id}"


async def asked_for(address: str, name: str) -> runs_pb2.Run:
    """The run as it was asked for, with the endpoints' names in it."""
    async with connect(address) as client:
        request = runs_pb2.GetRunScriptRequest(name=name)
        answer: runs_pb2.GetRunScriptResponse = await client.load_testing.GetRunScript(request, timeout=30)
        return answer.run


def print_calls(address: str, url: str, name: str, *, started_server: bool) -> None:
    """Prints the same calls for grpcurl, ready to be pasted."""
    run = asyncio.run(asked_for(address, name))
    create_run = json_format.MessageToDict(runs_pb2.CreateRunRequest(parent=f"projects/{PROJECT}", run=run))
    say("the same calls with grpcurl:")
    if started_server:
        flags = shlex.join(server_command(address))
        print("\n# the demo ends what it started; this starts it again, each in a terminal of its own")
        print(f".venv/bin/opsplane serve {flags}")
        print(f".venv/bin/python examples/sample_api.py --port {url.rpartition(':')[2]}")
    print(f"\n# list the services and what can be called\ngrpcurl -plaintext {address} list {SERVICE}")
    project = {"project": {"title": "Pet store"}, "projectId": "petstore"}
    print(f"\n# create another project\n{grpcurl(address, 'CreateProject', project)}")
    print("\n# analyze an OpenAPI document")
    print(f"grpcurl -plaintext -d @ {address} {SERVICE}/AnalyzeSpec < {shown(ANALYZE_REQUEST)}")
    endpoints = {"parent": f"projects/{PROJECT}/specs/{SPEC}", "filter": 'tag="pets"'}
    print(f"\n# list its endpoints\n{grpcurl(address, 'ListEndpoints', endpoints)}")
    print(f"\n# start the same load test\n{grpcurl(address, 'CreateRun', create_run)}")
    print(f"\n# watch it: a window of figures a second\n{grpcurl(address, 'WatchRun', {'name': name})}")
    print(f"\n# read its stored results\n{grpcurl(address, 'GetRun', {'name': name})}\n", flush=True)


def grpcurl(address: str, method: str, request: dict[str, Any]) -> str:
    """The command for a call."""
    return f"grpcurl -plaintext -d {shlex.quote(json.dumps(request))} {address} {SERVICE}/{method}"


def demo(address: str, *, keep: bool) -> None:
    """All steps."""
    WORK.mkdir(exist_ok=True)
    with server(address) as started_server, sample_api() as url:
        analyze(address, url)
        name = load_test(address, url)
        say("what is stored:")
        step(address, "loadtest", "history", "--project", PROJECT, "--full", "--limit", "5")
        if started_server:
            folder = default_data_dir() if os.geteuid() == 0 else WORK / "data"
            say(f"the results are kept in PostgreSQL under {shown(folder)}")
        print_calls(address, url, name, started_server=started_server)
        say("done")
        if keep:
            say("server and sample API stay up until Ctrl-C")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()


def main() -> None:
    """Reads the options, and says how it went and how long it took."""
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave everything up until Ctrl-C, to try calls")
    keep = parser.parse_args().keep
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    address = os.environ.get("OPSPLANE_ADDRESS") or DEFAULT_ADDRESS
    os.chdir(ROOT)
    status = 0
    try:
        if not is_local(address):
            raise DemoError(f"the sample API is on this machine alone, and {address} is not; unset OPSPLANE_ADDRESS")
        demo(address, keep=keep)
    except KeyboardInterrupt:
        status = 130
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        status = 1
    except grpc.aio.AioRpcError as error:
        print(f"demo: {error.details()} ({error.code().name})", file=sys.stderr)
        status = 1
    say(f"total time {time.monotonic() - started:.1f} s")
    sys.exit(status)


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
