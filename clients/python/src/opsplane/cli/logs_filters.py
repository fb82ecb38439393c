"""Options that say which records: of `opsplane logs search` and `tail`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
from google.protobuf.timestamp_pb2 import Timestamp

from opsplane.cli.durations import parse_duration
from opsplane.logingest.v1 import queries_pb2, records_pb2

Command = TypeVar("Command", bound=Callable[..., Any])

LEVEL_NAMES = {
    name.removeprefix("LEVEL_").lower(): number
    for name, number in records_pb2.Level.items()
    if number != records_pb2.LEVEL_UNSPECIFIED
}


class LevelType(click.ParamType[int]):
    """A level by name."""

    name = "level"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The names, where help shows a value."""
        return f"[{'|'.join(LEVEL_NAMES)}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Fails if there is no such level."""
        if isinstance(value, int):
            return value
        number = LEVEL_NAMES.get(str(value).lower())
        if number is None:
            self.fail(f"{value!r} is no level: {', '.join(LEVEL_NAMES)}", param, ctx)
        return number


class MomentType(click.ParamType[datetime]):
    """A moment: a duration before now (`1h`), or a time of ISO 8601, of this machine's zone if it names none."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Fails if it is neither."""
        if isinstance(value, datetime):
            return value
        try:
            return datetime.now(UTC) - parse_duration(str(value))
        except (ValueError, OverflowError):
            pass
        try:
            return datetime.fromisoformat(str(value)).astimezone(UTC)
        except (ValueError, OverflowError, OSError):
            self.fail(f"{value!r} is no time: write 1h, 2026-11-21 or 2026-11-21T09:30:00Z", param, ctx)


LEVEL = LevelType()
MOMENT = MomentType()


def query_options(command: Command) -> Command:
    """The options that make a query; `build_query` takes them."""
    for option in reversed(
        (
            click.option("--service", "-s", "services", multiple=True, help="Only of this service; repeatable."),
            click.option("--level", "-l", "min_level", type=LEVEL, help="Only of this level and graver ones."),
            click.option("--only", "levels", type=LEVEL, multiple=True, help="Only of exactly this level; repeatable."),
            click.option("--trace", "trace_id", default="", metavar="ID", help="Only of this trace."),
            click.option("--user", "user_id", default="", metavar="ID", help="Only of this user."),
            click.option(
                "--meta",
                "metadata",
                multiple=True,
                metavar="KEY=VALUE",
                help="Only with this in the metadata, such as order.id=42; repeatable.",
            ),
            click.option(
                "--filter",
                "filter_",
                default="",
                help='Comparisons of other fields: "http_status >= 500 AND host=web-1".',
            ),
        )
    ):
        command = option(command)
    return command


def build_query(
    words: tuple[str, ...],
    services: tuple[str, ...],
    min_level: int | None,
    levels: tuple[int, ...],
    trace_id: str,
    user_id: str,
    metadata: tuple[str, ...],
    filter_: str,
) -> queries_pb2.LogQuery:
    """The query of the options; `words` are what the text holds, a phrase where one has blanks."""
    pairs = [pair.partition("=") for pair in metadata]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise click.UsageError(f"--meta {key!r}: write KEY=VALUE")
    return queries_pb2.LogQuery(
        services=services,
        min_level=records_pb2.Level.ValueType(min_level or 0),
        levels=[records_pb2.Level.ValueType(level) for level in dict.fromkeys(levels)],
        trace_id=trace_id,
        user_id=user_id,
        text=" ".join(f'"{word}"' if " " in word and '"' not in word else word for word in words),
        metadata={key: value for key, _, value in pairs},
        filter=filter_,
    )


def timestamp(moment: datetime | None) -> Timestamp | None:
    """The moment as the API has it."""
    if moment is None:
        return None
    result = Timestamp()
    result.FromDatetime(moment)
    return result
