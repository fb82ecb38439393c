"""A real Kafka for tests: a broker in KRaft mode on loopback, with ports of its own, to be killed and restarted.

    def test_it(kafka: KafkaBroker) -> None:      # one a session, topics are a test's own
        producer = AIOKafkaProducer(bootstrap_servers=kafka.address)

scripts/kafka.sh puts the jars into the cache. Without them tests are skipped, and fail under CI.
"""

from __future__ import annotations

import base64
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.components import cache_folder, lacking
from tests.ports import free_ports

VERSION = "4.1.0"

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0

_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{broker}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={folder}/data
num.partitions=3
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# A broker that was killed is taken back when its old registration has run out.
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=200
# Tests write little.
log.segment.bytes=16777216
log.cleaner.dedupe.buffer.size=4194304
num.network.threads=2
num.io.threads=2
background.threads=2
"""

_SECURE = """
sasl.enabled.mechanisms=PLAIN
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={certificate}
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
    user_{user}="{password}";
"""

_JAVA_OPTIONS = ("-Xmx384m", "-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=WARN")

_LOGGING = """<?xml version="1.0"?>
<Configuration status="ERROR">
  <Appenders><Console name="out"><PatternLayout pattern="%d %p %c{1} %m%n"/></Console></Appenders>
  <Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


def jars() -> Path:
    """The folder of Kafka's jars; it may be missing."""
    return cache_folder() / f"kafka-{VERSION}" / "libs"


def require_kafka() -> None:
    """Skips the test where Kafka is not installed; under CI that is a failure."""
    missing = (
        "java" if shutil.which("java") is None else "" if jars().is_dir() else f"Kafka {VERSION} (scripts/kafka.sh)"
    )
    if missing:
        lacking(f"{missing} is not installed")


class KafkaBroker:
    """One broker over a folder. Its address stays the same when it is started again.

    `certificate` turns on another listener, with TLS and a password: a PEM file of the key and its certificates.
    """

    user, password = "opsplane", "sesame"

    def __init__(self, folder: Path, certificate: Path | None = None) -> None:
        self._folder = folder
        self._certificate = certificate
        self._ports = free_ports(3)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._format()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """What clients connect to."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def secure_address(self) -> str:
        """The same with TLS, for `user` with `password` by SASL PLAIN."""
        return f"127.0.0.1:{self._ports[2]}"

    @property
    def pid(self) -> int:
        """The broker's process."""
        assert self._process is not None, "it was never started"
        return self._process.pid

    def start(self) -> None:
        """Starts it, for the first time or again over the same data; returns when it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java(), "kafka.Kafka", str(self._properties)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(self._ports[0]):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"Kafka did not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it, nicely if it goes."""
        try:
            self._end(signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self._end(signal.SIGKILL)

    def tool(self, name: str, *arguments: str, text: str = "") -> str:
        """Runs a program of Kafka, such as `org.apache.kafka.tools.ConsoleProducer`, on this broker; what it prints."""
        command = [*self._java(), name, "--bootstrap-server", self.address, *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def _properties(self) -> Path:
        return self._folder / "server.properties"

    def _format(self) -> None:
        broker, controller, secure = self._ports
        text = _PROPERTIES.format(broker=broker, controller=controller, folder=self._folder)
        if self._certificate is not None:
            text = re.sub("(?m)^((advertised.)?listeners=.*)$", rf"\1,SECURE://127.0.0.1:{secure}", text)
            text = re.sub("(?m)^(listener.security.protocol.map=.*)$", r"\1,SECURE:SASL_SSL", text)
            text += _SECURE.format(certificate=self._certificate, user=self.user, password=self.password)
        self._properties.write_text(text)
        (self._folder / "log4j2.xml").write_text(_LOGGING)
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        command = [*self._java(), "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._properties)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def _java(self) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self._folder / 'log4j2.xml'}"
        return ["java", *_JAVA_OPTIONS, logging, "-cp", f"{jars()}/*"]

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(_STOP_SECONDS)


@contextmanager
def running_broker(certificate: Path | None = None) -> Iterator[KafkaBroker]:
    """A broker of one's own, for tests that hurt it or ask for more."""
    require_kafka()
    folder = Path(tempfile.mkdtemp(prefix="opsplane-kafka-"))
    try:
        with KafkaBroker(folder, certificate) as broker:
            yield broker
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaBroker]:
    """The session's broker; nobody may hurt it. Topics that are written to come into being, with three partitions."""
    with running_broker() as broker:
        yield broker


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
