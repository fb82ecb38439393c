"""`opsplane loadtest run|watch|show|history|cancel|delete|script`."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, Never

import click
from google.protobuf.empty_pb2 import Empty

from opsplane.cli.endpoints import load_catalog
from opsplane.cli.figures import verdict_name
from opsplane.cli.follow import LeftError, choose_view, follow
from opsplane.cli.names import project_option, run_name, spec_name
from opsplane.cli.output import clean, console, more, print_json
from opsplane.cli.results import heading, history_table, print_results
from opsplane.cli.run_changes import RunChanges, change_options
from opsplane.cli.run_files import read_run_file, resolve_data_sets, resolve_endpoints, unresolved_endpoints
from opsplane.cli.run_options import LoadOptions, StageText, build_run, load_options
from opsplane.cli.session import Session, call, pages, pass_session
from opsplane.cli.views import View
from opsplane.client import ENDED_RUN_STATES, Client, new_request_id
from opsplane.loadtesting.v1 import runs_pb2

BAD_VERDICT = 3
INTERRUPTED = 130

_Work = Callable[[Client], Coroutine[Any, Any, tuple[runs_pb2.Run, View | None]]]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@project_option()
@click.option("--file", "-f", "file", type=FILE, help="Run file, YAML or JSON; see docs/cli.md.")
@change_options
@click.option("--endpoint", "-e", "endpoints", multiple=True,
              help='Endpoint to call, repeatable: "GET /pets", an operation id, or a name.')  # fmt: skip
@click.option("--spec", help="Look for endpoints in this specification alone.")
@load_options
@click.option("--title", default="", help="What people call the run.")
@click.option("--base-url", default="", help="Where the API is, instead of what its specification says.")
@click.option("--run-id", default="", help="Id of the run; one is made without it.")
@click.option("--detach", "--no-watch", "-d", "detach", is_flag=True, help="Start the run and leave it alone.")
@pass_session
def run(
    session: Session,
    project: str,
    file: Path | None,
    endpoints: tuple[str, ...],
    spec: str | None,
    vus: int | None,
    duration: timedelta | None,
    stages: tuple[StageText, ...],
    rate: int | None,
    think_time: timedelta | None,
    target_p95: timedelta | None,
    target_errors: float | None,
    title: str,
    base_url: str,
    run_id: str,
    detach: bool,
    changes: RunChanges,
) -> None:
    """Start a load test and show it live.

    Ctrl-C cancels the run and shows how it ends; a second one leaves it. With `-o json` the ended run is printed
    to standard output, and its course to standard error.

    \b
    Examples:
      opsplane loadtest run -p shop -e "GET /pets" --vus 10 --duration 30s
      opsplane loadtest run -p shop -e listPets -e getPet --stage 10s:20 --stage 1m:20 --stage 5s:0
      opsplane loadtest run -p shop -e "GET /pets" --rate 200 --duration 1m --target-p95 300ms --target-errors 1%
      opsplane loadtest run -p shop -f run.yaml
      opsplane loadtest run -p shop -f users.yaml -u 50 -r 5 -t 300s --set user_load.classes[Heavy].weight=2
    """
    options = LoadOptions(vus, duration, stages, rate, think_time, target_p95, target_errors)
    options.check()
    if bool(file) == bool(endpoints):
        raise click.UsageError("give either --endpoint or --file")
    if file and options.given:
        raise click.UsageError(f"the file says what load; it does not go with {', '.join(options.given)}")
    if endpoints and changes.given:
        raise click.UsageError(f"{', '.join(changes.given)} changes what a --file says")

    async def work(client: Client) -> tuple[runs_pb2.Run, View | None]:
        if file:
            wanted = await _run_of_file(client, project, spec, file, changes)
        else:
            catalog = await load_catalog(client, project, spec_name(spec, project) if spec else None)
            wanted = build_run(title, [catalog.find(text) for text in endpoints], options)
        wanted.title = title or wanted.title
        wanted.base_url = base_url or wanted.base_url
        request = runs_pb2.CreateRunRequest(parent=project, run=wanted, run_id=run_id, request_id=new_request_id())
        created = await call(client.load_testing.CreateRun, request, runs_pb2.Run)
        if detach:
            return created, None
        view = choose_view(session, stream_json=False)
        return await follow(client, created.name, view, cancel_on_interrupt=True), view

    _finish(session, work)


@click.command()
@click.argument("run")
@project_option(required=False)
@pass_session
def watch(session: Session, run: str, project: str | None) -> None:
    """Show a run live, from its start to its end.

    Works for ended runs too. Ctrl-C leaves; the run goes on. With `-o json` each update is a line.

    \b
    Examples:
      opsplane loadtest watch shop/nightly
      opsplane -o json loadtest watch shop/nightly | jq -r '.window.total.tps // empty'
    """
    name = run_name(run, project)

    async def work(client: Client) -> tuple[runs_pb2.Run, View | None]:
        view = choose_view(session, stream_json=True)
        return await follow(client, name, view, cancel_on_interrupt=False), view

    _finish(session, work, streamed=True)


@click.command()
@click.argument("run")
@project_option(required=False)
@pass_session
def show(session: Session, run: str, project: str | None) -> None:
    """Show a run with its stored results.

    \b
    Examples:
      opsplane loadtest show shop/nightly
      opsplane -o json loadtest show shop/nightly | jq .results.total.responseTime
    """
    request = runs_pb2.GetRunRequest(name=run_name(run, project))
    found = session.run(lambda client: call(client.load_testing.GetRun, request, runs_pb2.Run))
    if session.as_json:
        print_json(found)
    else:
        print_results(console(), found)


@click.command()
@project_option(required=False)
@click.option("--full", is_flag=True, help="Also each scenario's figures.")
@click.option("--filter", "filter_", default="", help="Restrict the runs, for example 'verdict=FAILED'.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Most runs to list.")
@pass_session
def history(session: Session, project: str | None, full: bool, filter_: str, limit: int) -> None:
    """List runs, newest first, of a project or of all.

    \b
    Examples:
      opsplane loadtest history
      opsplane loadtest history -p shop --full --limit 5
      opsplane loadtest history --filter 'verdict=FAILED AND create_time>="2026-01-01T00:00:00Z"'
    """
    request = runs_pb2.ListRunsRequest(
        parent=project or "projects/-",
        filter=filter_,
        view=runs_pb2.RUN_VIEW_FULL if full else runs_pb2.RUN_VIEW_BASIC,
    )
    found = session.run(lambda client: pages(client.load_testing.ListRuns, request, runs_pb2.ListRunsResponse, limit))
    if session.as_json:
        print_json(found)
        return
    console().print(history_table(found.runs, full=full))
    more(found.next_page_token)


@click.command()
@click.argument("run")
@project_option(required=False)
@pass_session
def cancel(session: Session, run: str, project: str | None) -> None:
    """End a run before its time. Its figures up to then are kept.

    \b
    Example:
      opsplane loadtest cancel shop/nightly
    """
    request = runs_pb2.CancelRunRequest(name=run_name(run, project), request_id=new_request_id())
    found = session.run(lambda client: call(client.load_testing.CancelRun, request, runs_pb2.Run))
    if session.as_json:
        print_json(found)
    else:
        console().print(heading(found))


@click.command()
@click.argument("run")
@project_option(required=False)
@pass_session
def delete(session: Session, run: str, project: str | None) -> None:
    """Delete an ended run with its figures, script and log.

    \b
    Example:
      opsplane loadtest delete shop/nightly
    """
    request = runs_pb2.DeleteRunRequest(name=run_name(run, project), request_id=new_request_id())
    session.run(lambda client: call(client.load_testing.DeleteRun, request, Empty))
    click.echo(f"deleted {request.name}", err=True)


@click.command()
@click.argument("run", required=False)
@project_option(required=False)
@click.option("--file", "-f", "file", type=FILE, help="Show what this run file would execute; needs --project.")
@change_options
@click.option("--spec", help="Look for endpoints in this specification alone.")
@pass_session
def script(
    session: Session,
    run: str | None,
    project: str | None,
    file: Path | None,
    spec: str | None,
    changes: RunChanges,
) -> None:
    """Print the k6 script that a run executed, or that a run file would.

    \b
    Examples:
      opsplane loadtest script shop/nightly > nightly.js
      opsplane loadtest script -p shop -f run.yaml
    """
    if bool(run) == bool(file):
        raise click.UsageError("give either RUN or --file")
    if file and project is None:
        raise click.UsageError("--file needs --project")
    if run and changes.given:
        raise click.UsageError(f"{', '.join(changes.given)} changes what a --file says")

    async def work(client: Client) -> runs_pb2.GetRunScriptResponse | runs_pb2.GenerateScriptResponse:
        if run:
            request = runs_pb2.GetRunScriptRequest(name=run_name(run, project))
            return await call(client.load_testing.GetRunScript, request, runs_pb2.GetRunScriptResponse)
        assert file is not None
        assert project is not None
        wanted = await _run_of_file(client, project, spec, file, changes)
        generate = runs_pb2.GenerateScriptRequest(parent=project, run=wanted)
        return await call(client.load_testing.GenerateScript, generate, runs_pb2.GenerateScriptResponse)

    found = session.run(work)
    if session.as_json:
        print_json(found)
    else:
        click.echo(clean(found.script))


async def _run_of_file(client: Client, project: str, spec: str | None, file: Path, changes: RunChanges) -> runs_pb2.Run:
    wanted = read_run_file(file, os.environ, changes)
    resolve_data_sets(wanted, project)
    if unresolved_endpoints(wanted):
        resolve_endpoints(wanted, await load_catalog(client, project, spec_name(spec, project) if spec else None))
    return wanted


def _finish(session: Session, work: _Work, *, streamed: bool = False) -> None:
    """Runs `work`, prints the run that it gives, and ends the command with what the run came to."""
    try:
        ended, view = session.run(work)
    except LeftError as left:
        _leave(left)
    if session.as_json:
        if not streamed:
            print_json(ended)
    elif view is None:
        console().print(heading(ended))
    else:
        print_results(console(), ended, view.progress)
    bad = ended.state == runs_pb2.RUN_STATE_FAILED or verdict_name(ended) in ("FAILED", "INVALID")
    if ended.state in ENDED_RUN_STATES and bad:
        raise click.exceptions.Exit(BAD_VERDICT)


def _leave(left: LeftError) -> Never:
    if left.run_goes_on:
        click.echo(f"the run goes on; `opsplane loadtest watch {left.name}` shows it again", err=True)
    raise click.exceptions.Exit(INTERRUPTED)
