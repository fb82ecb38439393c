"""What every service stands on: long-running operations, idempotent and audited changes."""
