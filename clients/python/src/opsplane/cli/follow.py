"""Following a run to its end, with Ctrl-C as people expect it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable

import grpc

from opsplane.cli.output import console
from opsplane.cli.session import Session, call, explain
from opsplane.cli.views import JsonView, LineView, LiveView, View
from opsplane.client import Client, new_request_id
from opsplane.loadtesting.v1 import runs_pb2


class LeftError(Exception):
    """Somebody left before the end. `run_goes_on` tells whether the run was not cancelled before."""

    def __init__(self, name: str, *, run_goes_on: bool) -> None:
        super().__init__(name)
        self.name = name
        self.run_goes_on = run_goes_on


def choose_view(session: Session, *, stream_json: bool) -> View:
    """The picture in a terminal; elsewhere lines, on standard error where standard output is for JSON."""
    if session.as_json:
        return JsonView(sys.stdout) if stream_json else LineView(sys.stderr)
    return LiveView(console()) if sys.stdout.isatty() else LineView(sys.stdout)


async def follow(client: Client, name: str, view: View, *, cancel_on_interrupt: bool) -> runs_pb2.Run:
    """Shows a run until it has ended and returns it.

    With `cancel_on_interrupt` the first Ctrl-C cancels the run and shows how it ends; another one raises Left, as
    does the first without it.
    """
    watching = asyncio.create_task(_watch(client, name, view))
    cancelling: asyncio.Task[None] | None = None

    def interrupted() -> None:
        nonlocal cancelling
        if cancel_on_interrupt and cancelling is None:
            cancelling = asyncio.create_task(_cancel(client, name, view))
        else:
            watching.cancel()

    with view:
        async with _on_interrupt(interrupted):
            try:
                run = await watching
            except asyncio.CancelledError:
                raise LeftError(name, run_goes_on=cancelling is None) from None
            finally:
                watching.cancel()
                if cancelling is not None:
                    cancelling.cancel()
                    await asyncio.gather(cancelling, return_exceptions=True)
    return run


async def _watch(client: Client, name: str, view: View) -> runs_pb2.Run:
    async for response in client.watch_run(name, on_reconnect=lambda: view.note("connection lost, reconnecting")):
        view.show(response)
    return view.progress.run


async def _cancel(client: Client, name: str, view: View) -> None:
    view.note("cancelling the run; Ctrl-C again leaves it")
    request = runs_pb2.CancelRunRequest(name=name, request_id=new_request_id())
    try:
        await call(client.load_testing.CancelRun, request, runs_pb2.Run)
    except grpc.aio.AioRpcError as error:
        view.note(f"the run could not be cancelled: {explain(error, client.address)}")


@contextlib.asynccontextmanager
async def _on_interrupt(handler: Callable[[], None]) -> AsyncIterator[None]:
    """Calls `handler` at each Ctrl-C instead of ending the program."""
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, handler)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
