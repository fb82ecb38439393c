"""What a user owns: databases where it has every right, and what runs with its rights wherever it is called from."""

from __future__ import annotations

from opsplane_server.errors import FailedPrecondition, NotFound
from opsplane_server.instances.engines.mysql.connecting import Session
from opsplane_server.instances.engines.mysql.databases import owner_grant, user_hosts
from opsplane_server.instances.engines.mysql.names import database_of_pattern, quote_account, quote_identifier


async def pass_on(session: Session, user: str, host: str, heir: str) -> None:
    """Gives all of it to `heir`. FailedPrecondition (USER_OWNS_OBJECTS) for routines and triggers: these engines
    change their definer only by making them anew, and a crash in between would lose them.
    """
    heir_hosts = await user_hosts(session, heir)
    if not heir_hosts:
        raise NotFound(f"there is no user '{heir}'")
    heir_host = "%" if "%" in heir_hosts else heir_hosts[0]
    definer = f"{user}@{host}"
    await _require_no_code(session, user, definer)
    rows = await session.rows(
        "SELECT Db FROM mysql.db WHERE BINARY User = %s AND Host = %s AND Create_priv = 'Y' AND Drop_priv = 'Y'",
        (user, host),
    )
    for (pattern,) in rows:
        database = database_of_pattern(pattern)
        if database is not None:
            await session.execute(owner_grant(database, heir, heir_host))
    old, new = quote_account(user, host), quote_account(heir, heir_host)
    await _pass_views_on(session, definer, old, new)
    events = await session.rows(
        "SELECT event_schema, event_name, on_completion FROM information_schema.events WHERE definer = %s", (definer,)
    )
    for database, name, completion in events:
        kept = "PRESERVE" if completion == "PRESERVE" else "NOT PRESERVE"  # a change has to change something
        target = f"{quote_identifier(database)}.{quote_identifier(name)}"
        await session.execute(f"ALTER DEFINER = {new} EVENT {target} ON COMPLETION {kept}")


async def _require_no_code(session: Session, user: str, definer: str) -> None:
    rows = await session.rows(
        "SELECT CONCAT(LOWER(routine_type), ' ', routine_schema, '.', routine_name)"
        " FROM information_schema.routines WHERE definer = %s UNION ALL"
        " SELECT CONCAT('trigger ', trigger_schema, '.', trigger_name) FROM information_schema.triggers"
        " WHERE definer = %s",
        (definer, definer),
    )
    if rows:
        names = sorted(row[0] for row in rows)
        raise FailedPrecondition(
            f"'{user}' is the definer of {', '.join(names[:10])}: make these anew as another user first",
            reason="USER_OWNS_OBJECTS",
            metadata={"user": user, "count": str(len(names))},
        )


async def _pass_views_on(session: Session, definer: str, old: str, new: str) -> None:
    rows = await session.rows(
        "SELECT table_schema, table_name FROM information_schema.views WHERE definer = %s", (definer,)
    )
    for database, name in rows:
        target = f"{quote_identifier(database)}.{quote_identifier(name)}"
        row = await session.row(f"SHOW CREATE VIEW {target}")
        if row is None:  # dropped meanwhile
            continue
        # It begins with CREATE ALGORITHM=... DEFINER=`user`@`host` SQL SECURITY ... VIEW `name`: no other text comes
        # before the definer.
        statement = str(row[1]).replace("CREATE", "ALTER", 1).replace(f"DEFINER={old}", f"DEFINER={new}", 1)
        await session.execute(f"USE {quote_identifier(database)}")
        await session.execute(statement)
