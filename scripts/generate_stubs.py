"""Generates the Python stubs under `clients/python/src` from `proto`, with types.

    python scripts/generate_stubs.py            writes them
    python scripts/generate_stubs.py --check    fails when the committed ones are not what the protos give

google/* come from googleapis-common-protos and are not generated; buf/validate is, because no wheel carries it.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
TARGET = ROOT / "clients" / "python" / "src"
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(target: Path) -> None:
    """Writes all stubs below `target`; protoc's own message explains a failure."""
    sources = [p.relative_to(PROTO).as_posix() for p in sorted(PROTO.rglob("*.proto")) if "google" not in p.parts]
    services = [s for s in sources if "\nservice " in (PROTO / s).read_text(encoding="utf-8")]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}"]
    plugins = [
        f"--plugin=protoc-gen-{name}={Path(sys.executable).parent / f'protoc-gen-{name}'}"
        for name in ("mypy", "mypy_grpc")
    ]
    subprocess.run([*protoc, *plugins, f"--python_out={target}", f"--mypy_out=quiet:{target}", *sources], check=True)
    subprocess.run(
        [*protoc, *plugins, f"--grpc_python_out={target}", f"--mypy_grpc_out=only_async,quiet:{target}", *services],
        check=True,
    )


def generated(tree: Path) -> dict[str, Path]:
    """The generated files below `tree` by their relative path."""
    return {p.relative_to(tree).as_posix(): p for pattern in GENERATED for p in tree.rglob(pattern)}


def main() -> int:
    """Runs as the module docstring says."""
    parser = argparse.ArgumentParser(description="Generate the Python stubs from the protos")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 when the committed stubs are stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh_tree = Path(folder)
        generate(fresh_tree)
        fresh, committed = generated(fresh_tree), generated(TARGET)
        stale = sorted(
            name
            for name in fresh.keys() | committed.keys()
            if name not in fresh
            or name not in committed
            or not filecmp.cmp(fresh[name], committed[name], shallow=False)
        )
        if check:
            for name in stale:
                print(f"stale: {TARGET.relative_to(ROOT)}/{name}", file=sys.stderr)
            if stale:
                print("run `make proto` and commit the result", file=sys.stderr)
            return 1 if stale else 0
        for name in stale:
            if name in fresh:
                (TARGET / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(fresh[name], TARGET / name)
            else:
                committed[name].unlink()
        print(f"{len(fresh)} files, {len(stale)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
