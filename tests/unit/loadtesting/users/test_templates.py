"""Templates: how they are read, and everything that is wrong with those of a load, by field."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.definitions import Endpoint, RequestBody
from opsplane_server.loadtesting.users.holes import Filling, OneOf, PoolField, json_text, parse
from opsplane_server.loadtesting.users.model import (
    EndpointCall,
    Hex,
    IntegerRange,
    RequestTemplate,
    Script,
    Sequence,
    TimestampRange,
    UserLoad,
    UserTask,
)
from opsplane_server.loadtesting.users.parsing import Hole, TemplateError, Word, json_path, split
from opsplane_server.loadtesting.users.templates import check

from tests.unit.loadtesting.users.loads import SECOND, load, pool, user_class

HOUR = 3600 * SECOND
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def word(text: str) -> str:
    """A word as people would write it, in quotes that it does not hold."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(
    st.text(max_size=30) | st.lists(st.sampled_from(["{{", "}}", "{", "uuid", " ", '"', "\\", "int", "1"])).map("".join)
)
def test_any_text_is_read_or_refused_with_a_position(text: str) -> None:
    if "{{" not in text:
        assert parse(text) == ((text,) if text else ())
        return
    with suppress(TemplateError):
        for part in parse(text):
            assert isinstance(part, str) or text.startswith("{{", part.position - 1)


@given(st.lists(TEXT.filter(lambda text: "{" not in text) | st.lists(TEXT, min_size=1, max_size=4), max_size=5))
def test_texts_and_words_come_back(found: list[str | list[str]]) -> None:
    text = "".join(part if isinstance(part, str) else f"{{{{{' '.join(map(word, part))}}}}}" for part in found)
    back = [[each.text for each in part.words] if isinstance(part, Hole) else part for part in split(text)]
    joined: list[str | list[str]] = []
    for part in found:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part:
            joined.append(part)
    assert back == joined


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{choice a 'b c' \"d }} e\"}}", ["choice", "a", "b c", "d }} e"]),
        (r"{{choice \"b c\" \"d\"}}", ["choice", "b c", "d"]),
        (r'{{choice "a\"b" \u00e9 "\ud83d\ude00" a\\b}}', ["choice", 'a"b', "é", "😀", "a\\b"]),
        ("{{ \n uuid\t}}", ["uuid"]),
        ("{{choice {a} }b}}", ["choice", "{a}", "}b"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    (hole,) = split(text)
    assert isinstance(hole, Hole)
    assert [each.text for each in hole.words] == words


def test_the_innermost_braces_belong_to_the_hole() -> None:
    assert split("{{{uuid}}}") == ("{", Hole((Word("uuid"),), 2), "}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{pool.a.b}}", PoolField("a", "b")),
        ("{{pool.a.b 1 3}}", PoolField("a", "b", 1, 3)),
        ("{{pool.a.b 2}}", PoolField("a", "b", 2, 2)),
        ("{{hex 32}}", Hex(32)),
        ("{{int -5 9007199254740991}}", IntegerRange(-5, 2**53 - 1)),
        ("{{weighted 3 a 1 b}}", OneOf((Word("a"), Word("b")), (3.0, 1.0))),
        ("{{timestamp -1d12h -30m}}", TimestampRange(36 * HOUR, HOUR / 2)),
        ("{{timestamp 0s 1h}}", TimestampRange(0 * HOUR, -HOUR)),
        ("{{timestamp -24h}}", TimestampRange(24 * HOUR, 0 * HOUR)),
        ("{{sequence}}", Sequence(1)),
        ("{{sequence 10}}", Sequence(10)),
    ],
)
def test_holes(text: str, value: Any) -> None:
    (filling,) = parse(text)
    assert isinstance(filling, Filling)
    assert (filling.value, filling.position) == (value, 1)


