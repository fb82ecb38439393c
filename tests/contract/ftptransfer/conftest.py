"""Fixtures of this folder."""

from tests.ftptransfer_harness import ftp

__all__ = ["ftp"]
