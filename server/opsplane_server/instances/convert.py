"""domain -> proto: instances, their databases and users. `settings` has the other direction."""

from __future__ import annotations

from datetime import datetime

from opsplane.instances.v1 import databases_pb2, events_pb2, instance_pb2, status_pb2, webhooks_pb2

from opsplane_server.instances import names
from opsplane_server.instances.model import (
    Endpoint,
    Endpoints,
    FailoverReport,
    HighAvailability,
    Node,
    NodeRole,
    Placement,
    Resources,
    UpgradeReport,
)
from opsplane_server.instances.records import Instance, Webhook
from opsplane_server.instances.sql import DatabaseInfo, Privilege, UserInfo
from opsplane_server.rpc import etags
from opsplane_server.rpc.times import duration, timestamp


def instance_message(instance: Instance) -> instance_pb2.Instance:
    """The whole instance without its secrets."""
    spec, status, backups = instance.spec, instance.status, instance.backups
    return instance_pb2.Instance(
        name=spec.name,
        uid=spec.uid,
        engine=instance_pb2.Engine.Value(f"ENGINE_{spec.engine}"),
        version=instance.version,
        running_version=status.running_version,
        provider=instance_pb2.Provider.Value(f"PROVIDER_{spec.provider}"),
        database=spec.database,
        username=spec.username,
        resources=_resources(spec.resources),
        parameters=spec.parameters,
        pending_restart_parameters=sorted(status.pending_restart),
        high_availability=_high_availability(spec.high_availability),
        point_in_time_recovery=_point_in_time_recovery(instance),
        placement=_placement(spec.placement),
        deletion_protection=instance.deletion_protection,
        expire_time=timestamp(instance.expire_time),
        labels=instance.labels,
        webhooks=[_webhook(webhook) for webhook in instance.webhooks],
        state=instance_pb2.Instance.State.Value(f"STATE_{instance.state}"),
        state_message=instance.state_message,
        notices=[status_pb2.Notice(field=notice.field, message=notice.message) for notice in status.notices],
        nodes=[node_message(node) for node in sorted(status.nodes, key=lambda node: node.id != status.primary)],
        current_primary=status.primary,
        ready_node_count=status.ready_nodes,
        endpoints=_endpoints(status.endpoints),
        last_failover=_failover(status.last_failover),
        last_upgrade=_upgrade(instance.last_upgrade),
        source_backup=instance.source_backup,
        source_time=timestamp(instance.source_time),
        last_backup=backups.name,
        storage_used_bytes=status.storage_used_bytes,
        sample_time=timestamp(status.sample_time),
        tls_enabled=status.tls,
        create_time=timestamp(instance.create_time),
        update_time=timestamp(instance.update_time),
        etag=etags.etag(f"{spec.name}#{spec.uid}", instance.revision),
    )


def check_etag(given: str, instance: Instance) -> None:
    """Raises Aborted unless it is that of the instance as it is now; an empty one always passes."""
    etags.check(given, f"{instance.name}#{instance.uid}", instance.revision)


def settings_message(instance: Instance) -> instance_pb2.Instance:
    """What its owner set, without passwords, and what tells it from others: what a restore starts from."""
    spec = instance.spec
    return instance_pb2.Instance(
        name=spec.name,
        uid=spec.uid,
        engine=instance_pb2.Engine.Value(f"ENGINE_{spec.engine}"),
        version=spec.version,
        provider=instance_pb2.Provider.Value(f"PROVIDER_{spec.provider}"),
        database=spec.database,
        username=spec.username,
        resources=_resources(spec.resources),
        parameters=spec.parameters,
        high_availability=_high_availability(spec.high_availability),
        point_in_time_recovery=_point_in_time_recovery(instance),
        placement=_placement(spec.placement),
        labels=instance.labels,
    )


def node_message(node: Node) -> status_pb2.Node:
    """One server."""
    role = "UNSPECIFIED" if node.role is NodeRole.UNKNOWN else node.role
    return status_pb2.Node(
        id=node.id,
        role=status_pb2.Node.Role.Value(f"ROLE_{role}"),
        state=status_pb2.Node.State.Value(f"STATE_{node.state}"),
        synchronous=node.synchronous,
        lag_bytes=node.lag_bytes,
        lag=duration(node.lag),
        host=node.host,
        port=node.port,
        zone=node.zone,
        start_time=timestamp(node.start_time),
    )


def privilege_of(privilege: databases_pb2.Privilege.ValueType) -> Privilege:
    """READ_WRITE unless something else is said."""
    if privilege == databases_pb2.PRIVILEGE_UNSPECIFIED:
        return Privilege.READ_WRITE
    return Privilege(databases_pb2.Privilege.Name(privilege).removeprefix("PRIVILEGE_"))


