"""The usual way to build this, to compare with: JSON over HTTP into asyncpg."""