def test_a_quoted_word_alone_is_text() -> None:
    assert parse('a {{"{{"}} b') == ("a ", "{{", " b")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ab {{uuid", "at character 4: `{{` without `}}`"),
        ("ab {{}}", "at character 4: nothing stands between the braces"),
        ('{{choice "a}}', "at character 10: these quotes are not closed"),
        (r"{{choice \x}}", "at character 10: no such escape"),
        (r'{{choice "\ud83d"}}', "at character 11: half of a character"),
        ("{{a {{b}} }}", "at character 1: `{{` without `}}`"),
        ("x{{uuuid}}", "at character 2: there is no 'uuuid'; there are uuid, hex, int"),
        ("{{uuid 4}}", "uuid is written {{uuid}}"),
        ("{{hex}}", "hex is written"),
        ("{{hex 257}}", "hex is written"),
        ("{{int 5 1}}", "int is written"),
        ("{{int 1 9007199254740992}}", "int is written"),
        ("{{int 1.5 2}}", "int is written"),
        ("{{choice}}", "choice is written"),
        ("{{weighted 1 a 2}}", "weighted is written"),
        ("{{weighted 0 a}}", "weighted is written"),
        ("{{weighted nan a 1 b}}", "weighted is written"),
        ("{{weighted inf a}}", "weighted is written"),
        ("{{timestamp 0s -24h}}", "timestamp is written"),
        ("{{timestamp yesterday}}", "timestamp is written"),
        ("{{sequence a}}", "sequence is written"),
        ("{{pool.a}}", "a field of a pool is written {{pool.NAME.FIELD}}"),
        ("{{pool.a.b 3 1}}", "a field of a pool is written"),
        ("{{pool.a.b 1 1001}}", "a field of a pool is written"),
        ("{{pool.a.b x}}", "a field of a pool is written"),
        ("{{user.name}}", "a user has id, number and session_id, not 'name'"),
        ("{{user.id 4}}", "user is written {{user.NAME}}, without more words"),
        ("{{captured.}}", "captured is written {{captured.NAME}}"),
        ("{{environment.PATH}}", "there is no 'environment.PATH'; there are pool.NAME.FIELD"),
    ],
)
def test_what_is_no_template_is_said_with_its_position(text: str, problem: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse(text)
    assert problem in str(caught.value)
    assert "at character" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "quoted", "written"),
    [
        ("20", False, "20"),
        ("-1.50", False, "-1.50"),
        ("true", False, "true"),
        ("null", False, "null"),
        ("12345678901234567890", False, "12345678901234567890"),
        ("20", True, '"20"'),
        ("007", False, '"007"'),
        ("NaN", False, '"NaN"'),
        ("[1]", False, '"[1]"'),
        ('a"b', False, '"a\\"b"'),
    ],
)
def test_words_as_json(text: str, quoted: bool, written: str) -> None:
    assert json_text(Word(text, quoted)) == written


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("token", ("token",)),
        ("data.items[0].id", ("data", "items", 0, "id")),
        ("$.a.b", ("a", "b")),
        ("[2][0]", (2, 0)),
        ('a["odd. name"].b', ("a", "odd. name", "b")),
        ("a-b.0", ("a-b", "0")),
    ],
)
def test_paths(text: str, path: tuple[str | int, ...]) -> None:
    assert json_path(text) == path


@pytest.mark.parametrize("text", ["", "$", "a..b", "a.", ".a", "a[", "a[x]", "a b", "a[0]b", "a['b']"])
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(TemplateError):
        json_path(text)


# --- a whole load ---


def posted(body: str, **fields: Any) -> UserTask:
    return UserTask(RequestTemplate("POST", "/", body=body, **fields))


def problems(load: UserLoad, **fields: list[str]) -> dict[str, str]:
    """What is wrong, by field."""
    with pytest.raises(InvalidArgument) as caught:
        check(load, fields)
    found = {
        violation.field.removeprefix("run.user_load."): violation.description for violation in caught.value.violations
    }
    assert len(found) == len(caught.value.violations)
    return found


def test_the_fields_that_templates_take() -> None:
    classes = (
        user_class(
            "a",
            posted('{"a": {{pool.rows.id}}, "b": [{{pool.rows.other 1 3}}]}'),
            user_id="{{pool.people.name}}",
            headers={"X": "{{pool.people.key}}"},
        ),
        user_class("b", UserTask(RequestTemplate("GET", "/{{pool.rows.id}}", query={"q": "{{pool.unknown.x}}"}))),
    )
    pools = (pool("rows"), pool("people"), pool("unknown"), pool("unused"))
    fields = {"rows": ["id", "other", "more"], "people": ["name", "key"], "unused": ["x"]}
    assert check(load(*classes, pools=pools), fields) == {
        "rows": {"id", "other"},
        "people": {"name", "key"},
        "unknown": {"x"},
        "unused": set(),
    }


