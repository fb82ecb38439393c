"""PostgreSQL, from version 15 on."""

from opsplane_server.instances.engines.postgres.admin import PostgresAdmin
from opsplane_server.instances.engines.postgres.connecting import quote_identifier, quote_literal
from opsplane_server.instances.engines.postgres.verifier import scram_verifier

__all__ = ["PostgresAdmin", "quote_identifier", "quote_literal", "scram_verifier"]
