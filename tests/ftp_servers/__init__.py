"""Real FTP servers on loopback for tests: vsftpd, proftpd and pyftpdlib, with an account, files and options."""
