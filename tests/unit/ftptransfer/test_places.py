from pathlib import Path

from opsplane_server.ftptransfer.sessions import limits
from opsplane_server.ftptransfer.sessions.condition import Condition
from opsplane_server.ftptransfer.sessions.places import ConnectionPlaces, PodPlaces


def test_places_beyond_a_lowered_limit_count(tmp_path: Path) -> None:
    """They have any of ten numbers, so that the first three are likely to be free."""
    pod = PodPlaces(tmp_path / "pod", 100, lambda: False)
    ours, theirs = (ConnectionPlaces(tmp_path / "connection", pod) for _ in range(2))
    held = [place for _ in range(3) if (place := ours.take(10, 10))]
    assert len(held) == 3
    assert theirs.take(3, 10) is None
    held.pop().release()
    freed = theirs.take(3, 10)
    assert freed is not None
    for place in (freed, *held):
        place.release()
    for places in (ours, theirs):
        places.leave()
    pod.close()


def test_a_server_that_has_refused_lately_may_count_sessions_that_have_ended() -> None:
    refused = limits.lowered(Condition(version="1"), 3, now=100.0)
    assert limits.counts_late(refused, 100.0 + limits.LATE_SECONDS / 2)
    assert not limits.counts_late(refused, 100.0 + limits.LATE_SECONDS)
    assert not limits.counts_late(Condition(version="1"), 100.0)
