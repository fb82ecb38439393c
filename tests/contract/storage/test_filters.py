from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opsplane_server.storage.database import Database
from opsplane_server.storage.filters import where


@dataclass(frozen=True)
class Condition:
    field: str
    op: str
    value: object


COLUMNS = {"name": "name", "size": "size", "ratio": "ratio", "done": "done", "create_time": "created_at"}
EARLY = datetime(2026, 1, 1, tzinfo=UTC)
LATE = datetime(2026, 2, 1, tzinfo=UTC)


async def names(database: Database, *conditions: Condition) -> list[str]:
    args: list[object] = [10]
    condition = where(conditions, COLUMNS, args)
    async with database.transaction() as connection:
        await connection.execute(
            """
            CREATE TEMPORARY TABLE things
                (name text, size bigint, ratio float8, done boolean, created_at timestamptz) ON COMMIT DROP
            """
        )
        await connection.executemany(
            "INSERT INTO things VALUES ($1, $2, $3, $4, $5)",
            [
                ("Alpha 100%", 1, 0.5, True, EARLY),
                ("beta", 2, 1.5, False, LATE),
                ("x' OR true --", None, None, None, None),
            ],
        )
        rows = await connection.fetch(f"SELECT name FROM things WHERE {condition} ORDER BY name LIMIT $1", *args)
    return [row["name"] for row in rows]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Condition("name", "=", "beta"), ["beta"]),
        (Condition("name", "=", "x' OR true --"), ["x' OR true --"]),
        (Condition("name", "=", "' OR true --"), []),
        (Condition("name", ":", "PHA"), ["Alpha 100%"]),
        (Condition("name", ":", "0%"), ["Alpha 100%"]),
        (Condition("name", ":", "%"), ["Alpha 100%"]),
        (Condition("name", ":", "_"), []),
        (Condition("size", "=", 1), ["Alpha 100%"]),
        (Condition("size", "!=", 1), ["beta", "x' OR true --"]),
        (Condition("size", "<", 2), ["Alpha 100%"]),
        (Condition("size", "<=", 2), ["Alpha 100%", "beta"]),
        (Condition("size", ">", 1), ["beta"]),
        (Condition("ratio", ">=", 0.5), ["Alpha 100%", "beta"]),
        (Condition("done", "=", False), ["beta"]),
        (Condition("create_time", ">", EARLY), ["beta"]),
    ],
    ids=lambda value: f"{value.field}{value.op}{value.value}" if isinstance(value, Condition) else "",
)
async def test_each_comparison(database: Database, condition: Condition, expected: list[str]) -> None:
    assert await names(database, condition) == expected


async def test_all_conditions_must_hold_and_none_holds_always(database: Database) -> None:
    assert await names(database, Condition("size", ">=", 1), Condition("done", "=", True)) == ["Alpha 100%"]
    assert len(await names(database)) == 3


@settings(max_examples=50)
@given(st.lists(st.builds(Condition, st.sampled_from(sorted(COLUMNS)), st.sampled_from(["=", "!=", ":"]), st.text())))
def test_values_never_enter_the_text(conditions: list[Condition]) -> None:
    args: list[object] = ["before"]
    text = where(conditions, COLUMNS, args)
    assert args == ["before", *(condition.value for condition in conditions)]
    same_shape = [Condition(condition.field, condition.op, "") for condition in conditions]
    assert text == where(same_shape, COLUMNS, ["before"])
