from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from opsplane.cli.figures import Progress
from opsplane.cli.results import print_results
from opsplane.cli.user_classes import in_words, users_by_class
from opsplane.cli.views import LiveView
from opsplane.loadtesting.v1 import metrics_pb2, runs_pb2, users_pb2
from opsplane_server.loadtesting.users import shares
from opsplane_server.loadtesting.users.model import UserClass
from rich.console import Console

CLASSES = [
    users_pb2.UserClass(name="Heavy", weight=1),
    users_pb2.UserClass(name="Light", weight=3),
    users_pb2.UserClass(name="Admin", fixed_count=2),
]
RUN = runs_pb2.Run(name="projects/p/runs/r", user_load=users_pb2.UserLoad(classes=CLASSES))

COUNTED = st.builds(lambda count: {"fixed_count": count}, st.integers(1, 50))
WEIGHED = st.builds(lambda weight: {"weight": weight}, st.floats(0.001, 1000))


@given(st.lists(COUNTED | WEIGHED | st.just({}), max_size=8), st.integers(0, 200))
def test_users_are_shared_as_the_server_shares_them(kinds: list[dict[str, float]], users: int) -> None:
    kinds = [*kinds, {"weight": 1.0}]
    load = users_pb2.UserLoad(
        classes=[users_pb2.UserClass(name=f"c{number}", **kind) for number, kind in enumerate(kinds)]  # type: ignore[arg-type]
    )
    classes = [UserClass(f"c{number}", (), **kind) for number, kind in enumerate(kinds)]  # type: ignore[arg-type]
    counts = users_by_class(runs_pb2.Run(user_load=load), users)
    assert list(counts.values()) == shares.share(classes, users)
    assert sum(counts.values()) == users


def test_a_run_without_classes_has_none() -> None:
    assert users_by_class(runs_pb2.Run(), 5) == {}
    assert in_words(runs_pb2.Run(), 5) == ""


def test_a_line_and_the_picture_show_users_per_class() -> None:
    stats = metrics_pb2.CallStats(requests=5, tps=5.0, response_time=metrics_pb2.ResponseTimes(p95_ms=12.0))
    window = metrics_pb2.Window(vus=10, scenarios=[metrics_pb2.SeriesStats(name="Light", stats=stats)])
    progress = Progress()
    progress.add(runs_pb2.WatchRunResponse(run=RUN))
    progress.add(runs_pb2.WatchRunResponse(window=window))
    assert "vus 10 (Heavy 2, Light 6, Admin 2)" in progress.line()
    console = Console(file=io.StringIO(), width=150)
    view = LiveView(console)
    view.progress = progress
    with console.capture() as captured:
        console.print(view.picture())
    lines = [line.split() for line in captured.get().splitlines()]
    assert ["Light", "6", "5.00", "0.00", "ms", "12.0", "ms", "0.00", "ms", "0%"] in lines
    assert ["Heavy", "2", "0.00", "-", "-", "-", "0%"] in lines


def test_results_show_users_per_class() -> None:
    run = runs_pb2.Run()
    run.CopyFrom(RUN)
    run.results.vus.max = 10
    for name in ("Heavy", "Heavy:on_start", "Light", "Admin"):
        run.results.scenarios.add(name=name)
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as captured:
        print_results(console, run)
    text = captured.get()
    assert "vus max 10 (Heavy 2, Light 6, Admin 2)" in text
    for label in ("Heavy (2 users)", "Heavy on start", "Light (6 users)", "Admin (2 users)"):
        assert any(line.startswith(f"{label}  ") for line in text.splitlines())
