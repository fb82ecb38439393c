"""The handler of standard logging."""

from __future__ import annotations

import json
import logging
import logging.config

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opsplane.logs import OpsplaneHandler

from tests.unit.logs_client.collecting import Collecting


@pytest.fixture
def shipper() -> Collecting:
    return Collecting()


@pytest.fixture
def logger(shipper: Collecting) -> logging.Logger:
    made = logging.Logger("app.part", level=1)
    made.addHandler(OpsplaneHandler(shipper))
    return made


@pytest.mark.parametrize(
    ("number", "level"), [(5, 1), (10, 2), (15, 2), (20, 3), (25, 3), (30, 4), (40, 5), (45, 5), (50, 6), (90, 6)]
)
def test_levels(shipper: Collecting, logger: logging.Logger, number: int, level: int) -> None:
    logger.log(number, "x")
    assert shipper.last.level == level


def test_fields(shipper: Collecting, logger: logging.Logger) -> None:
    logger.info("hello %s", "you", extra={"user_id": "u", "http_status": 200, "color": "blue"})
    record = shipper.last
    assert (record.message, record.logger, record.thread, record.service) == (
        "hello you", "app.part", "MainThread", "svc"
    )  # fmt: skip
    assert (record.user_id, record.http_status, dict(record.metadata)) == ("u", 200, {"color": "blue"})
    assert not record.metadata_json
    logger.info("nested", extra={"order": {"id": 42}})
    assert json.loads(shipper.last.metadata_json) == {"order": {"id": 42}}
    logger.info("plain")
    assert not shipper.last.metadata
    assert not shipper.last.metadata_json
    assert not shipper.last.trace_id


def test_exceptions(shipper: Collecting, logger: logging.Logger) -> None:
    try:
        raise KeyError("k")
    except KeyError:
        logger.exception("failed")
    record = shipper.last
    assert (record.message, record.error_type) == ("failed", "KeyError")
    assert "raise KeyError" in record.stack_trace
    logger.error("without one", exc_info=True)
    assert not shipper.last.error_type
    logger.info("stack", stack_info=True)
    assert "test_exceptions" in shipper.last.stack_trace


def test_trace_ids_of_opentelemetry(shipper: Collecting, logger: logging.Logger) -> None:
    with TracerProvider().get_tracer("t").start_as_current_span("s") as span:
        logger.info("inside")
    context = span.get_span_context()
    assert shipper.last.trace_id == f"{context.trace_id:032x}"
    assert shipper.last.span_id == f"{context.span_id:016x}"
    logger.info("given", extra={"trace_id": "mine"})
    assert shipper.last.trace_id == "mine"


def test_a_formatter_makes_the_message(shipper: Collecting, logger: logging.Logger) -> None:
    logger.handlers[0].setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    logger.info("x")
    assert shipper.last.message == "[INFO] x"


def test_a_bad_call_is_told_as_logging_does_and_counted(
    shipper: Collecting, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.info("%d", "no number")
    assert "--- Logging error ---" in capsys.readouterr().err
    assert shipper.stats().dropped == 1
    assert shipper.records == []


def test_what_is_logged_while_a_record_is_converted_does_not_recurse(
    shipper: Collecting, logger: logging.Logger
) -> None:
    class Logs:
        def __str__(self) -> str:
            logger.info("inner %s", self)
            return "outer"

    logger.info("%s", Logs())
    assert [record.message for record in shipper.records] == ["outer"]
    assert shipper.stats().dropped == 1


def test_its_own_logger_is_not_shipped(shipper: Collecting) -> None:
    own = logging.Logger("opsplane.logs")
    own.addHandler(OpsplaneHandler(shipper))
    own.info("x")
    assert shipper.records == []


def test_by_configuration() -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"ops": {"class": "opsplane.logs.OpsplaneHandler", "service": "conf", "spool": None}},
            "loggers": {"conf": {"handlers": ["ops"]}},
        }
    )
    (handler,) = logging.getLogger("conf").handlers
    assert isinstance(handler, OpsplaneHandler)
    assert handler.shipper.settings.service == "conf"
    logging.getLogger("conf").removeHandler(handler)
    handler.close()
    assert not handler.shipper.log("info", "closed with its handler")


def test_the_name_of_a_task_is_no_metadata(shipper: Collecting, logger: logging.Logger) -> None:
    """Logging tells it since Python 3.12."""
    logger.handle(logging.makeLogRecord({"msg": "x", "levelno": 20, "taskName": "Task-1"}))
    assert shipper.last.message == "x"
    assert not shipper.last.metadata
