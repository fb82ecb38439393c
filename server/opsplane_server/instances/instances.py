"""Instances: what is checked before one is made, changed or deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from opsplane.instances.v1 import instance_pb2, instances_pb2, lifecycle_pb2

from opsplane_server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from opsplane_server.instances import names, settings, versions
from opsplane_server.instances.convert import instance_message
from opsplane_server.instances.model import Engine, InstanceState, Manifest, ProviderKind, Secrets
from opsplane_server.instances.operations import kinds
from opsplane_server.instances.ports import Provider
from opsplane_server.instances.records import Instance, Webhook
from opsplane_server.instances.stores.ports import InstanceStore
from opsplane_server.instances.submission import Exclusive, Plan, Submission, check_serving, done, taken
from opsplane_server.instances.webhooks import check_host
from opsplane_server.rpc.ids import new_id


class Providers:
    """What can run instances here. machine: names this one, which alone the provider LOCAL works on."""

    def __init__(self, providers: Mapping[ProviderKind, Provider], *, default: ProviderKind, machine: str) -> None:
        self._providers = providers
        self._machine = machine
        self.default = default

    def of(self, kind: ProviderKind) -> Provider:
        """Raises FailedPrecondition (PROVIDER_NOT_CONFIGURED)."""
        provider = self._providers.get(kind)
        if provider is None:
            raise FailedPrecondition(f"the provider {kind} is not set up here", reason="PROVIDER_NOT_CONFIGURED")
        return provider

    def machine_of(self, kind: ProviderKind) -> str:
        """The machine that a new instance belongs to; "" for any."""
        return self._machine if kind is ProviderKind.LOCAL else ""

    def reaching(self, instance: Instance) -> Provider:
        """The provider of an instance that this process can ask. Raises FailedPrecondition for another machine's."""
        if instance.spec.machine not in ("", self._machine):
            raise FailedPrecondition(
                f"{instance.name} runs on the machine {instance.spec.machine}: ask the server there",
                reason="OTHER_MACHINE",
                metadata={"resource": instance.name, "machine": instance.spec.machine},
            )
        return self.of(instance.spec.provider)


