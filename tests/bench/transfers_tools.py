"""The programs that transfers are compared with, with ten connections each and their own settings otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.ftp_servers.base import PASSWORD, FtpProcess

CONNECTIONS = 10
TIMEOUT = 300


@dataclass(frozen=True, slots=True)
class Load:
    """All files of a folder, down to `destination` or up from `source`; paths on the FTP server begin at its root."""

    source: str
    destination: str
    names: Sequence[str]
    up: bool


@dataclass(frozen=True, slots=True)
class Run:
    """How long a program took, and its CPU time; both in seconds."""

    seconds: float
    cpu: Mapping[str, float]


def missing() -> list[str]:
    """Programs that are not installed."""
    return [name for name in TOOLS if shutil.which(name) is None]


def run(tool: str, server: FtpProcess, load: Load, folder: Path) -> Run:
    """Brings a load. RuntimeError with what the program said if it fails."""
    command, environment = TOOLS[tool](server, load, folder)
    output = folder / f"{tool}.out"
    with output.open("wb") as written:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            env={**os.environ, "HOME": str(folder), **environment},
            start_new_session=True,
        )
        # Popen does not tell what the process needed.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{tool} ended with {process.returncode}: {output.read_text(errors='replace')[-2000:]}")
    return Run(seconds, {"client": usage.ru_utime + usage.ru_stime})


Command = tuple[Sequence[str], Mapping[str, str]]


def _path(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, "see `missing`"
    return found


def _lftp(server: FtpProcess, load: Load, folder: Path) -> Command:
    mirror = f"mirror -P {CONNECTIONS} --use-pget-n=1"
    ends = f'"{load.source}" "{load.destination}"'
    script = folder / "lftp.script"
    script.write_text(
        f"set net:max-retries 1\nset cmd:fail-exit yes\nset net:connection-limit {CONNECTIONS}\n"
        f'open -u "{server.user}","{PASSWORD}" -p {server.port} {server.host}\n'
        f"{mirror}{' -R' if load.up else ''} {ends}\n"
    )
    return [_path("lftp"), "-f", str(script)], {}


def _rclone(server: FtpProcess, load: Load, folder: Path) -> Command:
    hidden = subprocess.run(
        [_path("rclone"), "obscure", PASSWORD], capture_output=True, text=True, check=True, timeout=30
    )
    environment = {
        "RCLONE_CONFIG": str(folder / "rclone.conf"),
        "RCLONE_CONFIG_BENCH_TYPE": "ftp",
        "RCLONE_CONFIG_BENCH_HOST": server.host,
        "RCLONE_CONFIG_BENCH_PORT": str(server.port),
        "RCLONE_CONFIG_BENCH_USER": server.user,
        "RCLONE_CONFIG_BENCH_PASS": hidden.stdout.strip(),
    }
    source, destination = load.source, load.destination
    ends = (source, f"bench:{destination}") if load.up else (f"bench:{source}", destination)
    return [_path("rclone"), "copy", "--transfers", str(CONNECTIONS), "--checkers", "1", *ends], environment


def _curl(server: FtpProcess, load: Load, folder: Path) -> Command:
    url = f"ftp://{server.host}:{server.port}"
    pairs = (
        (f"upload-file = {load.source}/{name}", f"url = {url}{load.destination}/{name}")
        if load.up
        else (f"url = {url}{load.source}/{name}", f"output = {load.destination}/{name}")
        for name in load.names
    )
    lines = [f'user = "{server.user}:{PASSWORD}"', *(line for pair in pairs for line in pair)]
    script = folder / "curl.config"
    script.write_text("\n".join(lines) + "\n")
    return [_path("curl"), "-Z", "--parallel-max", str(CONNECTIONS), "-sS", "--fail-early", "-K", str(script)], {}


TOOLS: Mapping[str, Callable[[FtpProcess, Load, Path], Command]] = {"lftp": _lftp, "rclone": _rclone, "curl": _curl}
