"""A real server that runs instances, for tests; what it started ends with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.instances_harness import end_all, port_range
from tests.server_process import ServerProcess, new_server


@contextmanager
def instances_server(*arguments: str, **settings: object) -> Iterator[ServerProcess]:
    """A server that is ready, with these settings of its section `instances`.

    Its database servers, which outlive it on purpose, are ended after it.
    """
    first, last = port_range()
    values = {"first_port": first, "last_port": last, **settings}
    environment = {f"OPSPLANE_INSTANCES__{name.upper()}": str(value) for name, value in values.items()}
    with new_server(*arguments, environment=environment) as server:
        try:
            server.start()
            server.wait_ready()
            yield server
        finally:
            # First what would start them again.
            server.destroy()
            end_all(server.data_dir)
