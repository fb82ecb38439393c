"""Settings of a shipper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from opsplane.logs import Shipper


@pytest.mark.parametrize(
    "wrong",
    [
        {"client_id": "with space"},
        {"client_id": "x" * 129},
        {"durability": "maybe"},
        {"memory_bytes": 10},
        {"spool_bytes": 10},
        {"window": 0},
        {"linger_seconds": -1},
    ],
)
def test_wrong_ones_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Shipper(service="s", **wrong)


def test_what_is_not_given_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSPLANE_ADDRESS", "logs.example:50051")
    monkeypatch.setenv("OPSPLANE_TOKEN", "secret-2")
    monkeypatch.setenv("OPSPLANE_CA", "/ca.pem")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "orders & more")
    monkeypatch.setenv("OPSPLANE_LOGS_SPOOL", "/var/spool/logs")
    settings = Shipper().settings
    assert (settings.address, settings.token) == ("logs.example:50051", "secret-2")
    assert settings.tls is not None
    assert settings.tls.ca == Path("/ca.pem")
    assert (settings.service, settings.client_id) == ("orders & more", "orders___more")
    assert settings.spool == Path("/var/spool/logs")
    assert Shipper(token="").settings.token == ""


def test_the_spool_is_in_the_state_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Shipper().settings.spool == tmp_path / "opsplane" / "logs"
    assert Shipper(spool=None).settings.spool is None


def test_each_client_and_server_has_a_folder_of_its_own() -> None:
    names = [
        Shipper(address, client_id=client).settings.spool_name
        for address in ("a:1", "b:1")
        for client in ("one", "two", "..", "/", "x" * 128)
    ]
    assert len(set(names)) == len(names)
    assert all(Path(name).name == name and len(name) < 255 for name in names)


def test_making_one_opens_nothing(tmp_path: Path) -> None:
    shipper = Shipper("127.0.0.1:1", spool=tmp_path / "spool")
    assert not shipper.stats().connected
    assert shipper.close(0)
    assert not list(tmp_path.iterdir())