class Instances:
    """Each method submits a change as an operation; what it raises is what the RPC of the same name answers."""

    def __init__(
        self, store: InstanceStore, submission: Submission, providers: Providers, *, webhook_hosts: Sequence[str]
    ) -> None:
        self._store = store
        self._submission = submission
        self._exclusive = Exclusive(store)
        self._providers = providers
        self._webhook_hosts = webhook_hosts

    async def create(self, request: instances_pb2.CreateInstanceRequest) -> operations_pb2.Operation:
        """Makes the record and the passwords; the operation makes the servers."""
        name = names.instance(request.instance_id or new_id())

        async def plan() -> Plan:
            instance = await self._new(request.instance, name)
            return await self.plan_new(kinds.CREATE, instance, new_secrets(instance, request.instance.password))

        return await self._submission.submit(request, plan)

    async def plan_new(self, kind: str, instance: Instance, secrets: Secrets) -> Plan:
        """A plan that inserts a record. Raises AlreadyExists, and what the provider says against it."""
        if await self._store.find(instance.name) is not None:
            raise AlreadyExists.resource(instance.name)
        self._check_webhooks(instance.webhooks)
        provider = self._providers.of(instance.spec.provider)
        if kind != kinds.RECOVER:
            await asyncio.to_thread(provider.check, instance.spec)
        noticed = replace(instance, status=replace(instance.status, notices=tuple(provider.notices(instance.spec))))

        async def write(operation: str) -> None:
            await self._store.insert(taken(noticed, kind, operation), secrets)

        return Plan(kind, instance.name, instance.spec.machine, instance_message(noticed), write)

    async def recover(self, request: lifecycle_pb2.RecoverInstanceRequest) -> operations_pb2.Operation:
        """Makes the record of what the provider still knows; the operation starts the servers."""
        kind = settings.provider_of(request.provider, self._providers.default)
        provider = self._providers.of(kind)
        found: list[Manifest] = []

        async def look() -> None:
            if await self._store.find(request.name) is not None:
                raise AlreadyExists.resource(request.name)
            found.append(await provider.find(request.name, namespace=request.namespace))

        async def plan() -> Plan:
            manifest = found[0]
            spec = replace(manifest.spec, machine=self._providers.machine_of(kind))
            instance = Instance(spec=spec, version=spec.version, state=InstanceState.STARTING)
            password = request.password or manifest.secrets.users.get(spec.username) or settings.new_password()
            users = {**manifest.secrets.users, spec.username: password}
            return await self.plan_new(kinds.RECOVER, instance, replace(manifest.secrets, users=users))

        return await self._submission.submit(request, plan, check=look)

    async def update(self, request: instances_pb2.UpdateInstanceRequest) -> operations_pb2.Operation:
        """Writes the new settings; the operation makes them true."""

        async def plan() -> Plan:
            current = await self._exclusive.lock(request.instance.name, etag=request.etag)
            fields = settings.updated_fields(current, request.instance, request.update_mask)
            wanted = settings.updated(current, request.instance, fields)
            self._check_webhooks(wanted.webhooks)
            if wanted.previous is not None:
                if wanted.state is InstanceState.FAILED:
                    raise FailedPrecondition(
                        f"{wanted.name} has failed: {wanted.state_message}", reason="INSTANCE_NOT_SERVING"
                    )
                provider = self._providers.reaching(wanted)
                await asyncio.to_thread(provider.check, wanted.spec)
                notices = tuple(provider.notices(wanted.spec))
                wanted = replace(wanted, status=replace(wanted.status, notices=notices))
            resolved = instances_pb2.UpdateInstanceRequest()
            resolved.CopyFrom(request)
            resolved.update_mask.paths[:] = fields
            return replace(self._exclusive.plan(kinds.UPDATE, wanted, instance_message(wanted)), request=resolved)

        return await self._submission.submit(request, plan)

    async def delete(self, request: instances_pb2.DeleteInstanceRequest) -> operations_pb2.Operation:
        """Deletes, unless it is protected."""
        if request.allow_missing and await self._store.find(request.name) is None:
            return done(Empty())

        async def plan() -> Plan:
            instance = await self._exclusive.lock(request.name, etag=request.etag)
            if instance.deletion_protection:
                raise FailedPrecondition(
                    f"{request.name} is protected: set deletion_protection to false first",
                    reason="DELETION_PROTECTED",
                    metadata={"resource": request.name},
                )
            if request.final_backup:
                check_serving(instance)
            return self._exclusive.plan(kinds.DELETE, instance, Empty())

        return await self._submission.submit(request, plan)

    async def start(self, request: lifecycle_pb2.StartInstanceRequest) -> operations_pb2.Operation:
        """Starts, in whatever state it is."""
        return await self._simple(kinds.START, request)

    async def stop(self, request: lifecycle_pb2.StopInstanceRequest) -> operations_pb2.Operation:
        """Stops, in whatever state it is."""
        return await self._simple(kinds.STOP, request)

    async def restart(self, request: lifecycle_pb2.RestartInstanceRequest) -> operations_pb2.Operation:
        """Restarts one that is not stopped."""

        async def plan() -> Plan:
            instance = await self._exclusive.lock(request.name, etag=request.etag)
            _check_started(instance)
            _check_node(instance, request.node)
            return self._exclusive.plan(kinds.RESTART, instance, instance_message(instance))

        return await self._submission.submit(request, plan)

    async def change_primary(
        self, kind: str, request: lifecycle_pb2.FailoverRequest | lifecycle_pb2.SwitchoverRequest
    ) -> operations_pb2.Operation:
        """FAILOVER or SWITCHOVER of one with replicas. Which of them can be promoted is the provider's to say."""

        async def plan() -> Plan:
            instance = await self._exclusive.lock(request.name)
            if instance.spec.high_availability is None:
                raise FailedPrecondition(
                    f"{request.name} is a single server",
                    reason="NOT_HIGHLY_AVAILABLE",
                    metadata={"resource": request.name},
                )
            _check_started(instance)
            _check_node(instance, request.target_node)
            if request.target_node and request.target_node == instance.status.primary:
                raise FailedPrecondition(f"{request.target_node} is the primary already", reason="NO_CANDIDATE")
            return self._exclusive.plan(kind, instance, instance_message(instance))

        return await self._submission.submit(request, plan)

    async def upgrade(self, request: lifecycle_pb2.UpgradeInstanceRequest) -> operations_pb2.Operation:
        """Writes the exact version that is meant; the operation changes to it."""

        async def plan() -> Plan:
            instance = await self._exclusive.lock(request.name, etag=request.etag)
            spec = instance.spec
            offered = await asyncio.to_thread(self._providers.reaching(instance).versions, spec.engine)
            version = versions.resolve(spec.engine, request.version, offered)
            if versions.parts(version) <= versions.parts(spec.version):
                raise InvalidArgument.of("version", f"{version} is not newer than {spec.version}")
            check_serving(instance)
            upgraded = replace(spec, version=version, generation=spec.generation + 1)
            await asyncio.to_thread(self._providers.reaching(instance).check, upgraded)
            return self._exclusive.plan(
                kinds.UPGRADE,
                replace(
                    instance,
                    spec=upgraded,
                    previous=spec,
                    revision=instance.revision + 1,
                ),
                instance_message(replace(instance, spec=upgraded, version=request.version)),
            )

        return await self._submission.submit(request, plan)

    async def roll_back(self, request: lifecycle_pb2.RollbackUpgradeRequest) -> operations_pb2.Operation:
        """Writes the version before the newest upgrade; the operation goes back to it."""

        async def plan() -> Plan:
            instance = await self._exclusive.lock(request.name, etag=request.etag)
            spec, report = instance.spec, instance.last_upgrade
            if report is None or report.rolled_back:
                raise FailedPrecondition(f"{request.name} has no upgrade to undo", reason="NO_UPGRADE")
            if report.rollback_expire_time is None or report.rollback_expire_time <= datetime.now(UTC):
                raise FailedPrecondition(
                    f"what undoes the upgrade of {request.name} is gone", reason="ROLLBACK_EXPIRED"
                )
            before = replace(spec, version=report.from_version, generation=spec.generation + 1)
            return self._exclusive.plan(
                kinds.ROLL_BACK,
                replace(
                    instance,
                    spec=before,
                    previous=spec,
                    revision=instance.revision + 1,
                ),
                instance_message(replace(instance, spec=before, version=before.version)),
            )

        return await self._submission.submit(request, plan)

    async def _simple(
        self, kind: str, request: lifecycle_pb2.StartInstanceRequest | lifecycle_pb2.StopInstanceRequest
    ) -> operations_pb2.Operation:
        async def plan() -> Plan:
            instance = await self._exclusive.lock(request.name, etag=request.etag)
            return self._exclusive.plan(kind, instance, instance_message(instance))

        return await self._submission.submit(request, plan)

    async def _new(self, message: instance_pb2.Instance, name: str) -> Instance:
        kind = settings.provider_of(message.provider, self._providers.default)
        engine = settings.engine_of(message)
        version = await self.exact_version(kind, engine, message.version)
        return settings.new_instance(
            message, name=name, uid=new_id(), version=version, provider=kind, machine=self._providers.machine_of(kind)
        )

    async def exact_version(self, kind: ProviderKind, engine: Engine, asked: str) -> str:
        """The version that is meant. Raises FailedPrecondition (ENGINE_NOT_INSTALLED, PROVIDER_NOT_CONFIGURED)."""
        return versions.resolve(engine, asked, await asyncio.to_thread(self._providers.of(kind).versions, engine))

    def _check_webhooks(self, webhooks: Sequence[Webhook]) -> None:
        for webhook in webhooks:
            check_host(webhook.url, self._webhook_hosts)


def new_secrets(instance: Instance, password: str) -> Secrets:
    """Passwords of a new instance; the first user's is made where none is given."""
    return Secrets(
        admin=settings.new_password(),
        replication=settings.new_password(),
        users={instance.spec.username: password or settings.new_password()},
    )


def _check_started(instance: Instance) -> None:
    if instance.state in (InstanceState.STOPPED, InstanceState.STOPPING):
        raise FailedPrecondition(
            f"{instance.name} is stopped", reason="INSTANCE_STOPPED", metadata={"resource": instance.name}
        )


def _check_node(instance: Instance, node: str) -> None:
    if node and node not in {one.id for one in instance.status.nodes}:
        raise NotFound(f"{instance.name} has no node {node}", metadata={"resource": instance.name, "node": node})
