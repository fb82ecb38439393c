"""A picture in a terminal that is drawn over itself while something goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from opsplane.cli.output import clean


class LivePicture(ABC):
    """Draws `picture` again and again for as long as it is entered; gone afterwards.

    It is drawn once by the constructor already: set before that what it shows.
    """

    def __init__(self, console: Console, waiting: str = "") -> None:
        self._note = ""
        self._spinner = Spinner("dots", text=waiting)
        self._live = Live(console=console, get_renderable=self.picture, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """Stands below the picture until something new comes."""
        self._note = text

    @abstractmethod
    def picture(self) -> RenderableType:
        """What is seen now."""

    def _notes(self) -> list[RenderableType]:
        return [Text(clean(self._note), style="yellow")] if self._note else []
