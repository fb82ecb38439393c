"""How instances look in a terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.text import Text

from opsplane.cli.durations import format_duration
from opsplane.cli.ftp_figures import size_text
from opsplane.cli.output import clean, local_time, one_line, short, table
from opsplane.instances.v1 import events_pb2, instance_pb2, monitoring_pb2, status_pb2

_GOOD = frozenset({instance_pb2.Instance.STATE_READY})
_BAD = frozenset({instance_pb2.Instance.STATE_FAILED, instance_pb2.Instance.STATE_UNAVAILABLE})
_QUIET = frozenset({instance_pb2.Instance.STATE_STOPPED})
_SEVERITIES = {
    events_pb2.Event.SEVERITY_INFO: "",
    events_pb2.Event.SEVERITY_WARNING: "yellow",
    events_pb2.Event.SEVERITY_ERROR: "bold red",
}


def engine_text(instance: instance_pb2.Instance) -> str:
    """`postgresql 18.4`."""
    engine = instance_pb2.Engine.Name(instance.engine).removeprefix("ENGINE_").lower()
    return f"{engine} {instance.running_version or instance.version}".rstrip()


def state_text(instance: instance_pb2.Instance) -> Text:
    """The state in its colour."""
    name = instance_pb2.Instance.State.Name(instance.state).removeprefix("STATE_").lower().replace("_", " ")
    style = (
        "green"
        if instance.state in _GOOD
        else "bold red"
        if instance.state in _BAD
        else "dim"
        if instance.state in _QUIET
        else "yellow"
    )
    return Text(name, style=style)


def instance_row(instance: instance_pb2.Instance) -> tuple[str | Text, ...]:
    """A row of `db list`."""
    nodes = f"{instance.ready_node_count}/{len(instance.nodes) or 1}"
    used = instance.storage_used_bytes
    return (
        short(instance.name),
        engine_text(instance),
        state_text(instance),
        nodes,
        clean(instance.endpoints.rw.address),
        f"{size_text(used)} of {size_text(instance.resources.storage_bytes)}" if used else "",
        short(instance.last_backup),
        local_time(instance.create_time),
    )


INSTANCE_COLUMNS = ("instance", "engine", "state", "nodes", "address", "storage", "last backup", "created")


def instance_picture(instance: instance_pb2.Instance) -> RenderableType:
    """Everything of an instance."""
    resources = instance.resources
    facts: list[tuple[str, str | Text]] = [
        ("state", state_text(instance)),
        ("", one_line(instance.state_message, 200)),
        ("engine", engine_text(instance)),
        ("storage", f"{size_text(instance.storage_used_bytes)} of {size_text(resources.storage_bytes)}"),
        ("memory", size_text(resources.memory_bytes)),
        ("cpu", f"{resources.cpu_millis}m"),
        ("database", clean(instance.database)),
        ("user", clean(instance.username)),
        ("rw", clean(instance.endpoints.rw.address)),
        ("ro", clean(instance.endpoints.ro.address)),
        ("r", clean(instance.endpoints.r.address) if len(instance.nodes) > 1 else ""),
        ("tls", "yes" if instance.tls_enabled else "no"),
        ("parameters", ", ".join(f"{name}={value}" for name, value in sorted(instance.parameters.items()))),
        ("waiting for a restart", ", ".join(instance.pending_restart_parameters)),
        ("labels", ", ".join(f"{name}={value}" for name, value in sorted(instance.labels.items()))),
        ("last backup", short(instance.last_backup)),
        ("made from", instance.source_backup),
        ("last failover", _failover(instance)),
        ("protected", "yes" if instance.deletion_protection else ""),
        ("expires", local_time(instance.expire_time)),
        ("created", local_time(instance.create_time)),
    ]
    overview = table(("", ""), [(name, value) for name, value in facts if str(value)], title=instance.name)
    overview.show_header = False
    parts: list[RenderableType] = [overview]
    if len(instance.nodes) > 1:
        parts += ["", nodes_table(instance)]
    parts += [
        Text(f"note: {notice.field}: {one_line(notice.message, 200)}", style="yellow") for notice in instance.notices
    ]
    return Group(*parts)


def nodes_table(instance: instance_pb2.Instance) -> RenderableType:
    """Its servers."""
    rows = [
        (
            node.id,
            status_pb2.Node.Role.Name(node.role).removeprefix("ROLE_").lower(),
            status_pb2.Node.State.Name(node.state).removeprefix("STATE_").lower(),
            "sync" if node.synchronous else "",
            size_text(node.lag_bytes) if node.lag_bytes else "",
            f"{clean(node.host)}:{node.port}",
        )
        for node in instance.nodes
    ]
    return table(("node", "role", "state", "", ">lag", "address"), rows)


def metrics_table(metrics: monitoring_pb2.InstanceMetrics) -> RenderableType:
    """Figures of each node."""
    rows = [
        (
            node.node,
            f"{node.cpu_millis:.0f}m" if node.HasField("cpu_millis") else "",
            size_text(node.memory_bytes) if node.HasField("memory_bytes") else "",
            size_text(node.storage_used_bytes) if node.HasField("storage_used_bytes") else "",
            f"{node.connections}/{node.max_connections}" if node.HasField("connections") else "",
            f"{node.transactions_per_second:,.1f}" if node.HasField("transactions_per_second") else "",
            f"{node.queries_per_second:,.1f}" if node.HasField("queries_per_second") else "",
            f"{node.cache_hit_ratio:.1%}" if node.HasField("cache_hit_ratio") else "",
            size_text(node.lag_bytes) if node.HasField("lag_bytes") else "",
        )
        for node in metrics.nodes
    ]
    columns = ("node", ">cpu", ">memory", ">storage", ">connections", ">tx/s", ">queries/s", ">cache", ">lag")
    return table(columns, rows)


def event_row(event: events_pb2.Event) -> tuple[str | Text, ...]:
    """A row of `db events`."""
    kind = events_pb2.Event.Kind.Name(event.kind).removeprefix("KIND_").lower().replace("_", " ")
    where = " ".join(filter(None, (short(event.instance), event.node)))
    style = _SEVERITIES.get(event.severity, "")
    return (
        local_time(event.event_time),
        where,
        Text(kind, style=style),
        one_line(event.message, 120),
        clean(event.principal),
    )


EVENT_COLUMNS = ("time", "instance", "event", "", "by")


def _failover(instance: instance_pb2.Instance) -> str:
    if not instance.HasField("last_failover"):
        return ""
    report = instance.last_failover
    age = datetime.now(UTC) - report.complete_time.ToDatetime(tzinfo=UTC)
    took = format_duration(report.duration.ToTimedelta())
    return f"{report.old_primary} to {report.new_primary} in {took}, {format_duration(age)} ago"
