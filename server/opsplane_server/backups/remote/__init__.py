"""The other services that backups call."""
