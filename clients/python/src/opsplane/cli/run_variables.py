"""`${NAME}` in run files: from the environment, else from the file's own `variables`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:[-+])([^}]*))?\}")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OFF = ("", "0", "false", "no", "off")


class Variables:
    """The variables that a run file can use. `given` go before those of the environment, `defaults` after them."""

    def __init__(
        self,
        environ: Mapping[str, str],
        defaults: Mapping[str, str] | None = None,
        given: Mapping[str, str] | None = None,
    ) -> None:
        self._environ = environ
        self._defaults = defaults or {}
        self._given = given or {}

    def with_defaults(self, declared: Any, given: Mapping[str, str]) -> Variables:
        """The same with what a file declares, a mapping of names to values; ValueError says what is wrong with it.

        Only declared names can be `given`.
        """
        if not isinstance(declared, Mapping):
            raise ValueError("variables: a mapping of names to default values is needed")
        defaults = {}
        for name, value in declared.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError(f"variables: {name!r} is no name; it has letters, digits and _")
            defaults[name] = self.fill(scalar_text(value, f"variables.{name}"))
        for name in given:
            if name not in defaults:
                raise ValueError(f"variables.{name}: the file declares {', '.join(defaults) or 'none'}")
        return Variables(self._environ, defaults, given)

    def fill(self, text: str) -> str:
        """`text` with values in place; ValueError for a variable without one.

        `${NAME:-text}` is the text where NAME is not set or empty. `${NAME:+text}` is the text where NAME is set, and
        not to `0`, `false`, `no` or `off`; else nothing.
        """
        return VARIABLE.sub(self._one, text)

    def _one(self, found: re.Match[str]) -> str:
        name, operator, text = found.groups()
        if name is None:
            return "${"
        value = self._value(name)
        if operator == ":+":
            return text if (value or "").strip().lower() not in _OFF else ""
        if operator == ":-":
            return value or text
        if value is None:
            raise ValueError(f"the environment variable {name} is not set; ${{{name}:-...}} gives a default")
        return value

    def _value(self, name: str) -> str | None:
        if name in self._given:
            return self._given[name]
        return self._environ.get(name) or self._defaults.get(name)


def key_text(key: Any, place: str) -> str:
    """A key of a mapping as text; ValueError for one that YAML does not read as text or a number, such as `on`."""
    if isinstance(key, bool) or not isinstance(key, (str, int, float)):
        raise ValueError(f"{place}: a key is read as {key}; quote it")
    return str(key)


def scalar_text(value: Any, place: str) -> str:
    """A text, number or boolean as text; ValueError for anything else."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ValueError(f"{place}: a text, a number, true or false is needed; quote it")
