"""Running the engines' programs: as their account, to the end, and never with anything secret in sight."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from opsplane_server.errors import FailedPrecondition
from opsplane_server.storage.accounts import Account
from opsplane_server.storage.binaries import environment

log = structlog.get_logger(__name__)

_KEPT_LINES = 200

Line = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Installation:
    """Programs of one version of an engine. folder: with `bin`, `lib` and `share`."""

    version: str
    folder: Path

    @property
    def major(self) -> str:
        """`18` of `18.4`."""
        return self.version.partition(".")[0]

    def program(self, name: str) -> str:
        """The path of one of its programs."""
        return str(self.folder / "bin" / name)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. output: the last lines of both its streams."""

    returncode: int
    output: str

    @property
    def last_line(self) -> str:
        """The line that says most: the last error, else the last."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        errors = [line for line in lines if "FATAL" in line or "error:" in line.lower()]
        return (errors or lines or ["it has said nothing"])[-1]


async def run(
    account: Account,
    command: Sequence[str | Path],
    *,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Line | None = None,
    check: bool = True,
) -> Outcome:
    """Runs a program to its end; when this is cancelled, the program and what it started are killed first.

    input: what it reads, the place for passwords. env: added to the bare environment. on_line: told each line, or
    part that ends with a carriage return, of both streams. FailedPrecondition (PROGRAM_FAILED) if it fails, unless
    `check` is false.
    """
    words = [str(word) for word in command]
    program = Path(words[0]).name
    child = await _started(words, account, input is not None, environment() | dict(env or {}), cwd or Path("/"))
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_write(child, input or b""))
            tasks.create_task(_read(child, lines, on_line))
        await _exited(child)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        # The kernel ends it now; whoever asked must be able to remove its files right after.
        await asyncio.shield(_exited(child))
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            raise error.exceptions[0] from None
        raise
    finally:
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()
    outcome = Outcome(child.returncode, "\n".join(lines))
    if check and outcome.returncode != 0:
        log.warning("program failed", program=program, status=outcome.returncode, output=outcome.output[-2000:])
        raise FailedPrecondition(
            f"{program} failed: {outcome.last_line}", reason="PROGRAM_FAILED", metadata={"program": program}
        )
    return outcome


def output(command: Sequence[str | Path]) -> str:
    """What a program that is quick and changes nothing writes, as this process; "" if it fails. Blocks."""
    words = [str(word) for word in command]
    result = subprocess.run(words, check=False, capture_output=True, text=True, cwd="/", env=environment())
    return result.stdout if result.returncode == 0 else ""


async def _started(
    words: Sequence[str], account: Account, reads: bool, env: Mapping[str, str], cwd: Path
) -> subprocess.Popen[bytes]:
    # Not by asyncio: uvloop's processes can not run as another account.
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE if reads else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
            **account.popen_options,
        )

    task = asyncio.ensure_future(asyncio.to_thread(start))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if task.exception() is None:
            with task.result() as child:
                os.killpg(child.pid, signal.SIGKILL)
        raise


async def _exited(child: subprocess.Popen[bytes]) -> None:
    """Waits for its end and takes its status."""
    if child.returncode is not None:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    descriptor = os.pidfd_open(child.pid)
    try:
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    child.wait()


async def _write(child: subprocess.Popen[bytes], content: bytes) -> None:
    if child.stdin is None:
        return
    stdin = child.stdin

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):  # its status tells more
            stdin.write(content)
            stdin.close()

    await asyncio.to_thread(write)


async def _read(child: subprocess.Popen[bytes], lines: deque[str], on_line: Line | None) -> None:
    assert child.stdout is not None
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), child.stdout
    )
    try:
        rest = b""
        while chunk := await reader.read(65536):
            *complete, rest = re.split(rb"[\r\n]", rest + chunk)
            rest = rest[-65536:]  # a program that never ends its line must not fill our memory
            for part in complete:
                if part:
                    await _take(part, lines, on_line)
        if rest:
            await _take(rest, lines, on_line)
    finally:
        transport.close()


async def _take(part: bytes, lines: deque[str], on_line: Line | None) -> None:
    text = part.decode(errors="replace")
    lines.append(text)
    if on_line is not None:
        await on_line(text)
