"""Resource names as people write them: an id where the rest is known, or the full name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_ID = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PROJECT = re.compile(rf"(?:projects/)?({_ID})")
_SPEC = re.compile(rf"(?:(?:projects/)?({_ID})/(?:specs/)?)?({_ID})")
_DATA_SET = re.compile(rf"(?:(?:projects/)?({_ID})/(?:dataSets/)?)?({_ID})")
_RUN = re.compile(rf"(?:(?:projects/)?({_ID})/(?:runs/)?)?({_ID})")


class ProjectType(click.ParamType[str]):
    """A project by id or name; its value is the name, `projects/{project}`."""

    name = "project"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Fails if it is neither."""
        found = _PROJECT.fullmatch(str(value))
        if not found:
            self.fail(
                f"{value!r} is no project: lower-case letters, digits and '-', starting with a letter", param, ctx
            )
        return f"projects/{found[1]}"


PROJECT = ProjectType()


def project_option(*, required: bool = True) -> Callable[[Command], Command]:
    """The option --project."""
    return click.option("--project", "-p", type=PROJECT, required=required, help="Project, by id or name.")


def run_name(text: str, project: str | None) -> str:
    """`projects/shop/runs/nightly`, `shop/nightly`, or `nightly` together with a project."""
    return _child(_RUN, "run", "runs", text, project)


def data_set_name(text: str, project: str | None) -> str:
    """`projects/shop/dataSets/sessions`, `shop/sessions`, or `sessions` together with a project."""
    return _child(_DATA_SET, "data set", "dataSets", text, project)


def spec_name(text: str, project: str | None) -> str:
    """`projects/shop/specs/v1`, `shop/v1`, or `v1` together with a project."""
    return _child(_SPEC, "spec", "specs", text, project)


def _child(pattern: re.Pattern[str], kind: str, collection: str, text: str, project: str | None) -> str:
    found = pattern.fullmatch(text)
    if not found:
        raise click.UsageError(f"{text!r} is no {kind}; write projects/PROJECT/{collection}/ID")
    parent = f"projects/{found[1]}" if found[1] else project
    if parent is None:
        raise click.UsageError(f"{kind} {text!r} of which project? give --project, or PROJECT/{text}")
    return f"{parent}/{collection}/{found[2]}"
