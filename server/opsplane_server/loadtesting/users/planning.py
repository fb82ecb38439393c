"""Loads by users become scripts: all that can be said of them before a run is said here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final, Protocol

from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.datasets.preparing import RowSource
from opsplane_server.loadtesting.definitions import LoadTest
from opsplane_server.loadtesting.k6.inspect import Inspection
from opsplane_server.loadtesting.k6.literals import string
from opsplane_server.loadtesting.k6.users import data_file, generate_users
from opsplane_server.loadtesting.users import checks, presets, shares, templates
from opsplane_server.loadtesting.users.model import UserLoad

SCRIPT_ERROR: Final = "SCRIPT_ERROR"

# Where k6 says that the code of a function is wrong, and how many lines it has put before it.
_PLACE = re.compile(r"<eval>:(?: Line )?(\d+):(\d+)")
_LINES_BEFORE: Final = 3

# A script reads its rows when it is loaded; here it is only compiled.
_NO_ROWS: Final = "[{}]"


class Inspect(Protocol):
    """What k6 says of scripts."""

    async def __call__(
        self, script: str, files: Mapping[str, str] | None = None, *, field: str = "run.script"
    ) -> Inspection:
        """Has k6 read a script without running it, with `files` beside it.

        Raises InvalidArgument on `field` with what k6 says, FailedPrecondition where there is no k6.
        """
        ...


class UserScripts:
    """Makes the scripts of loads by users."""

    def __init__(self, rows: RowSource, inspect: Inspect, *, allow_scripts: bool) -> None:
        self._rows = rows
        self._inspect = inspect
        self._allow_scripts = allow_scripts

    async def generate(self, parent: str, test: LoadTest, load: UserLoad) -> str:
        """The script of a load in a project. Raises InvalidArgument, FailedPrecondition where there is no k6."""
        checks.check(test, load)
        own = checks.scripts(load)
        if own and not self._allow_scripts:
            raise InvalidArgument.of(own[0][0], "this server takes no scripts", reason="SCRIPTS_FORBIDDEN")
        fields = await self._rows.fields(parent, load.pools)
        # Thousands of tasks take a second or two.
        await asyncio.to_thread(templates.check, load, fields)
        script = await asyncio.to_thread(generate_users, test, load)
        if own:
            await self._compile(load, script, own)
        return script

    async def _compile(self, load: UserLoad, script: str, own: Sequence[tuple[str, str]]) -> None:
        """Has k6 read the script, and where it can not, looks for the task that it can not read."""
        files = {data_file(pool.name): _NO_ROWS for pool in load.pools}
        try:
            await self._inspect(script, files, field="run.user_load")
        except InvalidArgument as error:
            if error.reason != SCRIPT_ERROR or not await self._problem(own):
                raise
            while len(own) > 1:
                half = own[: len(own) // 2]
                own = half if await self._problem(half) else own[len(half) :]
            problem = await self._problem(own)
            raise InvalidArgument.of(own[0][0], problem, reason=SCRIPT_ERROR) from error

    async def _problem(self, own: Sequence[tuple[str, str]]) -> str:
        """What k6 says of own code alone, with lines counted as in the code; empty when it can read it."""
        try:
            await self._inspect(_module([code for _, code in own]))
        except InvalidArgument as error:
            said = error.violations[0].description.partition("\n")[0]
            return _PLACE.sub(lambda at: f"line {int(at[1]) - _LINES_BEFORE}:{at[2]}", said)
        return ""


def planned_duration(load: UserLoad) -> timedelta:
    """How long a load lasts, without the time that its last tasks take."""
    return sum((stage.duration for stage in presets.course(load)), timedelta())


def notes(load: UserLoad) -> tuple[str, ...]:
    """What people should know of a load before it starts."""
    return tuple(f"no user is of class {name}: there are too few for its share" for name in shares.without_users(load))


def _module(codes: Sequence[str]) -> str:
    """A script that compiles own code as the generated one does, and nothing else."""
    bodies = [string(f'"use strict";\n{code}') for code in codes]
    lines = [f'new Function("user", "http", "check", "sleep", {body});' for body in bodies]
    return "\n".join(("export default function () {}", *lines))
