"""proftpd: knows MLSD, MFMT and nearly everything else. Needs root, because it gives up root's rights itself."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.ftp_servers.base import ACCOUNT, FtpProcess, ServerOptions, Unavailable, binary

# Of PASSWORD, by SHA-512 crypt.
_HASH = "$6$opsplane$7jBNWKZWB4vKBXSTCXKKsSjSVEwtYlURvp/HIx4UePVBvrJ5SzuJz/rFgSrqVOo2GHlHf1jOPs0mB5Ky0amUV."


class Proftpd(FtpProcess):
    """Its account is one of a file of its own."""

    name = "proftpd"

    def __init__(self, folder: Path, options: ServerOptions) -> None:
        self._binary, self._environment = binary("proftpd")
        if os.geteuid() != 0:
            raise Unavailable("proftpd needs root to start")
        super().__init__(folder, options)

    def environment(self) -> Mapping[str, str]:
        return self._environment

    def command(self) -> Sequence[str | Path]:
        account = pwd.getpwnam(ACCOUNT)
        accounts = self.folder / "accounts"
        accounts.write_text(f"{self.user}:{_HASH}:{account.pw_uid}:{account.pw_gid}::{self.root}:/bin/false\n")
        accounts.chmod(0o600)
        path = self.folder / "proftpd.conf"
        path.write_text("\n".join(self._settings(accounts)) + "\n")
        return [self._binary, "--nodaemon", "--config", path]

    def _settings(self, accounts: Path) -> Sequence[str]:
        options = self.options
        settings = [
            "ServerType standalone",
            "UseIPv6 off",
            f"DefaultAddress {self.host}",
            "SocketBindTight on",
            f"Port {self.port}",
            f"User {ACCOUNT}",
            f"Group {ACCOUNT}",
            f"PidFile {self.folder / 'pid'}",
            f"ScoreboardFile {self.folder / 'scoreboard'}",
            f"SystemLog {self.folder / 'log'}",
            "TransferLog none",
            "WtmpLog off",
            f"AuthUserFile {accounts}",
            "AuthOrder mod_auth_file.c",
            "RequireValidShell off",
            "UseFtpUsers off",
            "UseReverseDNS off",
            f"DefaultRoot {self.root}",
            "Umask 022",
            "TimesGMT on",
            "AllowOverwrite on",
            f"AllowStoreRestart {'on' if options.restart_store else 'off'}",
            "MaxLoginAttempts 10",
            "<IfModule mod_delay.c>\nDelayEngine off\n</IfModule>",
        ]
        if options.max_sessions:
            settings.append(f"MaxClients {options.max_sessions}")
        if not options.mlsd:
            settings.append("FactsAdvertise off")
        if not options.passive:
            settings.append("<Limit EPSV PASV>\nDenyAll\n</Limit>")
        elif not options.epsv:
            settings.append("<Limit EPSV>\nDenyAll\n</Limit>")
        if options.tls:
            settings += self._tls_settings()
        return settings

    def _tls_settings(self) -> Sequence[str]:
        assert self.certificate is not None
        modules = self._binary.parents[1] / "lib" / "proftpd"
        tls = [f"ModulePath {modules}", "LoadModule mod_tls.c", "TLSEngine on", "TLSRequired on"]
        tls.append(f"TLSProtocol {'TLSv1.2' if self.options.tls_version == '1.2' else 'TLSv1.2 TLSv1.3'}")
        tls.append(f"TLSLog {self.folder / 'tls.log'}")
        tls.append(f"TLSECCertificateFile {self.certificate.chain_file}")
        tls.append(f"TLSECCertificateKeyFile {self.certificate.key_file}")
        if self.options.tls == "implicit":
            tls.append("TLSOptions UseImplicitSSL")
        return tls