def database_message(instance: str, database: DatabaseInfo) -> databases_pb2.Database:
    """A database of an instance."""
    return databases_pb2.Database(
        name=names.database(instance, database.name),
        owner=database.owner,
        charset=database.charset,
        collation=database.collation,
        size_bytes=database.size_bytes,
    )


def user_message(instance: str, user: UserInfo, password_time: datetime | None) -> databases_pb2.User:
    """A user of an instance, without the password."""
    return databases_pb2.User(
        name=names.user(instance, user.name),
        privilege=databases_pb2.Privilege.Value(f"PRIVILEGE_{user.privilege}"),
        databases=user.databases,
        max_connections=user.max_connections,
        password_time=timestamp(password_time),
    )


def _resources(resources: Resources) -> instance_pb2.Resources:
    return instance_pb2.Resources(
        storage_bytes=resources.storage_bytes,
        memory_bytes=resources.memory_bytes,
        cpu_millis=resources.cpu_millis,
        memory_request_bytes=resources.memory_request_bytes,
        cpu_request_millis=resources.cpu_request_millis,
    )


def _high_availability(settings: HighAvailability | None) -> instance_pb2.HighAvailability | None:
    if settings is None:
        return None
    synchronous = settings.synchronous_replicas > 0
    return instance_pb2.HighAvailability(
        node_count=settings.node_count,
        replication_mode=(
            instance_pb2.REPLICATION_MODE_SYNCHRONOUS if synchronous else instance_pb2.REPLICATION_MODE_ASYNCHRONOUS
        ),
        synchronous_replica_count=settings.synchronous_replicas,
        automatic_failover=settings.automatic_failover,
    )


def _point_in_time_recovery(instance: Instance) -> instance_pb2.PointInTimeRecovery | None:
    settings = instance.spec.point_in_time_recovery
    if settings is None:
        return None
    return instance_pb2.PointInTimeRecovery(
        enabled=True,
        window_days=settings.window_days,
        earliest_time=timestamp(instance.status.archive_from),
        latest_time=timestamp(instance.status.archive_until),
    )


def _placement(placement: Placement | None) -> instance_pb2.Placement | None:
    if placement is None:
        return None
    return instance_pb2.Placement(
        namespace=placement.namespace,
        storage_class=placement.storage_class,
        zone_spread=instance_pb2.ZoneSpread.Value(f"ZONE_SPREAD_{placement.zone_spread or 'UNSPECIFIED'}"),
    )


def _webhook(webhook: Webhook) -> webhooks_pb2.Webhook:
    return webhooks_pb2.Webhook(
        url=webhook.url, kinds=[events_pb2.Event.Kind.Value(f"KIND_{kind}") for kind in webhook.kinds]
    )


def _endpoints(endpoints: Endpoints | None) -> status_pb2.Endpoints | None:
    if endpoints is None:
        return None
    return status_pb2.Endpoints(
        rw=_endpoint(endpoints.rw),
        ro=_endpoint(endpoints.ro),
        r=_endpoint(endpoints.r),
        any=_endpoint(endpoints.any),
    )


def _endpoint(endpoint: Endpoint | None) -> status_pb2.Endpoint | None:
    if endpoint is None:
        return None
    return status_pb2.Endpoint(host=endpoint.host, port=endpoint.port, address=address(endpoint.host, endpoint.port))


def address(host: str, port: int) -> str:
    """`host:port`; an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _failover(report: FailoverReport | None) -> status_pb2.FailoverReport | None:
    if report is None:
        return None
    return status_pb2.FailoverReport(
        kind=status_pb2.FailoverReport.Kind.Value(f"KIND_{report.kind}"),
        old_primary=report.old_primary,
        new_primary=report.new_primary,
        reason=report.reason,
        start_time=timestamp(report.start_time),
        detect_time=timestamp(report.detect_time),
        complete_time=timestamp(report.complete_time),
        duration=duration(report.complete_time - report.start_time),
        lost_bytes=report.lost_bytes,
    )


def _upgrade(report: UpgradeReport | None) -> status_pb2.UpgradeReport | None:
    if report is None:
        return None
    return status_pb2.UpgradeReport(
        from_version=report.from_version,
        to_version=report.to_version,
        backup=report.backup,
        complete_time=timestamp(report.complete_time),
        rollback_expire_time=timestamp(report.rollback_expire_time),
        rolled_back=report.rolled_back,
    )
