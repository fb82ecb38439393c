"""`python -m opsplane_server` is `opsplane serve`."""

from opsplane_server.commands import serve

serve(prog_name="opsplane serve")
