"""pyftpdlib: one process for all sessions; needs neither root nor packages of the distribution."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.ftp_servers.base import PASSWORD, FtpProcess


class Pyftpdlib(FtpProcess):
    """Its account is its own. TLS sessions need not be resumed: it does not ask for that."""

    name = "pyftpdlib"

    def own(self, path: Path) -> None:
        """It runs as whoever runs the tests."""

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(Path(__file__).parents[2])}

    def command(self) -> Sequence[str | Path]:
        certificate = self.certificate
        settings = {
            "host": self.host,
            "port": self.port,
            "root": str(self.root),
            "user": self.user,
            "password": PASSWORD,
            **asdict(self.options),
            "chain": str(certificate.chain_file) if certificate else "",
            "key": str(certificate.key_file) if certificate else "",
        }
        return [sys.executable, "-P", "-m", "tests.ftp_servers.pyftpdlib_main", json.dumps(settings)]
