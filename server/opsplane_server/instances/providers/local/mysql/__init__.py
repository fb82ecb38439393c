"""MariaDB and MySQL on this machine."""
