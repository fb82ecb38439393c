"""What sections of the settings are made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    SerializationInfo,
)


def split_list(value: object) -> object:
    """A list of what commas separate; what is no text stays as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _level(value: object) -> object:
    return {"WARN": "WARNING"}.get(value.upper(), value.upper()) if isinstance(value, str) else value


REVEALED: Final = "revealed"
"""As the context of `model_dump_json` it writes secrets as they are, for a process of this server."""


def _secret(value: SecretStr, info: SerializationInfo) -> str:
    return value.get_secret_value() if info.context == REVEALED else str(value)


Secret = Annotated[SecretStr, PlainSerializer(_secret, when_used="json-unless-none")]
Port = Annotated[int, Field(ge=0, le=65535)]
File = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_level)]


class Section(BaseModel):
    """Settings that belong together; a name that is not known is refused, and errors never show values."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
