"""Queries as SQL conditions over the columns of `logingest.records`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from opsplane_server.logingest.queries import FILTER_FIELDS, LogQuery, Term
from opsplane_server.rpc.filters import Condition, FieldType
from opsplane_server.storage.database import Connection
from opsplane_server.storage.filters import where

Words = Mapping[Term, Sequence[str]]
"""The words of each term of a query."""

_TEXTS: Final = ("message", "error_type", "stack_trace")
_WORDS: Final = f"logingest.words({', '.join(_TEXTS)})"
# A text that a record does not have is an empty one to its readers.
_COLUMNS: Final = {
    name: f"coalesce({name}, '')" if kind is FieldType.STRING else name for name, kind in FILTER_FIELDS.items()
} | {"http_status": "http_status::bigint"}
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")


async def words_of(connection: Connection, query: LogQuery) -> Words:
    """The words that `where_query` looks for. PostgreSQL itself takes texts apart, so that both sides agree."""
    if not query.terms:
        return {}
    rows = await connection.fetch(
        """SELECT array(
                      SELECT lower(token) FROM ts_parse('default', logingest.loosened(term))
                          WITH ORDINALITY AS parsed (tokid, token, place)
                      WHERE tokid <> 12 ORDER BY place) AS words
           FROM unnest($1::text[]) WITH ORDINALITY AS asked (term, place) ORDER BY place""",
        [term.text for term in query.terms],
    )
    return {term: row["words"] for term, row in zip(query.terms, rows, strict=True)}


def where_query(query: LogQuery, words: Words, args: list[object], *, indexed: bool = False) -> str:
    """The condition that `query` makes; its values are appended to `args`, which holds those of earlier `$n`.

    With `indexed` the indexes for text and metadata apply, otherwise they are left alone.
    """
    clauses = []
    if query.levels is not None:
        clauses.append(f"level = ANY ({bind(args, sorted(query.levels))}::smallint[])")
    if query.services:
        clauses.append(f"service = ANY ({bind(args, list(query.services))}::text[])")
    if query.trace_id:
        clauses.append(f"trace_id = {bind(args, query.trace_id)}")
    if query.user_id:
        clauses.append(f"user_id = {bind(args, query.user_id)}")
    clauses += [_condition(condition, args) for condition in query.conditions]
    clauses += [_pair(name, value, args, indexed=indexed) for name, value in query.metadata]
    clauses += _text(words, args, indexed=indexed)
    return " AND ".join(clauses) or "TRUE"


def bind(args: list[object], value: object) -> str:
    """Appends an argument; returns its name in the statement."""
    args.append(value)
    return f"${len(args)}"


def _condition(condition: Condition, args: list[object]) -> str:
    # As it is it has a bloom filter; an empty one would have to be found where there is none.
    plain = condition.field == "request_id" and condition.op == "=" and condition.value != ""
    return where([condition], {"request_id": "request_id"} if plain else _COLUMNS, args)


def _pair(name: str, value: str, args: list[object], *, indexed: bool) -> str:
    """The metadata holds `value` under `name`, or under the path that it is, as JSON writes it."""
    path = name.split(".")
    shapes = [json.dumps(value)]
    if value in ("true", "false") or _NUMBER.fullmatch(value):
        shapes.append(value)
    column = "metadata" if indexed else "coalesce(metadata, 'null')"
    holds = [f"{column} @> {bind(args, _nested([name], shape))}::jsonb" for shape in shapes]
    if len(path) > 1:
        holds += [f"{column} @> {bind(args, _nested(path, shape))}::jsonb" for shape in shapes]
    key, parts, wanted = bind(args, name), bind(args, path), bind(args, value)
    # What holds 1.50 also holds 1.5, and a key as such goes before a path.
    text = f"CASE WHEN metadata ? {key} THEN metadata ->> {key} ELSE metadata #>> {parts}::text[] END"
    return f"({' OR '.join(holds)}) AND {text} = {wanted}"


def _nested(path: Sequence[str], shape: str) -> str:
    for key in reversed(path):
        shape = f"{{{json.dumps(key)}: {shape}}}"
    return shape


def _text(words: Words, args: list[object], *, indexed: bool) -> Iterator[str]:
    """All terms stand in one of the texts; with the cheapest conditions first."""
    lexemes = dict.fromkeys(
        (word, term.prefix and index == len(found) - 1)
        for term, found in words.items()
        for index, word in enumerate(found)
    )
    if not lexemes:
        return
    if not indexed:
        # Taking a text apart costs ten times as much as looking for a piece of it.
        for word in sorted({word for word, _ in lexemes}, key=len, reverse=True):
            piece = bind(args, word)
            yield "(" + " OR ".join(f"strpos(lower({text}), {piece}) > 0" for text in _TEXTS) + ")"
    quoted = (f"'{word.translate(_QUOTED)}'{':*' if prefix else ''}" for word, prefix in lexemes)
    column = _WORDS if indexed else f"coalesce({_WORDS}, '')"
    yield f"{column} @@ {bind(args, ' & '.join(quoted))}::text::tsquery"
    for term, found in words.items():
        if len(found) > 1:
            phrase = bind(args, f" {' '.join(found)}" + ("" if term.prefix else " "))
            yield "(" + " OR ".join(f"strpos(logingest.spoken({text}), {phrase}) > 0" for text in _TEXTS) + ")"


_QUOTED: Final = str.maketrans({"'": "''", "\\": "\\\\"})
