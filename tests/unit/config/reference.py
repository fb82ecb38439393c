"""The tables of docs/configuration.md, made of the models. `python -m tests.unit.config.reference` renews them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

from opsplane_server.config import Settings
from opsplane_server.config_sources import ALIASES, OF_DATA_SETS, WITHOUT_EFFECT, variables
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

DOCUMENT = Path(__file__).parents[3] / "docs" / "configuration.md"

_BLOCK = re.compile(r"(?<=<!-- settings -->\n).*(?=<!-- end of settings -->)", re.DOTALL)


def reference() -> str:
    """All settings, a table a section."""
    return "\n".join(_lines())


def documented() -> str:
    """What the document says."""
    found = _BLOCK.search(DOCUMENT.read_text(encoding="utf-8"))
    assert found is not None, f"{DOCUMENT} has lost its markers"
    return found[0]


def _lines() -> Iterator[str]:
    environment = {path: name for name, path in variables().items()}
    aliases = {path: name for name, path in ALIASES.items()}

    def table(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[str]:
        yield "| setting | default | meaning | environment |"
        yield "|---|---|---|---|"
        for name, field in model.model_fields.items():
            if _section(field) is not None:
                continue
            path = (*above, name)
            names = [f"`{known[path]}`" for known in (environment, aliases) if path in known]  # type: ignore[index]
            yield f"| `{'.'.join(path)}` | {_default(field)} | {field.description} | {', '.join(names)} |"

    yield from ("", *table(Settings, ()))
    for name, field in Settings.model_fields.items():
        section = _section(field)
        if section is not None:
            yield from ("", f"### {name}", inspect.getdoc(section) or "", "", *table(section, (name,)))
    yield from ("", "### Known, but of load tests", "")
    yield "Data sets and run files say these; the command line reads them there, see [user-loads.md](user-loads.md)."
    yield from ("", ", ".join(f"`{name}`" for name in sorted(OF_DATA_SETS)))
    yield from ("", "### Known, but without effect yet", "")
    yield from (", ".join(f"`{name}`" for name in sorted(WITHOUT_EFFECT)), "")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, BaseModel) else None


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is None or default is PydanticUndefined or default == ():
        return "-"
    if isinstance(default, tuple):
        return f"`{','.join(default)}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    assert not get_args(default)
    return f"`{default}`"


if __name__ == "__main__":
    content = reference()
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(_BLOCK.sub(lambda _: content, text), encoding="utf-8")
