"""`opsplane backup schedules`."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click
from google.protobuf.empty_pb2 import Empty
from rich.console import Group
from rich.text import Text

from opsplane.backups.v1 import schedules_pb2
from opsplane.cli.db_names import INSTANCE, SCHEDULE, pairs
from opsplane.cli.durations import DURATION
from opsplane.cli.output import clean, console, local_time, more, one_line, print_json, short, table
from opsplane.cli.session import Session, call, pages, pass_session
from opsplane.client import new_request_id

Command = TypeVar("Command", bound=Callable[..., Any])

_TIER = re.compile(r"([a-z][a-z0-9-]*)(?::(hour|day|week|month|year))?((?::[0-9]+d?)+)")
_PERIODS = {
    "hour": schedules_pb2.PERIOD_HOUR,
    "day": schedules_pb2.PERIOD_DAY,
    "week": schedules_pb2.PERIOD_WEEK,
    "month": schedules_pb2.PERIOD_MONTH,
    "year": schedules_pb2.PERIOD_YEAR,
}


@click.group()
def schedules() -> None:
    """Backups by the clock, with retention in tiers.

    \b
    Examples:
      opsplane backup schedules create nightly orders --cron '0 3 * * *' --keep daily:7d --keep monthly:month:12
      opsplane backup schedules list
    """


def parse_tier(text: str) -> schedules_pb2.RetentionTier:
    """`NAME[:PERIOD]:LIMIT[:LIMIT]`: a limit is a number of days (`7d`) or of backups. ValueError."""
    found = _TIER.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no tier; write NAME:7d, NAME:day:7d, NAME:month:12 or NAME:week:60d:8")
    tier = schedules_pb2.RetentionTier(name=found[1])
    if found[2]:
        tier.period = _PERIODS[found[2]]
    for limit in found[3].split(":")[1:]:
        if limit.endswith("d"):
            tier.keep_days = int(limit[:-1])
        else:
            tier.keep_count = int(limit)
    return tier


class _TierType(click.ParamType[schedules_pb2.RetentionTier]):
    name = "tier"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> schedules_pb2.RetentionTier:
        """Fails with what is wrong."""
        try:
            return parse_tier(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _options(command: Command) -> Command:
    for option in reversed(
        (
            click.option("--cron", help="When: five cron fields, or @hourly, @daily, @weekly, @monthly, @yearly."),
            click.option("--time-zone", help="Time zone of it.  [default: UTC]"),
            click.option("--keep", "tiers", type=_TierType(), multiple=True, metavar="NAME[:PERIOD]:LIMIT",
                         help="What to keep, repeatable: daily:7d, monthly:month:12.  [default: each for 7 days]"),
            click.option("--full-every", type=click.IntRange(0, 1000), help="Every how many-th is a full one."),
            click.option("--verify-every", type=click.IntRange(0, 1000), help="Verify every how many-th; 0 for none."),
            click.option("--overdue-after", type=DURATION, help="How late one may be.  [default: 1h]"),
            click.option("--suspended/--active", "suspended", default=None, help="Whether it makes no backups."),
            click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label of the backups."),
            click.option("--webhook", "webhooks", multiple=True, metavar="URL", help="Tell of failures, repeatable."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _build(instances: tuple[str, ...], options: dict[str, Any]) -> tuple[schedules_pb2.Schedule, list[str]]:
    wanted, fields = schedules_pb2.Schedule(instances=instances), []
    if instances:
        fields.append("instances")
    for name in ("cron", "time_zone", "full_every", "verify_every", "suspended"):
        if options[name] is not None:
            setattr(wanted, name, options[name])
            fields.append(name)
    if options["overdue_after"] is not None:
        overdue: timedelta = options["overdue_after"]
        wanted.overdue_after.FromTimedelta(overdue)
        fields.append("overdue_after")
    if options["tiers"]:
        wanted.tiers.extend(options["tiers"])
        fields.append("tiers")
    if options["labels"]:
        wanted.labels.update(pairs(options["labels"], "--label"))
        fields.append("labels")
    for url in options["webhooks"]:
        wanted.webhooks.add(url=url)
    if options["webhooks"]:
        fields.append("webhooks")
    return wanted, fields


@schedules.command("create")
@click.argument("schedule", metavar="ID", type=SCHEDULE)
@click.argument("instances", type=INSTANCE, nargs=-1, required=True)
@_options
@pass_session
def create_schedule(session: Session, /, schedule: str, instances: tuple[str, ...], **options: Any) -> None:
    """Create a schedule.

    \b
    Examples:
      opsplane backup schedules create nightly orders shop --cron '0 3 * * *' --keep daily:7d --keep long:week:30d
      opsplane backup schedules create hourly orders --cron @hourly --full-every 24 --keep recent:48
    """
    if not options["cron"]:
        raise click.UsageError("--cron is required")
    wanted, _ = _build(instances, options)
    request = schedules_pb2.CreateScheduleRequest(
        schedule=wanted, schedule_id=short(schedule), request_id=new_request_id()
    )
    _print(session, session.run(lambda client: call(client.backups.CreateSchedule, request, schedules_pb2.Schedule)))


@schedules.command("list")
@click.option("--filter", "filter_", default="", help="Restrict them, for example 'overdue=true'.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most of them to list.")
@pass_session
def list_schedules(session: Session, filter_: str, limit: int) -> None:
    """List schedules, newest first.

    \b
    Example:
      opsplane backup schedules list --filter 'overdue=true'
    """
    request = schedules_pb2.ListSchedulesRequest(filter=filter_)
    found = session.run(
        lambda client: pages(client.backups.ListSchedules, request, schedules_pb2.ListSchedulesResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    rows = [
        (
            short(one.name),
            clean(one.cron),
            one_line(", ".join(map(short, one.instances)), 60),
            local_time(one.next_run_time),
            _standing(one),
        )
        for one in found.schedules
    ]
    console().print(table(("schedule", "when", "instances", "next", ""), rows))
    more(found.next_page_token)


@schedules.command("show")
@click.argument("schedule", type=SCHEDULE)
@pass_session
def show_schedule(session: Session, schedule: str) -> None:
    """Show a schedule and how it stands with each instance.

    \b
    Example:
      opsplane backup schedules show nightly
    """
    request = schedules_pb2.GetScheduleRequest(name=schedule)
    _print(session, session.run(lambda client: call(client.backups.GetSchedule, request, schedules_pb2.Schedule)))


@schedules.command("update")
@click.argument("schedule", type=SCHEDULE)
@click.argument("instances", type=INSTANCE, nargs=-1)
@_options
@pass_session
def update_schedule(session: Session, /, schedule: str, instances: tuple[str, ...], **options: Any) -> None:
    """Change what the options say, and leave everything else. Instances, tiers, labels are replaced as a whole.

    \b
    Examples:
      opsplane backup schedules update nightly --suspended
      opsplane backup schedules update nightly --keep daily:14d
    """
    wanted, fields = _build(instances, options)
    if not fields:
        raise click.UsageError("nothing is to be changed: give an option")
    wanted.name = schedule
    request = schedules_pb2.UpdateScheduleRequest(schedule=wanted, request_id=new_request_id())
    request.update_mask.paths.extend(fields)
    _print(session, session.run(lambda client: call(client.backups.UpdateSchedule, request, schedules_pb2.Schedule)))


@schedules.command("delete")
@click.argument("schedule", type=SCHEDULE)
@pass_session
def delete_schedule(session: Session, schedule: str) -> None:
    """Delete a schedule. Its backups stay.

    \b
    Example:
      opsplane backup schedules delete nightly
    """
    request = schedules_pb2.DeleteScheduleRequest(name=schedule, request_id=new_request_id())
    session.run(lambda client: call(client.backups.DeleteSchedule, request, Empty))
    click.echo(f"deleted {schedule}", err=True)


def _print(session: Session, schedule: schedules_pb2.Schedule) -> None:
    if session.as_json:
        print_json(schedule)
        return
    facts: list[tuple[str, str | Text]] = [
        ("when", clean(f"{schedule.cron} {schedule.time_zone}".rstrip())),
        ("next", local_time(schedule.next_run_time)),
        ("keeps", ", ".join(map(_tier_text, schedule.tiers)) or "each for 7 days"),
        ("", _standing(schedule)),
    ]
    overview = table(("", ""), [(name, value) for name, value in facts if str(value)], title=schedule.name)
    overview.show_header = False
    rows = [
        (
            short(one.instance),
            short(one.last_backup),
            local_time(one.last_success_time),
            local_time(one.last_failure_time),
            Text("overdue", style="bold red") if one.overdue else Text(one_line(one.last_error, 80)),
        )
        for one in schedule.statuses
    ]
    columns = ("instance", "newest", "last success", "last failure", "")
    console().print(Group(overview, "", table(columns, rows)))


def _tier_text(tier: schedules_pb2.RetentionTier) -> str:
    period = schedules_pb2.Period.Name(tier.period).removeprefix("PERIOD_").lower() if tier.period else ""
    limits = [f"{tier.keep_days}d"] if tier.keep_days else []
    if tier.keep_count:
        limits.append(str(tier.keep_count))
    return ":".join(filter(None, (tier.name, period, *limits)))


def _standing(schedule: schedules_pb2.Schedule) -> Text:
    if schedule.suspended:
        return Text("suspended", style="yellow")
    return Text("overdue", style="bold red") if schedule.overdue else Text("")