def test_all_that_is_wrong_is_said_at_once() -> None:
    endpoint = EndpointCall("e", Endpoint("GET", "/e"), "", {"q": "{{nope}}"}, "{{int}}")
    wrong = user_class(
        "a",
        UserTask(RequestTemplate("GET", "/{{pool.row.id}}", {"q": "{{captured.none}}"}, {"H": "{{"})),
        UserTask(endpoint, captures={"token": "a..b"}),
        on_start=(posted('{"a": {{pool.rows.nme}}}'),),
        headers={"X": "{{row.id}}"},
        user_id="{{user.id}}",
        session_id="{{captured.token}}",
    )
    found = problems(load(user_class("first"), wrong, pools=(pool("rows"),)), rows=["id", "name"])
    assert found == {
        "classes[1].user_id": "at character 1: user.id is not known here yet; there are user.number",
        "classes[1].session_id": "at character 1: nothing captures 'token'; there are none",
        "classes[1].headers['X']": (
            "at character 1: row is for the templates of generators; a pool's rows are {{pool.NAME.FIELD}}"
        ),
        "classes[1].tasks[0].request.path": found["classes[1].tasks[0].request.path"],
        "classes[1].tasks[0].request.query['q']": "at character 1: nothing captures 'none'; there are token",
        "classes[1].tasks[0].request.headers['H']": "at character 1: `{{` without `}}`",
        "classes[1].tasks[1].captures['token']": "at character 2: a key, or an index such as [0], is expected",
        "classes[1].tasks[1].parameters['q']": found["classes[1].tasks[1].parameters['q']"],
        "classes[1].tasks[1].body": found["classes[1].tasks[1].body"],
        "classes[1].on_start[0].request.body": (
            "at character 7: rows of pool 'rows' have no field 'nme'; there are id, name"
        ),
    }


def test_pools_and_paths_that_are_wrong() -> None:
    wrong = user_class(
        "a", UserTask(RequestTemplate("GET", "/{{pool.row.id}}")), UserTask(RequestTemplate("GET", "/{id}"))
    )
    assert problems(load(wrong, pools=(pool("rows"),))) == {
        "classes[0].tasks[0].request.path": "at character 2: there is no pool 'row'; there are rows",
        "classes[0].tasks[1].request.path": "'{id}' is nothing that is filled in; templates stand in two braces",
    }


def test_what_own_code_captures_nobody_knows() -> None:
    own = UserTask(Script("user.captured.token = 'x'"))
    uses = UserTask(RequestTemplate("GET", "/{{captured.token}}"))
    check(load(user_class("a", own, uses)), {})
    assert "classes[1].tasks[0].request.path" in problems(load(user_class("a", own), user_class("b", uses)))


@pytest.mark.parametrize(
    "body",
    [
        '{"a": {{int 1 5}}, "b": "x {{uuid}} y", "{{uuid}}": [{{pool.rows.id 0 3}}]}',
        "{{captured.all}}",
        '"{{pool.rows.id 1 3}}"',
        r'"\\{{uuid}}\""',
        r'{"a": "{{choice \"b c\" d}}"}',
        '{"a":{"b":{{int 1 2}}}}',
    ],
)
def test_bodies_that_stay_json(body: str) -> None:
    captures = UserTask(RequestTemplate("GET", "/"), captures={"all": "a"})
    check(load(user_class("a", posted(body), captures), pools=(pool("rows"),)), {})


@pytest.mark.parametrize(
    "body",
    [
        '{"a": {{int 1 5}}',
        '{"a": 1{{int 1 5}}}',
        '{"a": {{uuid}}{{uuid}}}',
        "{{{uuid}}: 1}",
        "[1, {{pool.rows.id 0 3}}]",
        '"\\{{uuid}}"',
        "a={{uuid}}",
        "[" * 20_000 + "{{uuid}}" + "]" * 20_000,
    ],
)
def test_bodies_that_do_not(body: str) -> None:
    found = problems(load(user_class("a", posted(body)), pools=(pool("rows"),)))
    assert list(found) == ["classes[0].tasks[0].request.body"]


@pytest.mark.parametrize(
    "task",
    [
        posted("a={{uuid}}", content_type="application/x-www-form-urlencoded"),
        posted("{{uuid}}:", headers={"content-TYPE": "text/plain"}),
        posted("{{uuid}}:", headers={"Content-Type": "{{choice a/b c/d}}"}),
        posted("no templates: no JSON asked for"),
        UserTask(
            EndpointCall("e", Endpoint("POST", "/", body=RequestBody("text/xml", True, "")), "", {}, "<{{uuid}}>")
        ),
    ],
)
def test_other_bodies_are_not_looked_at(task: UserTask) -> None:
    check(load(user_class("a", task)), {})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | TEXT.filter(lambda text: "{" not in text),
        lambda children: (
            st.lists(children, max_size=4)
            | st.dictionaries(TEXT.filter(lambda text: "{" not in text), children, max_size=4)
        ),
        max_leaves=10,
    ),
    st.booleans(),
)
def test_templates_can_stand_in_any_string_and_for_any_value(value: Any, escaped: bool) -> None:
    body = json.dumps({"first": value, "text": "a $HOLE b", "last": "$VALUE"}, ensure_ascii=escaped)
    body = body.replace("$HOLE", "{{choice 'x y' z}}").replace('"$VALUE"', "{{captured.all}}")
    captures = UserTask(RequestTemplate("GET", "/"), captures={"all": "a"})
    check(load(user_class("a", posted(body), captures)), {})
