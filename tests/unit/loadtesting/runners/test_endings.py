import pytest
from opsplane_server.loadtesting.runners.console import ConsoleLine
from opsplane_server.loadtesting.runners.endings import Ending, describe
from opsplane_server.loadtesting.runners.port import Exited, Lost

ERROR = [ConsoleLine(None, "ERROR", "GoError: line 2"), ConsoleLine(None, "INFO", "done")]


@pytest.mark.parametrize(
    ("code", "reason", "complete"),
    [
        (99, "THRESHOLDS_CROSSED", True),
        (100, "SETUP_TIMEOUT", True),
        (104, "SCRIPT_ERROR", True),
        (105, "ABORTED", True),
        (107, "SCRIPT_ERROR", True),
        (108, "SCRIPT_ABORTED", True),
        (109, "GENERATOR_CRASHED", False),
        (110, "SCRIPT_FAILED", True),
        (255, "GENERATOR_ERROR", True),
        (-2, "ABORTED", False),
        (-9, "GENERATOR_KILLED", False),
        (-11, "GENERATOR_ERROR", False),
    ],
)
def test_every_code_has_a_reason(code: int, reason: str, complete: bool) -> None:
    ending = describe(Exited(code), [])

    assert (ending.reason, ending.complete) == (reason, complete)
    assert ending.message


def test_ends() -> None:
    assert describe(Exited(0), ERROR) == Ending()
    assert describe(Exited(107), ERROR) == Ending("SCRIPT_ERROR", "the script failed: GoError: line 2")
    assert describe(Exited(105), ERROR) == Ending("ABORTED", "k6 was told to stop")
    assert describe(Lost(), ERROR).reason == "GENERATOR_LOST"
    assert not describe(Lost(), ERROR).complete
