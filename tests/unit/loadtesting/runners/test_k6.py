from pathlib import Path

import pytest
from opsplane_server.errors import FailedPrecondition
from opsplane_server.loadtesting.runners.k6_binary import K6, find_k6
from opsplane_server.loadtesting.runners.k6_environment import k6_environment
from opsplane_server.loadtesting.runners.port import Exporter, GeneratorSpec, Segment, segments


def arguments(version: tuple[int, int, int], *, segment: Segment | None = None, thresholds: bool = False) -> list[str]:
    return K6(Path("/k6"), version).run_arguments("main.js", segment=segment, thresholds=thresholds)


def test_arguments_follow_the_version() -> None:
    first, stable, second = arguments((1, 1, 0)), arguments((1, 4, 0)), arguments((2, 0, 0))

    assert first[:2] == ["/k6", "run"]
    assert first[-1] == "main.js"
    assert {"--no-summary", "--no-thresholds", "--out=experimental-opentelemetry", "--address="} < set(first)
    assert {"--no-summary", "--out=opentelemetry"} < set(stable)
    assert "--summary-mode=disabled" in second
    assert "--no-summary" not in second


def test_arguments_of_a_part_of_the_load() -> None:
    _, last = segments(2)

    found = arguments((1, 1, 0), segment=last, thresholds=True)

    assert "--no-thresholds" not in found
    assert found[-3:] == ["--execution-segment=1/2:1", "--execution-segment-sequence=0,1/2,1", "main.js"]


def test_segments_cover_the_load() -> None:
    assert segments(1) == [None]
    assert [s.part for s in segments(3) if s] == ["0:1/3", "1/3:2/3", "2/3:1"]
    assert {s.sequence for s in segments(3) if s} == {"0,1/3,2/3,1"}


async def test_k6_comes_with_its_package() -> None:
    k6 = await find_k6()

    assert str(k6).startswith("k6 ")
    assert k6.version >= (1, 1, 0)


@pytest.mark.parametrize("path", ["/nowhere/k6", "/bin/true", "/bin/false", "/"])
async def test_what_is_no_k6_is_refused(path: str) -> None:
    with pytest.raises(FailedPrecondition) as refusal:
        await find_k6(Path(path))

    assert refusal.value.reason == "K6_MISSING"


def test_the_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "https_proxy", "K6_VUS", "K6_CLOUD_TOKEN", "OTEL_METRICS_EXPORTER", "DATABASE_URL"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SSL_CERT_FILE", "/ca.pem")

    environment = k6_environment(
        Exporter("127.0.0.1:1", "t"), instance="a", home="/runs/a", thresholds=False, script={"API_TOKEN": "s"}
    )

    assert "x" not in environment.values()
    assert (environment["SSL_CERT_FILE"], environment["API_TOKEN"], environment["HOME"]) == ("/ca.pem", "s", "/runs/a")


def test_a_script_cannot_redirect_its_metrics() -> None:
    environment = k6_environment(
        Exporter("127.0.0.1:1", "t"),
        instance="a",
        home="/runs/a",
        thresholds=True,
        script={"K6_OTEL_GRPC_EXPORTER_ENDPOINT": "elsewhere:1"},
    )

    assert environment["K6_OTEL_GRPC_EXPORTER_ENDPOINT"] == "127.0.0.1:1"


def test_tls() -> None:
    exporter = Exporter("server:443", "a,b=c d", tls=True, certificate=Path("/ca.pem"))
    environment = k6_environment(exporter, instance="a/b", home="/", thresholds=False, script={})

    assert environment["K6_OTEL_GRPC_EXPORTER_INSECURE"] == "false"
    assert environment["K6_OTEL_TLS_CERTIFICATE"] == "/ca.pem"
    assert environment["K6_OTEL_HEADERS"] == "authorization=Bearer%20a%2Cb%3Dc%20d"
    assert environment["OTEL_RESOURCE_ATTRIBUTES"] == "service.instance.id=a%2Fb"


def test_secrets_are_not_shown() -> None:
    spec = GeneratorSpec("a", {"main.js": "script"}, "main.js", "a", Exporter("e", "secret"), {"API_TOKEN": "secret"})

    assert "secret" not in repr(spec)
