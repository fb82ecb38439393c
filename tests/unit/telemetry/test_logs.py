"""What a log line looks like."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opsplane_server.config import LoggingSettings
from opsplane_server.telemetry.logs import configure, redact

Written = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def written(stream: io.StringIO) -> Written:
    configure(LoggingSettings(level="INFO", format="auto"), worker=3, file=stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_the_common_fields_first_and_its_own(written: Written) -> None:
    structlog.get_logger("opsplane_server.some").info("run started", run="projects/a/runs/b", count=2)
    [record] = written()
    assert list(record)[:6] == ["timestamp", "level", "event", "logger", "service", "worker"]
    assert record["level"] == "info"
    assert record["event"] == "run started"
    assert record["logger"] == "opsplane_server.some"
    assert (record["service"], record["worker"]) == ("opsplane", 3)
    assert (record["run"], record["count"]) == ("projects/a/runs/b", 2)


def test_libraries_write_the_same_way(written: Written) -> None:
    logging.getLogger("asyncpg.pool").warning("slow by %d s", 3)
    logging.getLogger("asyncpg.pool").info("nothing", extra={"a": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)
    first, second, third = written()
    assert first["event"] == "slow by 3 s"
    assert (first["level"], first["logger"], first["worker"]) == ("warning", "asyncpg.pool", 3)
    assert second["level"] == "info"
    assert third["logger"] == "py.warnings"


def test_lower_levels_are_left_out(written: Written) -> None:
    structlog.get_logger("a").debug("detail")
    logging.getLogger("a").debug("detail")
    assert written() == []


def test_what_looks_secret_is_blotted_out(written: Written) -> None:
    structlog.get_logger("a").info(
        "connected",
        password="hunter2",
        Authorization="Bearer hunter2",
        k6_token="hunter2",
        settings={"api_key": "hunter2", "deep": {"db_passwd": "hunter2"}, "user": "me"},
        target="projects/a",
    )
    [record] = written()
    assert "hunter2" not in json.dumps(record)
    assert record["settings"]["user"] == "me"
    assert record["target"] == "projects/a"


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "password", "x_token", "b"]), st.one_of(st.integers(), st.text())))
def test_redaction_keeps_keys_and_harmless_values(fields: dict[str, Any]) -> None:
    result = redact(None, "info", dict(fields))
    assert result.keys() == fields.keys()
    for key, value in fields.items():
        assert result[key] == (value if key in ("a", "b") else "[redacted]")


def test_a_line_tells_its_trace(written: Written) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("work") as span:
        structlog.get_logger("a").info("inside")
        logging.getLogger("b").info("inside")
    structlog.get_logger("a").info("outside")
    own, foreign, outside = written()
    context = span.get_span_context()
    for record in (own, foreign):
        assert record["trace_id"] == trace.format_trace_id(context.trace_id)
        assert record["span_id"] == trace.format_span_id(context.span_id)
    assert "trace_id" not in outside


def test_exceptions_stay_on_their_line(written: Written) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        structlog.get_logger("a").exception("failed")
        logging.getLogger("b").exception("failed")
    for record in written():
        assert "ValueError: first\nsecond" in record["exception"]


def test_console_is_for_people(stream: io.StringIO) -> None:
    configure(LoggingSettings(level="DEBUG", format="console"), file=stream)
    structlog.get_logger("a").debug("run started", token="hunter2")
    line = stream.getvalue()
    assert "run started" in line
    assert "hunter2" not in line
    with pytest.raises(json.JSONDecodeError):
        json.loads(line)
