"""Large real documents, from text to scripts that k6 accepts, every operation in one."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from opsplane_server.loadtesting.definitions import Executor, LoadTest, Scenario, Stage
from opsplane_server.loadtesting.k6.inspect import inspect
from opsplane_server.loadtesting.k6.script import generate
from opsplane_server.loadtesting.openapi import SpecAnalyzer, SpecFetcher
from opsplane_server.loadtesting.openapi.bodies import is_json

from tests.unit.loadtesting.k6.k6_binary import K6
from tests.unit.loadtesting.openapi.large_documents import DOCUMENTS, LargeDocument, Unobtainable, obtain

STAGES = (Stage(timedelta(seconds=1), 1),)
SCENARIOS_PER_SCRIPT = 250


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
async def test_every_operation_becomes_a_script_that_k6_accepts(document: LargeDocument, tmp_path: Path) -> None:
    try:
        text = obtain(document)
    except Unobtainable as error:
        pytest.skip(str(error))
    async with SpecFetcher() as fetcher, SpecAnalyzer(fetcher) as analyzer:
        analyzed = await analyzer.analyze(text)

    about, endpoints = analyzed.specification, analyzed.endpoints
    assert about.openapi_version == document.openapi_version
    assert about.base_url == document.base_url
    assert about.warnings == ()
    assert len(endpoints) == document.endpoints
    assert len({endpoint.label for endpoint in endpoints}) == document.endpoints
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body]
    assert len(bodies) > 50
    for body in bodies:
        assert body.sample
        if is_json(body.content_type):
            json.loads(body.sample)

    scenarios = [Scenario(f"s{n}", endpoint, Executor.CONSTANT_VUS, STAGES) for n, endpoint in enumerate(endpoints)]
    script = tmp_path / "script.js"
    for start in range(0, len(scenarios), SCENARIOS_PER_SCRIPT):
        part = tuple(scenarios[start : start + SCENARIOS_PER_SCRIPT])
        script.write_text(generate(LoadTest("all", document.base_url or "https://127.0.0.1", part)), encoding="utf-8")
        found = await inspect(K6, script)
        assert len(found.options["scenarios"]) == len(part)
