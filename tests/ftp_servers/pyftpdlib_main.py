"""The process of `pyftpdlib.Pyftpdlib`. Imports nothing of the tests, so that it starts quickly."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler, TLS_FTPHandler
from pyftpdlib.servers import FTPServer


class _ImplicitHandler(TLS_FTPHandler):  # type: ignore[misc]
    def handle(self) -> None:
        self.secure_connection(self.ssl_context)
        super().handle()


class _NoRestart:
    """Restarts downloads only."""

    def ftp_STOR(self, file: str, mode: str = "w") -> object:  # noqa: N802 - its name there
        if self._restart_position:  # type: ignore[has-type]
            self._restart_position = 0
            self.respond("551 STOR cannot be restarted.")  # type: ignore[attr-defined]
            return None
        return super().ftp_STOR(file, mode)  # type: ignore[misc]


def serve(settings: Mapping[str, Any]) -> None:
    """Serves until the process is ended. The settings are those of ServerOptions, and what the parent adds."""
    kind = {"": FTPHandler, "explicit": TLS_FTPHandler, "implicit": _ImplicitHandler}[settings["tls"]]
    authorizer = DummyAuthorizer()
    authorizer.add_user(settings["user"], settings["password"], settings["root"], perm="elradfmwMT")
    missing = set()
    if not settings["epsv"] or not settings["passive"]:
        missing.add("EPSV")
    if not settings["passive"]:
        missing.add("PASV")
    if not settings["mlsd"]:
        missing |= {"MLSD", "MLST"}
    members = {
        "authorizer": authorizer,
        "proto_cmds": {name: value for name, value in kind.proto_cmds.items() if name not in missing},
        "auth_failed_timeout": 0,
        "use_gmt_times": True,
    }
    bases = (kind,) if settings["restart_store"] else (_NoRestart, kind)
    if settings["tls"]:
        members |= {
            "certfile": settings["chain"],
            "keyfile": settings["key"],
            "tls_control_required": True,
            "tls_data_required": True,
        }
    server = FTPServer((settings["host"], settings["port"]), type("Handler", bases, members))
    server.max_cons_per_ip = settings["max_sessions"]
    server.serve_forever()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
