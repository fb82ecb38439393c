import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from opsplane_server.loadtesting.runners.console import ConsoleLine, parse, read_tail

FOLDER = Path("/runs/one")


def test_a_line_of_k6() -> None:
    text = json.dumps(
        {
            "level": "warning",
            "msg": "Request Failed",
            "error": 'Get "http://a/": refused',
            "time": "2026-01-02T03:04:05Z",
        }
    )

    assert parse(text, FOLDER) == ConsoleLine(
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "WARN", 'Request Failed: Get "http://a/": refused'
    )


def test_paths_of_the_machine_are_left_out() -> None:
    text = json.dumps({"level": "error", "msg": "Error: no\n\tat file:///runs/one/main.js:1:7(12)\n"})

    assert parse(text, FOLDER) == ConsoleLine(None, "ERROR", "Error: no\n\tat main.js:1:7(12)")


@pytest.mark.parametrize("text", ["panic: oh", "[1]", '{"level": "info"}', '{"msg"', "", "9" * 5000])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert parse(text, FOLDER) == ConsoleLine(None, "ERROR", text)


@pytest.mark.parametrize("time", ["yesterday", 7, None, "2026-01-02T03:04:05"])
def test_other_times_are_none(time: object) -> None:
    assert parse(json.dumps({"level": "info", "msg": "x", "time": time}), FOLDER) == ConsoleLine(None, "INFO", "x")


def test_the_last_whole_lines_of_several_files(tmp_path: Path) -> None:
    older, newer, missing = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    older.write_bytes(b"one\ntwo\nth")
    newer.write_bytes(b"ree\nfour\n")

    assert read_tail([missing, older, newer], 100) == ["one", "two", "three", "four"]
    assert read_tail([older, newer], 14) == ["three", "four"]
    assert read_tail([older, newer], 9) == ["four"]
    assert read_tail([older, newer], 17) == ["two", "three", "four"]
    assert read_tail([missing], 10) == []
