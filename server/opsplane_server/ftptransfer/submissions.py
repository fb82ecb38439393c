"""Streams of transfers: each message is kept as it comes, the answer adds them up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from opsplane.ftptransfer.v1 import ftptransfer_pb2

from opsplane_server.ftptransfer import names
from opsplane_server.ftptransfer.convert import failure_to_proto
from opsplane_server.ftptransfer.convert_transfers import transfer_from_proto
from opsplane_server.ftptransfer.figures import TransferFigures
from opsplane_server.ftptransfer.transfers import Submission, Transfers
from opsplane_server.platform.changes import Changes
from opsplane_server.rpc.calls import current_call
from opsplane_server.rpc.ids import new_id

_TOLD: Final = 1000


class Submissions:
    """Takes streams of transfers."""

    def __init__(self, changes: Changes, transfers: Transfers, figures: TransferFigures) -> None:
        self._changes = changes
        self._transfers = transfers
        self._figures = figures

    async def take(
        self, requests: AsyncIterator[ftptransfer_pb2.SubmitTransfersRequest]
    ) -> ftptransfer_pb2.SubmitTransfersResponse:
        """Puts the transfers of all messages into the queue."""
        total = ftptransfer_pb2.SubmitTransfersResponse()
        before = 0
        async for request in requests:
            _add(total, await self._take_one(request), before)
            before += len(request.transfers)
        return total

    async def _take_one(
        self, request: ftptransfer_pb2.SubmitTransfersRequest
    ) -> ftptransfer_pb2.SubmitTransfersResponse:
        """What came of a message. Of one that was kept before, all is known already."""
        submitter = current_call().principal.name
        taken = False

        async def submit() -> ftptransfer_pb2.SubmitTransfersResponse:
            nonlocal taken
            taken = True
            new = [transfer_from_proto(transfer, new_id(), submitter) for transfer in request.transfers]
            return _answer(request, await self._transfers.submit_many(new))

        answer = await self._changes.apply(request, ftptransfer_pb2.SubmitTransfersResponse, submit)
        if taken:
            self._figures.received(answer.submitted_count)
            self._transfers.tell()
        else:
            answer.duplicate_count += answer.submitted_count
            answer.submitted_count = 0
        return answer


def _answer(
    request: ftptransfer_pb2.SubmitTransfersRequest, submissions: list[Submission]
) -> ftptransfer_pb2.SubmitTransfersResponse:
    answer = ftptransfer_pb2.SubmitTransfersResponse()
    for index, submission in enumerate(submissions):
        wrong = submission.wrong
        if wrong is not None:
            answer.rejected_count += 1
            answer.rejected_transfers.add(
                index=index,
                task_id=request.transfers[index].task_id,
                field=wrong.field,
                error=failure_to_proto(wrong.failure.failure),
            )
            continue
        answer.submitted_count += submission.new
        answer.duplicate_count += not submission.new
        answer.names.append(names.transfer(submission.id))
    return answer


def _add(
    total: ftptransfer_pb2.SubmitTransfersResponse, part: ftptransfer_pb2.SubmitTransfersResponse, before: int
) -> None:
    total.submitted_count += part.submitted_count
    total.duplicate_count += part.duplicate_count
    total.rejected_count += part.rejected_count
    total.names.extend(part.names[: _TOLD - len(total.names)])
    for rejected in part.rejected_transfers[: _TOLD - len(total.rejected_transfers)]:
        rejected.index += before
        total.rejected_transfers.append(rejected)
