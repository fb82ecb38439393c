"""`opsplane ftp stats`."""

from __future__ import annotations

import click
from rich.text import Text

from opsplane.cli.durations import format_duration
from opsplane.cli.ftp_figures import error_text, size_text
from opsplane.cli.output import clean, console, local_time, one_line, print_json, table
from opsplane.cli.session import Session, call, pass_session
from opsplane.ftptransfer.v1 import errors_pb2, ftptransfer_pb2


@click.command()
@pass_session
def stats(session: Session) -> None:
    """Show figures of the queue, the sessions and the transfers, of all server processes together.

    \b
    Examples:
      opsplane ftp stats
      opsplane -o json ftp stats | jq .consumer.backlog
    """
    request = ftptransfer_pb2.GetStatsRequest()
    found = session.run(lambda client: call(client.ftp_transfer.GetStats, request, ftptransfer_pb2.GetStatsResponse))
    if session.as_json:
        print_json(found)
        return
    done, queue = found.transfer, found.consumer
    age = format_duration(queue.oldest_age.ToTimedelta()) if queue.HasField("oldest_age") else ""
    facts = [
        ("since", local_time(done.since_time)),
        ("queue", f"{queue.queue}, {queue.backlog:,} not begun{f', the oldest for {age}' if age else ''}"),
        ("under way", f"{done.tasks_in_progress:,}"),
        ("ended", f"{done.tasks_total:,}: {done.tasks_success_total:,} done, {done.tasks_failed_total:,} failed"),
        ("transferred", size_text(done.bytes_transferred_total)),
        ("rate", f"{size_text(done.bytes_per_second)}/s, {done.files_per_second:.1f} files/s"),
        ("sessions", f"{found.pool.total_sessions:,} of {found.pool.max_sessions_per_pod:,} a pod"),
    ]
    facts += [
        (errors_pb2.ErrorCode.Name(error.code).removeprefix("ERROR_CODE_"), f"{error.count:,}") for error in done.errors
    ]
    overview = table(("", ""), facts)
    overview.show_header = False
    out = console()
    out.print(overview)
    if not found.running:
        out.print(Text("no process takes tasks", style="bold red"))
    if found.pool.pools:
        rows = [
            (
                clean(name),
                f"{pool.sessions:,}",
                f"{pool.busy:,}",
                f"{pool.session_limit:,}",
                f"{pool.waiting:,}",
                Text(f"held back until {local_time(pool.retry_time)}", style="red") if pool.circuit_open else "",
                one_line(error_text(pool.last_error), 60),
            )
            for name, pool in sorted(found.pool.pools.items())
        ]
        out.print()
        out.print(table(("connection", ">sessions", ">busy", ">limit", ">waiting", "", "last failure"), rows))
    if found.workers:
        processes = [
            (
                clean(worker.worker),
                clean(worker.version),
                local_time(worker.start_time),
                f"{worker.tasks_in_progress:,}",
                f"{worker.sessions:,}",
                "shuts down" if worker.draining else "",
            )
            for worker in found.workers
        ]
        out.print()
        out.print(table(("process", "version", "started", ">under way", ">sessions", ""), processes))
