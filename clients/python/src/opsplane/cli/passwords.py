"""Options that say where a password comes from.

There is none for the password itself: it would stay in the shell's history, and anyone could see it in the list of
processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


def password_options(command: Command) -> Command:
    """--ask-password, --password-file and --password-env; `given_password` takes them."""
    for option in reversed(
        (
            click.option("--ask-password", is_flag=True, help="Ask for the password."),
            click.option("--password-file", type=FILE, help="Read the password from the first line of a file or -."),
            click.option("--password-env", metavar="VARIABLE", help="Take the password from the environment."),
        )
    ):
        command = option(command)
    return command


def given_password(options: Mapping[str, Any], whose: str) -> str | None:
    """The password that the options lead to; None without any of them. Raises UsageError."""
    given = [name for name in ("ask_password", "password_file", "password_env") if options[name]]
    if len(given) > 1:
        raise click.UsageError("give one of --ask-password, --password-file and --password-env")
    match given:
        case ["password_file"]:
            return next(iter(read_text(options["password_file"]).splitlines()), "")
        case ["password_env"]:
            variable = options["password_env"]
            if variable not in os.environ:
                raise click.UsageError(f"--password-env: {variable} is not set")
            return os.environ[variable]
        case ["ask_password"]:
            return ask_password(whose)
        case _:
            return None


def ask_password(whose: str) -> str:
    """Asks who sits at the terminal. UsageError when there is none."""
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked for the password: give --password-file or --password-env")
    answer: str = click.prompt(f"Password of {whose}", hide_input=True, err=True)
    return answer


def read_text(path: Path) -> str:
    """UsageError if it can not be read."""
    try:
        with click.open_file(str(path), encoding="utf-8") as stream:
            return str(stream.read())
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: {error}") from None
