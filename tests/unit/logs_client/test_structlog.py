"""The processor of structlog."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog
from opsplane.logs import OpsplaneProcessor
from structlog.testing import CapturingLogger

from tests.unit.logs_client.collecting import Collecting


@pytest.fixture
def shipper() -> Collecting:
    return Collecting()


def logger(shipper: Collecting, *before: Any, after: Any = ()) -> tuple[Any, CapturingLogger]:
    output = CapturingLogger()
    processors = [*before, OpsplaneProcessor(shipper), *after, structlog.processors.JSONRenderer()]
    return structlog.wrap_logger(output, processors=processors), output


def test_events_are_shipped_and_handed_on(shipper: Collecting) -> None:
    log, output = logger(shipper, structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"))
    log.warning("stock is low", order={"id": 42}, user_id="u", logger="orders")
    record = shipper.last
    assert (record.level, record.message, record.user_id, record.logger) == (4, "stock is low", "u", "orders")
    assert json.loads(record.metadata_json) == {"order": {"id": 42}}
    rendered = json.loads(output.calls[0].args[0])
    assert {"event", "order", "user_id", "level", "timestamp", "logger"} == set(rendered)
    assert record.timestamp.ToJsonString()[:23] == rendered["timestamp"][:23]


def test_the_method_says_the_level_without_a_processor_for_it(shipper: Collecting) -> None:
    log, _ = logger(shipper)
    log.error("x")
    assert shipper.last.level == 5


def test_exceptions(shipper: Collecting) -> None:
    log, output = logger(shipper, after=[structlog.processors.format_exc_info])
    try:
        raise KeyError("k")
    except KeyError as error:
        log.exception("one")
        log.error("two", exc_info=error)
    for record in shipper.records:
        assert record.error_type == "KeyError"
        assert "raise KeyError" in record.stack_trace
        assert not record.metadata_json
    assert "raise KeyError" in output.calls[0].args[0], "what comes after formats it too"
    log, _ = logger(shipper, structlog.processors.format_exc_info)
    try:
        raise KeyError("k")
    except KeyError:
        log.exception("three")
    assert "raise KeyError" in shipper.last.stack_trace


def test_a_fault_in_shipping_does_not_reach_the_caller(shipper: Collecting) -> None:
    log, output = logger(shipper)
    shipper.log_fields = None  # type: ignore[method-assign, assignment]
    log.info("x")
    assert len(output.calls) == 1
    assert shipper.stats().dropped == 1
