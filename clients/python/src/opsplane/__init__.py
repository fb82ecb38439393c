"""Opsplane for Python: generated stubs (`opsplane.<service>.v1`), a client and the command line."""
