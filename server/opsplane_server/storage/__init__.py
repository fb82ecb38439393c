"""PostgreSQL, where all state lives: the pool, the embedded server, migrations, followers, hints and secrets."""
