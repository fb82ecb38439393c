"""What an instance's engine and this server tell of it: parameters, slow queries, usage."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from opsplane.instances.v1 import monitoring_pb2, usage_pb2

from opsplane_server.errors import InvalidArgument
from opsplane_server.instances.convert_reading import (
    amounts_message,
    granularity_of,
    order_of,
    parameter_message,
    slow_query_message,
    usage_message,
)
from opsplane_server.instances.databases import Engines
from opsplane_server.instances.filtering import (
    Fields,
    enum_names,
    matching,
    page_by_name,
    page_by_place,
    without_prefixes,
)
from opsplane_server.instances.instances import Providers
from opsplane_server.instances.model import InstanceSpec
from opsplane_server.instances.sql import ParameterInfo, ParameterSource
from opsplane_server.instances.stores.ports import InstanceStore, UsageStore
from opsplane_server.instances.submission import shown
from opsplane_server.rpc.filters import FieldType, parse
from opsplane_server.rpc.paging import next_page_token, page_request

_SOURCE: Final = "PARAMETER_SOURCE_"
_PARAMETER_FIELDS: Final[Fields] = {
    "parameter": FieldType.STRING,
    "source": enum_names(_SOURCE, (source.value for source in ParameterSource)),
    "requires_restart": FieldType.BOOLEAN,
    "settable": FieldType.BOOLEAN,
}
_SLOW_QUERY_FIELDS: Final[Fields] = {
    "query": FieldType.STRING,
    "database": FieldType.STRING,
    "user": FieldType.STRING,
    "calls": FieldType.INTEGER,
    "mean_time": FieldType.NUMBER,
    "max_time": FieldType.NUMBER,
}
_MOST_QUERIES: Final = 5000
_MILLISECOND: Final = timedelta(milliseconds=1)
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)


class Reading:
    """Each method answers the RPC of the same name."""

    def __init__(
        self,
        store: InstanceStore,
        usage: UsageStore,
        providers: Providers,
        engines: Engines,
        *,
        rates: usage_pb2.UsageRates,
        currency_code: str,
    ) -> None:
        self._store = store
        self._usage = usage
        self._providers = providers
        self._engines = engines
        self._rates = rates
        self._currency_code = currency_code

    async def list_parameters(
        self, request: monitoring_pb2.ListParametersRequest
    ) -> monitoring_pb2.ListParametersResponse:
        """All that the engine has, those that may be set marked."""
        conditions = without_prefixes(parse(request.filter, _PARAMETER_FIELDS), {"source": _SOURCE})
        instance = shown(await self._store.get(request.parent))
        admin, access = await self._engines.reach(instance)
        provider = self._providers.reaching(instance)
        parameters = await admin.list_parameters(access)
        settable = await asyncio.to_thread(
            provider.settable, instance.spec, [parameter.name for parameter in parameters]
        )
        messages = [
            parameter_message(parameter, _source(parameter, instance.spec), settable=parameter.name in settable)
            for parameter in parameters
        ]
        found = matching(
            messages,
            conditions,
            {
                "parameter": lambda message: message.parameter,
                "source": lambda message: monitoring_pb2.ParameterSource.Name(message.source).removeprefix(_SOURCE),
                "requires_restart": lambda message: message.requires_restart,
                "settable": lambda message: message.settable,
            },
        )
        page, token = page_by_name(
            found,
            lambda message: message.parameter,
            page_size=request.page_size,
            page_token=request.page_token,
            binding=f"ListParameters {request.parent} {request.filter}",
        )
        return monitoring_pb2.ListParametersResponse(parameters=page, next_page_token=token)

    async def list_slow_queries(
        self, request: monitoring_pb2.ListSlowQueriesRequest
    ) -> monitoring_pb2.ListSlowQueriesResponse:
        """From the engine's statistics, else from its log."""
        conditions = parse(request.filter, _SLOW_QUERY_FIELDS)
        instance = shown(await self._store.get(request.parent))
        admin, access = await self._engines.reach(instance)
        log = await self._providers.reaching(instance).slow_log(instance.name)
        found = await admin.slow_queries(access, log, order_of(request.order), _MOST_QUERIES)
        queries = matching(
            found.queries,
            conditions,
            {
                "query": lambda query: query.query,
                "database": lambda query: query.database,
                "user": lambda query: query.user,
                "calls": lambda query: query.calls,
                "mean_time": lambda query: query.mean_time / _MILLISECOND,
                "max_time": lambda query: query.max_time / _MILLISECOND,
            },
        )
        page, token = page_by_place(
            queries,
            page_size=request.page_size,
            page_token=request.page_token,
            binding=f"ListSlowQueries {request.parent} {request.order} {request.filter}",
        )
        response = monitoring_pb2.ListSlowQueriesResponse(
            slow_queries=[slow_query_message(query) for query in page],
            next_page_token=token,
            source=(
                monitoring_pb2.SLOW_QUERY_SOURCE_STATISTICS
                if found.statistics
                else monitoring_pb2.SLOW_QUERY_SOURCE_LOG
            ),
        )
        response.threshold.FromTimedelta(found.threshold)
        if found.since_time is not None:
            response.since_time.FromDatetime(found.since_time)
        return response

    async def get_usage(self, request: usage_pb2.GetUsageRequest) -> usage_pb2.GetUsageResponse:
        """By hour, day or month, with the sum over all."""
        binding = " ".join(
            [
                f"GetUsage {request.name} {request.granularity}",
                request.start_time.ToJsonString() if request.HasField("start_time") else "",
                request.end_time.ToJsonString() if request.HasField("end_time") else "",
            ]
        )
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int, str))
        end = _ceiling(_moment(request.end_time) if request.HasField("end_time") else datetime.now(UTC))
        start = _floor(_moment(request.start_time) if request.HasField("start_time") else end - _DAY)
        if start >= end:
            raise InvalidArgument.of("end_time", "must be after start_time")
        total = await self._usage.total(request.name, start, end)
        found = await self._usage.list_usage(request.name, start, end, granularity_of(request.granularity), page)
        spans = found[: page.size]
        token = ""
        if len(found) > page.size:
            token = next_page_token(binding, [int(spans[-1].start_time.timestamp()), spans[-1].instance_uid])
        response = usage_pb2.GetUsageResponse(
            usage=[usage_message(span) for span in spans],
            next_page_token=token,
            total=amounts_message(total),
            currency_code=self._currency_code,
            rates=self._rates,
        )
        response.total.start_time.FromDatetime(start)
        response.total.end_time.FromDatetime(end)
        return response


def _source(parameter: ParameterInfo, spec: InstanceSpec) -> ParameterSource:
    if parameter.name in spec.parameters:
        return ParameterSource.SET
    return ParameterSource.ENGINE_DEFAULT if parameter.default else ParameterSource.DERIVED


def _moment(time: Timestamp) -> datetime:
    return time.ToDatetime(tzinfo=UTC)


def _floor(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


def _ceiling(time: datetime) -> datetime:
    floor = _floor(time)
    return floor if floor == time else floor + _HOUR
