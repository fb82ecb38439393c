"""How to reach a Kafka cluster."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from aiokafka.helpers import create_ssl_context

from opsplane_server.errors import FailedPrecondition

_SELDOM_SECONDS: Final = 60.0
_CANCEL_SECONDS: Final = 15.0

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True, slots=True)
class Topics:
    """Names of the topics, and of the group that reads the first."""

    tasks: str = "ftp-tasks"
    results: str = "ftp-results"
    failures: str = "ftp-failures"
    group: str = "ftp-pooler"


@dataclass(frozen=True, slots=True)
class KafkaCluster:
    """Brokers to begin with (`host:port`), and what they ask for."""

    bootstrap_servers: Sequence[str]
    security_protocol: SecurityProtocol = "PLAINTEXT"
    sasl_mechanism: SaslMechanism = "PLAIN"
    sasl_username: str = ""
    sasl_password: str = field(default="", repr=False)
    ssl_ca_file: Path | None = None
    ssl_cert_file: Path | None = None
    ssl_key_file: Path | None = None
    ssl_check_hostname: bool = True

    def options(self) -> dict[str, Any]:
        """Arguments for every client of aiokafka. FailedPrecondition if a certificate can not be read."""
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.bootstrap_servers),
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        if self.security_protocol.endswith("SSL"):
            options["ssl_context"] = self._context()
        return options

    def _context(self) -> ssl.SSLContext:
        try:
            context: ssl.SSLContext = create_ssl_context(
                cafile=self.ssl_ca_file, certfile=self.ssl_cert_file, keyfile=self.ssl_key_file
            )
        except OSError as error:  # ssl.SSLError included
            raise FailedPrecondition(
                f"the certificates for Kafka can not be used: {error}", reason="KAFKA_TLS"
            ) from error
        context.check_hostname = self.ssl_check_hostname
        return context


async def end(task: asyncio.Task[None]) -> None:
    """Cancels a task that uses aiokafka, and returns when it has ended.

    A client that is being closed may take the cancellation for that of a task of its own, and swallow it. So the task
    must also know by itself that it is to end.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=_CANCEL_SECONDS)


class _Seldom(logging.Filter):
    """Lets the same complaint pass once a minute: without a broker, aiokafka repeats it ten times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._last.get(record.msg, -_SELDOM_SECONDS) < _SELDOM_SECONDS:
            return False
        self._last[record.msg] = now
        return True


def quieten_driver() -> None:
    """Sets up the log of aiokafka, once a process: what is usual is not told, what goes wrong is told seldom."""
    for name in ("client", "cluster", "conn", "producer.sender", "consumer.fetcher", "consumer.group_coordinator"):
        logger = logging.getLogger(f"aiokafka.{name}")
        logger.setLevel(logging.WARNING)
        if not any(isinstance(present, _Seldom) for present in logger.filters):
            logger.addFilter(_Seldom())
