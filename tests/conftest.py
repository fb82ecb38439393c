"""Plugins of the whole suite; each is a module of its own, named after what its fixtures give."""

import importlib.util
import os

_PLUGINS = (
    "tests.postgres_fixtures",
    "tests.rpc_harness",
    "tests.kafka_broker",
    "tests.clickhouse_server",
    "tests.influxd",
)
pytest_plugins = [name for name in _PLUGINS if importlib.util.find_spec(name) is not None]

# What is set on a developer's machine must not decide what is tested; where tools are kept may stay.
for _name in [name for name in os.environ if name.startswith(("OPSPLANE_", "PG", "DATABASE_", "CLICKHOUSE_"))]:
    if _name != "OPSPLANE_CACHE":
        del os.environ[_name]
