"""PostgreSQL as processes of this machine."""
