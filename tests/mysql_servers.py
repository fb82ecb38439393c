"""The MariaDB and MySQL programs for tests, which `scripts/mariadb.sh` puts into the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from opsplane_server.instances.model import Engine

from tests.components import cache_folder, lacking

_PROGRAMS = ("sbin/mysqld", "bin/innochecksum")


def programs(engine: Engine, folder: Path) -> Path:
    """The install tree of an engine, below `folder` if it must be elsewhere. Skips the test where there is none."""
    if engine is Engine.MARIADB:
        tree = cache_folder() / "mariadb" / "usr"
        _require(tree / "sbin" / "mariadbd")
        return tree
    _require(cache_folder() / "mysql" / "usr" / "sbin" / "mysqld")
    return _mysql(folder)


def _require(program: Path) -> None:
    if not program.exists():
        lacking(f"there is no {program}: run scripts/mariadb.sh")


@lru_cache
def _mysql(folder: Path) -> Path:
    """MySQL comes with all its libraries and their loader, whose place is in the programs: it must be where the
    servers' account can pass, and the cache in root's home is not.
    """
    target = folder / "mysql-programs"
    if not target.exists():
        scratch = folder / "mysql-programs-new"
        shutil.copytree(cache_folder() / "mysql" / "usr", scratch, symlinks=True, copy_function=_link_or_copy)
        for path in (scratch, *scratch.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        libraries = sorted(scratch.glob("lib/*/libc.so.6"))[0].parent
        for name in _PROGRAMS:
            program = scratch / name
            content = program.read_bytes()
            program.unlink()  # it may be the cache's own file
            program.write_bytes(content)
            program.chmod(0o755)
            loader = sorted((scratch / "lib64").glob("ld-linux-*"))[0].name
            subprocess.run(
                [
                    str(cache_folder() / "patchelf"), "--force-rpath", "--set-rpath",
                    f"$ORIGIN/../lib/{libraries.name}:$ORIGIN/../lib/mysql/private",
                    "--set-interpreter", str(target / "lib64" / loader), str(program),
                ],
                check=True,
            )  # fmt: skip
        scratch.rename(target)
    return target


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
