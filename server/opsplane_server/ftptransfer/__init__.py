"""FtpTransfer: files between FTP servers and local folders, each exactly once, whole or not at all."""
