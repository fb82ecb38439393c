"""vsftpd: the quickest of them; knows neither MLSD nor MFMT. Needs root, because it gives up root's rights itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.ftp_servers.base import ACCOUNT, PASSWORD, FtpProcess, ServerOptions, Unavailable, binary


class Vsftpd(FtpProcess):
    """Its account is the anonymous one, with a password."""

    name = "vsftpd"
    user = "anonymous"

    def __init__(self, folder: Path, options: ServerOptions) -> None:
        self._binary, self._environment = binary("vsftpd")
        if os.geteuid() != 0:
            raise Unavailable("vsftpd needs root to start")
        super().__init__(folder, options)

    def environment(self) -> Mapping[str, str]:
        variables = dict(self._environment)
        if self.options.tls_version:
            path = self.folder / "openssl.cnf"
            path.write_text(
                "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = tls\n"
                f"[tls]\nMaxProtocol = TLSv{self.options.tls_version}\n"
            )
            variables["OPENSSL_CONF"] = str(path)
        return variables

    def drop_workers(self) -> None:
        """Ends those processes of its sessions that transfer files; the ones above them tell their clients."""
        for process in self._children():
            with suppress(psutil.NoSuchProcess):
                if not process.children():
                    process.kill()

    def command(self) -> Sequence[str | Path]:
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True, mode=0o555)
        passwords = self.folder / "passwords"
        passwords.write_text(PASSWORD + "\n")
        options = self.options
        settings = {
            "listen": "YES",
            "background": "NO",
            "listen_address": self.host,
            "listen_port": self.port,
            "anonymous_enable": "YES",
            "local_enable": "NO",
            "secure_email_list_enable": "YES",
            "email_password_file": passwords,
            # An account whose home exists: vsftpd enters it before it goes to `anon_root`.
            "ftp_username": ACCOUNT,
            "anon_root": self.root,
            "secure_chroot_dir": empty,
            "write_enable": "YES",
            "anon_upload_enable": "YES",
            "anon_mkdir_write_enable": "YES",
            "anon_other_write_enable": "YES",
            "anon_world_readable_only": "NO",
            "anon_umask": "022",
            "mdtm_write": "YES",
            "use_localtime": "NO",
            "port_promiscuous": "NO",
            "pasv_enable": "YES" if options.passive else "NO",
            "max_clients": options.max_sessions,
            "max_per_ip": 0,
            "anon_max_rate": options.bytes_per_second,
            "delay_failed_login": 0,
            # Both break on kernels that are newer than they are.
            "seccomp_sandbox": "NO",
            "isolate": "NO",
            "isolate_network": "NO",
        }
        if not options.epsv:
            settings["cmds_denied"] = "EPSV"
        if options.tls:
            assert self.certificate is not None
            settings |= {
                "ssl_enable": "YES",
                "allow_anon_ssl": "YES",
                "implicit_ssl": "YES" if options.tls == "implicit" else "NO",
                "force_anon_data_ssl": "YES",
                "force_anon_logins_ssl": "YES",
                "require_ssl_reuse": "YES",
                "ssl_ciphers": "HIGH",
                "rsa_cert_file": self.certificate.chain_file,
                "rsa_private_key_file": self.certificate.key_file,
            }
        path = self.folder / "vsftpd.conf"
        path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        return [self._binary, path]
