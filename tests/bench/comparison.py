"""How often comparisons are right: runs of an unchanged server, and of one of whose endpoints takes a fifth longer.

Twenty runs of each kind, five of both at a time. The unchanged ones are compared in a ring, each slower one with a run
of the same moment. `rounds` does not matter.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from opsplane.loadtesting.v1 import reports_pb2

from tests.acceptance.paced_api import SLOWER, STEADY, paced_api
from tests.acceptance.pets import own_channel
from tests.paced_runs import Stub, compared, prepared, worse
from tests.paced_runs import run as run_paced
from tests.server_process import running_server

PAIRS = 20
GOAL = 19
AT_A_TIME = 5  # runs of each kind


def run(rounds: int) -> list[dict[str, Any]]:
    """Takes about a minute and a half."""
    unchanged, changed = asyncio.run(_compare())
    for comparison in (*unchanged, *changed):
        print(f"  {comparison.run} {reports_pb2.Change.Name(comparison.change)} {worse(comparison)}")
    equal = sum(one.change == reports_pb2.CHANGE_NONE for one in unchanged)
    found = sum(any(series == "GET /orders" for series, _, _ in worse(one)) for one in changed)
    return [
        _entry("comparison_unchanged_of_20", equal, "pairs of an unchanged server that are no change"),
        _entry("comparison_slower_of_20", found, "pairs in which an endpoint that is 20 % slower is found"),
    ]


def _entry(measure: str, value: int, reference: str) -> dict[str, Any]:
    return {
        "measure": measure,
        "value": value,
        "unit": "pairs",
        "reference": reference,
        "goal": f">= {GOAL}",
        "met": value >= GOAL,
    }


async def _compare() -> tuple[list[reports_pb2.RunComparison], list[reports_pb2.RunComparison]]:
    async with paced_api(1) as url:
        with running_server() as server:
            async with own_channel(server.address) as channel:
                stub = Stub(channel)
                endpoints = await prepared(stub)
                steady: list[str] = []
                slower: list[str] = []
                for first in range(0, PAIRS, AT_A_TIME):
                    numbers = range(first, first + AT_A_TIME)
                    both = await asyncio.gather(
                        *(run_paced(stub, endpoints, f"{url}/{STEADY}", f"steady-{n}") for n in numbers),
                        *(run_paced(stub, endpoints, f"{url}/{SLOWER}", f"slower-{n}") for n in numbers),
                    )
                    steady += both[:AT_A_TIME]
                    slower += both[AT_A_TIME:]
                unchanged = [await compared(stub, *pair) for pair in pairwise([*steady, steady[0]])]
                changed = [await compared(stub, *pair) for pair in zip(steady, slower, strict=True)]
    return unchanged, changed
