"""Settings of the process that must be there before pytest loads any other plugin; loaded by `-p` in pyproject.toml."""

import os

# gRPC reads it when it is imported, which the plugin pytest-grpc does: tests start programs while calls are under way,
# and its fork handlers would end those that are started as another user.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
