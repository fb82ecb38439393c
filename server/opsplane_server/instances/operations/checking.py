"""Checks of copies: each is restored into a scratch instance, looked through and thrown away."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Final

from google.protobuf.message import Message
from opsplane.instances.v1 import copies_pb2 as pb

from opsplane_server.errors import AlreadyExists, DataLoss, FailedPrecondition
from opsplane_server.instances import names
from opsplane_server.instances.model import CopySource, InstanceSpec, InstanceState, ProviderKind, Resources, Secrets
from opsplane_server.instances.operations.frame import Frame, cancellable
from opsplane_server.instances.records import Instance
from opsplane_server.instances.settings import engine_of, new_password, provider_of
from opsplane_server.platform.execution import Execution, FailureHook
from opsplane_server.platform.model import Operation

_MEMORY: Final = 256 * 1024**2
_CPU: Final = 1000
_NO_SERVER: Final = "ENGINE_NOT_INSTALLED"

_RESTORED: Final = 60  # percent of the whole


class Checking:
    """The work of CHECK_COPY. node: the machine on whose local provider scratch instances run."""

    def __init__(self, frame: Frame, *, node: str) -> None:
        self._frame = frame
        self._node = node

    async def check(self, execution: Execution) -> Message:
        """Checks a copy. A check that is not passed is an answer, not a failure."""
        frame = self._frame
        copy = execution.request(pb.CheckCopyRequest).copy
        scratch = await self._scratch(execution, copy)
        # What another process has begun says nothing about how long a restore takes.
        provider = frame.provider_of(scratch)
        await provider.delete(scratch.name, _silent)
        report = await cancellable(execution, _Checks(frame, execution, copy, scratch).all())
        await provider.delete(scratch.name, _silent)
        async with execution.transaction():
            await frame.store.delete(scratch.name)
            await frame.done(execution, report)
        return report

    async def remove(self, execution: Execution, error: Exception) -> None:
        """Removes the scratch instance."""
        name = _name(execution.operation)
        scratch = await self._frame.store.find(name)
        if scratch is None:
            return
        await self._frame.provider_of(scratch).delete(name, _silent)
        async with execution.transaction():
            await self._frame.store.delete(name)

    async def _scratch(self, execution: Execution, copy: pb.InstanceCopy) -> Instance:
        """The record of the scratch instance, so that its servers are known whatever happens to this process."""
        store, name = self._frame.store, _name(execution.operation)
        found = await store.find(name)
        if found is not None:
            return found
        version = copy.engine_version
        storage = max(copy.restore_size_bytes, copy.settings.resources.storage_bytes)
        spec = InstanceSpec(
            name=name,
            uid=name.removeprefix("instances/"),
            engine=engine_of(copy.settings),
            version=version,
            provider=provider_of(copy.provider, ProviderKind.LOCAL),
            machine=self._node,
            database=copy.settings.database,
            username=copy.settings.username,
            resources=Resources(storage, _MEMORY, _CPU, _MEMORY, _CPU),
        )
        instance = Instance(spec, version, InstanceState.RESTORING, operation=execution.operation.name, hidden=True)
        passwords = Secrets(new_password(), new_password(), {spec.username: new_password()})
        async with execution.transaction():
            try:
                return await store.insert(instance, passwords)
            except AlreadyExists as taken:
                raise FailedPrecondition(f"the name {name} of the scratch instance is taken") from taken


def leave_scratch(frame: Frame) -> FailureHook:
    """The failure hook of CHECK_COPY: a scratch instance that no process could remove is left to the expiry."""

    async def leave(operation: Operation) -> None:
        name = _name(operation)
        if await frame.store.find(name) is not None:
            record = await frame.store.lock(name)
            await frame.store.save(replace(record, operation="", expire_time=frame.now()))

    return leave


class _Checks:
    """The checks of one copy, in their order; the first that is not passed ends them."""

    def __init__(self, frame: Frame, execution: Execution, copy: pb.InstanceCopy, scratch: Instance) -> None:
        self._frame = frame
        self._copy = copy
        self._scratch = scratch
        self._provider = frame.provider_of(scratch)
        self._admin = frame.admin(scratch.spec.engine)
        self._progress = frame.progress(execution, 0, _RESTORED)
        self._tell = frame.progress(execution)
        self._report = pb.CopyReport()
        self._missed = ""

    async def all(self) -> pb.CopyReport:
        """Does them all."""
        await self._run("FILES", self._files)
        await self._run("START", self._start)
        if not self._missed:
            self._report.restore_duration.CopyFrom(self._report.checks[-1].duration)
        await self._run("CATALOG", self._catalog)
        await self._run("ROWS", self._rows)
        await self._run("CHECKSUMS", self._checksums)
        return self._report

    async def _run(self, kind: str, check: Callable[[], Awaitable[str]]) -> None:
        done = self._report.checks.add(kind=kind)
        if self._missed:
            done.result, done.message = "SKIPPED", f"not done, since the check {self._missed} was not passed"
            return
        began = time.monotonic()
        try:
            done.message, done.result = await check(), "PASSED"
        except _NotApplicable as reason:
            done.message, done.result = str(reason), "SKIPPED"
        except (DataLoss, FailedPrecondition) as fault:
            if fault.reason == _NO_SERVER:
                raise
            done.message, done.result = fault.message, "FAILED"
            self._missed = kind
        done.duration.FromTimedelta(timedelta(seconds=time.monotonic() - began))

    async def _files(self) -> str:
        return await self._provider.check_files(self._copy.location, self._progress)

    async def _start(self) -> str:
        spec = self._scratch.spec
        secrets = await self._frame.store.secrets(spec.name)
        await self._provider.create(spec, secrets, CopySource(self._copy.location), self._progress)
        return f"a server of version {spec.version} started on it"

    async def _catalog(self) -> str:
        await self._tell("checking the catalog", 70)
        access = await self._provider.access(self._scratch.name)
        return await self._admin.check_catalog(access, list(self._copy.databases), list(self._copy.users))

    async def _rows(self) -> str:
        await self._tell("reading all tables", 75)
        rows = await self._admin.count_rows(await self._provider.access(self._scratch.name))
        missing = sorted(set(self._copy.tables) - set(rows))
        if missing:
            raise DataLoss(f"{len(missing)} tables that the copy had are not there, the first is {missing[0]}")
        self._report.table_count = len(rows)
        self._report.row_count = sum(rows.values())
        return f"{self._report.row_count} rows of {len(rows)} tables were read"

    async def _checksums(self) -> str:
        await self._tell("checking checksums", 90)
        await self._provider.stop(self._scratch.name, _silent)
        try:
            return await self._provider.check_checksums(self._scratch.name, _silent)
        except FailedPrecondition as none:
            raise _NotApplicable(none.message) from none


class _NotApplicable(Exception):
    """Why a check is not done."""


def _name(operation: Operation) -> str:
    return names.instance(f"check-{operation.name.removeprefix('operations/')}")


async def _silent(stage: str, percent: int) -> None:
    """Tells nobody."""
