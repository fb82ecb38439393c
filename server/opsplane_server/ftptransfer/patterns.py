"""Patterns of paths: `*` and `?` match within a name, `[a-z]` one character, `**` any number of folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate
from typing import Final, TypeAlias

_MAGIC: Final = re.compile(r"[*?\[]")

States: TypeAlias = frozenset[int]
"""How far a path has matched: the numbers of the names of the pattern that may come next."""


class Pattern:
    """A pattern that paths are held against a name at a time, from `start` on, so that no folder is read in vain."""

    def __init__(self, glob: str) -> None:
        names = [name for name in glob.split("/") if name]
        self._names = [None if name == "**" else _matcher(name) for name in names]
        self.start = self._ahead({0})

    def step(self, states: States, name: str) -> States:
        """The states after one more name; empty when nothing with this beginning matches."""
        reached = set()
        for state in states:
            if state == len(self._names):
                continue
            matches = self._names[state]
            if matches is None:
                reached.add(state)
                if state == len(self._names) - 1:
                    reached.add(state + 1)
            elif matches(name):
                reached.add(state + 1)
        return self._ahead(reached)

    def matches(self, states: States) -> bool:
        """Whether what led to these states is a match."""
        return len(self._names) in states

    def leads_on(self, states: States) -> bool:
        """Whether something below may match."""
        return any(state < len(self._names) for state in states)

    def _ahead(self, states: set[int]) -> States:
        """With those that are reached because `**` matches no folder as well; at the end it matches something."""
        for state in sorted(states):
            while state < len(self._names) - 1 and self._names[state] is None:
                state += 1
                states.add(state)
        return frozenset(states)


def split_pattern(path: str) -> tuple[str, str]:
    """The fixed folder of a path with a pattern, and the pattern below it."""
    names = path.split("/")
    fixed = next((number for number, name in enumerate(names) if _MAGIC.search(name)), len(names) - 1)
    folder = "/".join(names[:fixed])
    return folder or ("/" if path.startswith("/") else ""), "/".join(names[fixed:])


def _matcher(name: str) -> Callable[[str], object]:
    return re.compile(translate(name)).match
