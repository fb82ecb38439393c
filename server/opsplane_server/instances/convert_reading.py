"""domain <-> proto: parameters, slow queries, usage, as they are read."""

from __future__ import annotations

from typing import Final

from opsplane.instances.v1 import monitoring_pb2, usage_pb2

from opsplane_server.instances.records import Granularity, UsageAmounts, UsageSpan
from opsplane_server.instances.sql import ParameterInfo, ParameterSource, SlowQuery, SlowQueryOrder
from opsplane_server.rpc.times import duration, timestamp

_LONGEST_QUERY: Final = 10_000


def parameter_message(parameter: ParameterInfo, source: ParameterSource, *, settable: bool) -> monitoring_pb2.Parameter:
    """A parameter of the engine."""
    return monitoring_pb2.Parameter(
        parameter=parameter.name,
        value=parameter.value,
        unit=parameter.unit,
        source=monitoring_pb2.ParameterSource.Value(f"PARAMETER_SOURCE_{source}"),
        requires_restart=parameter.requires_restart,
        pending_value=parameter.pending_value,
        settable=settable,
        description=parameter.description,
    )


def order_of(order: monitoring_pb2.SlowQueryOrder.ValueType) -> SlowQueryOrder:
    """TOTAL_TIME unless something else is said."""
    if order == monitoring_pb2.SLOW_QUERY_ORDER_UNSPECIFIED:
        return SlowQueryOrder.TOTAL_TIME
    return SlowQueryOrder(monitoring_pb2.SlowQueryOrder.Name(order).removeprefix("SLOW_QUERY_ORDER_"))


def slow_query_message(query: SlowQuery) -> monitoring_pb2.SlowQuery:
    """A statement."""
    return monitoring_pb2.SlowQuery(
        query=query.query[:_LONGEST_QUERY],
        query_id=query.query_id,
        database=query.database,
        user=query.user,
        calls=query.calls,
        total_time=duration(query.total_time),
        mean_time=duration(query.mean_time),
        max_time=duration(query.max_time),
        rows=query.rows,
        last_time=timestamp(query.last_time),
    )


def granularity_of(granularity: usage_pb2.Granularity.ValueType) -> Granularity:
    """HOUR unless something else is said."""
    if granularity == usage_pb2.GRANULARITY_UNSPECIFIED:
        return Granularity.HOUR
    return Granularity(usage_pb2.Granularity.Name(granularity).removeprefix("GRANULARITY_"))


def usage_message(span: UsageSpan) -> usage_pb2.Usage:
    """What was used in a span."""
    message = amounts_message(span.amounts)
    message.instance = span.instance
    message.instance_uid = span.instance_uid
    message.start_time.FromDatetime(span.start_time)
    message.end_time.FromDatetime(span.end_time)
    return message


def amounts_message(amounts: UsageAmounts) -> usage_pb2.Usage:
    """What was used, without saying when and by whom."""
    return usage_pb2.Usage(
        cpu_core_hours=amounts.cpu_core_hours,
        memory_gib_hours=amounts.memory_gib_hours,
        storage_gib_hours=amounts.storage_gib_hours,
        backup_gib_hours=amounts.backup_gib_hours,
        cost_micros=round(amounts.cost_micros),
    )
