"""`opsplane loadtest jobs` and `logs`: what is at work now, and what load generators wrote."""

from __future__ import annotations

import click
from rich.text import Text

from opsplane.cli.names import project_option, run_name
from opsplane.cli.output import clean, console, local_time, more, print_json, short, table
from opsplane.cli.session import Session, pages, pass_session
from opsplane.loadtesting.v1 import reports_pb2, runs_pb2

_LEVELS = {"ERROR": "red", "WARN": "yellow", "DEBUG": "dim"}


@click.command()
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most jobs to list.")
@pass_session
def jobs(session: Session, limit: int) -> None:
    """List the load generators at work, oldest first.

    \b
    Example:
      opsplane loadtest jobs
    """
    request = reports_pb2.ListJobsRequest()
    found = session.run(
        lambda client: pages(client.load_testing.ListJobs, request, reports_pb2.ListJobsResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    rows = [
        (
            clean(job.job),
            short(job.run),
            clean(job.title),
            job.provider,
            local_time(job.start_time),
            Text("overdue", style="yellow") if job.overdue else "",
        )
        for job in found.jobs
    ]
    console().print(table(("job", "run", "title", "provider", "started", ""), rows))
    more(found.next_page_token)


@click.command()
@click.argument("run")
@project_option(required=False)
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Most lines to print.")
@pass_session
def logs(session: Session, run: str, project: str | None, limit: int) -> None:
    """Print what a run's load generator wrote, and the run's events, oldest first.

    \b
    Example:
      opsplane loadtest logs shop/nightly
    """
    request = runs_pb2.ListRunLogsRequest(parent=run_name(run, project))
    found = session.run(
        lambda client: pages(client.load_testing.ListRunLogs, request, runs_pb2.ListRunLogsResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    for line in found.lines:
        level = Text(f"{line.level:5}", style=_LEVELS.get(line.level, ""))
        console().print(
            Text.assemble(local_time(line.log_time), " ", level, " ", line.source, "  ", clean(line.message))
        )
    more(found.next_page_token)
