"""The command line, `opsplane`."""

from opsplane.cli.root import main

__all__ = ["main"]
