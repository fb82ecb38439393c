"""proto <-> domain: data sets."""

from __future__ import annotations

from google.protobuf import json_format
from opsplane.loadtesting.v1 import datasets_pb2

from opsplane_server.loadtesting.datasets.data_sets import Source, Trial
from opsplane_server.loadtesting.datasets.model import ClickHouseQuery, DataSet, RowFormat, UploadedRows
from opsplane_server.rpc.times import duration, timestamp

_PREFIX = "ROW_FORMAT_"


def source_from_proto(message: datasets_pb2.DataSet) -> Source:
    """Where the rows of a data set come from, with the secrets and the file that only requests carry."""
    if message.WhichOneof("source") == "upload":
        name = datasets_pb2.RowFormat.Name(message.upload.format)
        return Source(UploadedRows(RowFormat(name.removeprefix(_PREFIX))), content=message.upload.content)
    query = message.clickhouse
    return Source(
        ClickHouseQuery(
            host=query.host,
            query=query.query,
            port=query.port,
            database=query.database,
            user=query.user,
            tls=query.tls,
            timeout=query.timeout.ToTimedelta() if query.HasField("timeout") else None,
            limit=query.limit,
        ),
        password=query.password,
    )


def data_set_to_proto(data_set: DataSet) -> datasets_pb2.DataSet:
    """The data set as callers see it: without rows and without the password."""
    message = datasets_pb2.DataSet(
        name=data_set.name,
        title=data_set.title,
        fields=data_set.fields,
        row_count=data_set.row_count,
        sha256=data_set.sha256,
        create_time=timestamp(data_set.create_time),
    )
    match data_set.source:
        case UploadedRows(form):
            message.upload.format = datasets_pb2.RowFormat.Value(f"{_PREFIX}{form.value}")
        case ClickHouseQuery() as query:
            message.clickhouse.CopyFrom(
                datasets_pb2.ClickHouseQuery(
                    host=query.host,
                    port=query.port,
                    database=query.database,
                    user=query.user,
                    query=query.query,
                    tls=query.tls,
                    timeout=duration(query.timeout),
                    limit=query.limit,
                )
            )
    return message


def trial_to_proto(trial: Trial) -> datasets_pb2.TestDataSetResponse:
    """What a source gave."""
    message = datasets_pb2.TestDataSetResponse(
        fields=trial.rows.fields, row_count=trial.rows.row_count, duration=duration(trial.duration)
    )
    for sample in trial.samples:
        json_format.ParseDict(sample, message.samples.add())
    return message
