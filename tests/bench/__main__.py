"""Runs benchmarks: `python -m tests.bench PART`, PART one of the parts or `all`; results go to build/bench.json.

Each entry is {"measure", "value", "unit", "reference", "goal", "met"}. Measures of other parts stay as they were, so
the file gathers what was measured last of each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "build" / "bench.json"
PARTS = ("rpc", "loadtest", "logs", "shipper", "search", "transfers", "databases", "comparison", "users")


def keep(entries: list[dict[str, Any]]) -> None:
    """Merges entries into the results by measure."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    merged = {entry["measure"]: entry for entry in [*known, *entries]}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(list(merged.values()), indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Runs as the module docstring says; a goal that is not met is reported, not an error."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds of each comparison")
    args = parser.parse_args()
    for part in PARTS if args.part == "all" else [args.part]:
        entries: list[dict[str, Any]] = importlib.import_module(f"tests.bench.{part}").run(args.rounds)
        keep(entries)
        for entry in entries:
            met = {True: "met", False: "NOT met", None: "no goal"}[entry["met"]]
            print(f"{entry['measure']}: {entry['value']:.3g} {entry['unit']} (goal {entry['goal']}, {met})")
    print(f"written to {RESULTS.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
