"""The RPCs of data sets, which `LoadTestingServicer` inherits."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from opsplane.loadtesting.v1 import datasets_pb2

from opsplane_server.loadtesting import names
from opsplane_server.loadtesting.datasets import convert
from opsplane_server.loadtesting.datasets.data_sets import DataSets
from opsplane_server.loadtesting.datasets.model import DataSet, Rows
from opsplane_server.loadtesting.datasets.ports import DataSetStore
from opsplane_server.platform.changes import Changes
from opsplane_server.rpc.filters import FieldType, parse
from opsplane_server.rpc.ids import new_id
from opsplane_server.rpc.paging import next_page_token, page_request

Context = grpc.aio.ServicerContext[Any, Any]

FILTER = {"title": FieldType.STRING, "create_time": FieldType.TIME}


class DataSetRpcs:
    """The part of `opsplane.loadtesting.v1.LoadTesting` that is about data sets."""

    def __init__(self, changes: Changes, data_sets: DataSets, data_set_store: DataSetStore) -> None:
        self._changes = changes
        self._data_sets = data_sets
        self._data_set_store = data_set_store

    async def CreateDataSet(self, request: datasets_pb2.CreateDataSetRequest, context: Context) -> datasets_pb2.DataSet:
        """Reads a file before the transaction: that may take seconds."""
        replayed = await self._changes.replay(request, datasets_pb2.DataSet)
        if replayed is not None:
            return replayed
        source = convert.source_from_proto(request.data_set)
        rows = await self._data_sets.read(request.parent, source)
        name = names.data_set(names.ids(request.parent)[0], request.data_set_id or new_id())
        wanted = _described(DataSet(name, request.data_set.title, source.kind), rows)

        async def create() -> datasets_pb2.DataSet:
            return convert.data_set_to_proto(await self._data_sets.create(wanted, source, rows))

        return await self._changes.apply(request, datasets_pb2.DataSet, create)

    async def GetDataSet(self, request: datasets_pb2.GetDataSetRequest, context: Context) -> datasets_pb2.DataSet:
        """Reads."""
        return convert.data_set_to_proto(await self._data_set_store.get_data_set(request.name))

    async def ListDataSets(
        self, request: datasets_pb2.ListDataSetsRequest, context: Context
    ) -> datasets_pb2.ListDataSetsResponse:
        """Reads a page."""
        binding = f"ListDataSets {request.parent} {request.filter}"
        page = page_request(request.page_size, request.page_token, binding=binding, key_types=(int,))
        found = await self._data_set_store.list_data_sets(request.parent, page, parse(request.filter, FILTER))
        shown = found[: page.size]
        return datasets_pb2.ListDataSetsResponse(
            data_sets=[convert.data_set_to_proto(data_set) for data_set in shown],
            next_page_token=next_page_token(binding, [shown[-1].key]) if len(found) > page.size else "",
        )

    async def DeleteDataSet(self, request: datasets_pb2.DeleteDataSetRequest, context: Context) -> Empty:
        """Deletes; runs keep their own copy of its rows."""

        async def delete() -> Empty:
            await self._data_set_store.delete_data_set(request.name)
            return Empty()

        return await self._changes.apply(request, Empty, delete)

    async def TestDataSet(
        self, request: datasets_pb2.TestDataSetRequest, context: Context
    ) -> datasets_pb2.TestDataSetResponse:
        """Changes nothing."""
        source = convert.source_from_proto(request.data_set)
        return convert.trial_to_proto(await self._data_sets.test(request.parent, source, request.sample_size))


def _described(data_set: DataSet, rows: Rows | None) -> DataSet:
    if rows is None:
        return data_set
    return DataSet(data_set.name, data_set.title, data_set.source, rows.fields, rows.row_count, rows.sha256)
