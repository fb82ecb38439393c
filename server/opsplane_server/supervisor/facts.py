"""What the parent tells a worker, and a worker its parent.

The parent writes one `WorkerFacts` as a line of JSON to the worker's standard input and keeps it open: its end means
that the parent is dead. The worker writes a `Report` a line to a pipe.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from opsplane_server.config import Settings
from opsplane_server.config_types import REVEALED


class WorkerFacts(BaseModel):
    """The settings, and what only the parent knows.

    address: where to serve, `127.0.0.1:50051`; the parent holds the port, all workers listen on it.
    local_address: the same in plain text and on loopback, for programs that the server starts. Equal to `address`
        where that is so already.
    dsn: the database, embedded or not, with its password.
    run_folder: private, for unix sockets.
    node: this installation: a data folder on a machine.
    lock_fd: held open to say that this worker lives.
    report_fd: where it reports.
    """

    model_config = ConfigDict(frozen=True)

    index: int
    settings: Settings
    address: str
    local_address: str
    dsn: str = Field(repr=False)
    run_folder: Path
    node: str
    lock_fd: int
    report_fd: int = -1

    @property
    def metrics_socket(self) -> Path:
        """Where the worker tells its metrics."""
        return self.run_folder / f"metrics-{self.index}.sock"

    @property
    def peer_socket(self) -> Path:
        """Where the worker serves its own calls from service to service."""
        return self.run_folder / f"peer-{self.index}.sock"

    def to_line(self) -> bytes:
        """One line of JSON, with all secrets; the database's password once, in `dsn`."""
        kept = self.model_dump_json(exclude={"settings": {"database": {"password"}}}, context=REVEALED)
        return kept.encode() + b"\n"


class State(StrEnum):
    """How a worker is."""

    STARTING = "starting"
    SERVING = "serving"
    NOT_SERVING = "not_serving"
    FAILED = "failed"


class Report(BaseModel):
    """A worker's new state; a failed one says why."""

    model_config = ConfigDict(frozen=True)

    state: State
    message: str = ""
