"""MySQL from version 8.0 on, and MariaDB from 10.5 on."""

from opsplane_server.instances.engines.mysql.admin import MysqlAdmin
from opsplane_server.instances.engines.mysql.names import quote_identifier
from opsplane_server.instances.engines.mysql.verifiers import identified

__all__ = ["MysqlAdmin", "identified", "quote_identifier"]
