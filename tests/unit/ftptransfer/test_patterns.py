"""Patterns of paths, and folders in which files are looked for."""

import fnmatch
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opsplane_server.ftptransfer.expansion import LocalListing, expand, join, walk
from opsplane_server.ftptransfer.failures import ErrorReason, TransferFailure
from opsplane_server.ftptransfer.local_files import LocalFiles
from opsplane_server.ftptransfer.model import Child, End, RemoteFile, Selection
from opsplane_server.ftptransfer.patterns import Pattern, split_pattern
from opsplane_server.ftptransfer.temporary import temporary_name

from tests.ftptransfer_fakes import FolderServer, ftp, local, task_between


def matches(glob: str, path: str) -> bool:
    pattern = Pattern(glob)
    states = pattern.start
    for name in path.split("/"):
        states = pattern.step(states, name)
    return pattern.matches(states)


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("*.csv", ["a.csv", ".csv"], ["a.CSV", "b/a.csv", "a.csv.gz"]),
        ("2026/**/*.gz", ["2026/a.gz", "2026/01/a.gz", "2026/01/02/a.gz"], ["2025/a.gz", "2026/a.txt", "2026"]),
        ("**", ["a", "a/b", "a/b/c"], []),
        ("a/**", ["a/b", "a/b/c"], ["a", "b"]),
        ("**/a", ["a", "b/a", "b/c/a"], ["a/b"]),
        ("**/**/a", ["a", "b/a", "b/c/a"], ["a/b"]),
        ("a?[0-9]", ["ab1", "a.9"], ["a1", "abc"]),
        ("[!a]*/x", ["b/x", "bc/x"], ["a/x", "x"]),
        ("/a//b/", ["a/b"], ["a"]),
        ("[z-a]", [], ["b"]),
        ("[", ["["], ["a"]),
    ],
)
def test_patterns(glob: str, yes: list[str], no: list[str]) -> None:
    assert [path for path in yes if not matches(glob, path)] == []
    assert [path for path in no if matches(glob, path)] == []


_GLOBS = st.lists(st.sampled_from(["**", "*", "a", "b*", "?"]), min_size=1, max_size=5)
_PATHS = st.lists(st.sampled_from(["a", "b", "bc"]), min_size=1, max_size=5)


@given(_GLOBS, _PATHS)
def test_as_a_regular_expression_would(globs: list[str], names: list[str]) -> None:
    *before, last = globs
    expression = "".join("(?:[^/]+/)*" if glob == "**" else _one(glob) + "/" for glob in before)
    expression += "[^/]+(?:/[^/]+)*" if last == "**" else _one(last)
    expected = re.fullmatch(expression, "/".join(names)) is not None
    assert matches("/".join(globs), "/".join(names)) == expected


def _one(glob: str) -> str:
    return fnmatch.translate(glob).removeprefix("(?s:").removesuffix(r")\Z").replace(".", "[^/]")


@given(_GLOBS, _PATHS)
def test_what_matches_is_always_led_to(globs: list[str], names: list[str]) -> None:
    pattern = Pattern("/".join(globs))
    states = pattern.start
    led = True
    for name in names[:-1]:
        states = pattern.step(states, name)
        led = led and pattern.leads_on(states)
    if matches("/".join(globs), "/".join(names)):
        assert led


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/remote/2026/**/*.gz", ("/remote/2026", "**/*.gz")),
        ("*.gz", ("", "*.gz")),
        ("/*.gz", ("/", "*.gz")),
        ("/a/b.txt", ("/a", "b.txt")),
        ("b.txt", ("", "b.txt")),
        ("a/[x]/y", ("a", "[x]/y")),
    ],
)
def test_fixed_folder(path: str, expected: tuple[str, str]) -> None:
    assert split_pattern(path) == expected


@pytest.mark.parametrize(
    ("folder", "path", "expected"),
    [("", "a", "a"), ("/", "a", "/a"), ("b", "a", "b/a"), ("b/", "a", "b/a"), ("b", "", "b"), ("", "", "")],
)
def test_join(folder: str, path: str, expected: str) -> None:
    assert join(folder, path) == expected


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for path in ("b.txt", "a.txt", "x/2.gz", "x/1.gz", "x/deep/er/3.gz", "y/4.gz", "y/" + temporary_name("5.gz", "t")):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x" * len(path))
    (root / "x/loop").symlink_to("..")
    (root / "x/link.gz").symlink_to("../y/4.gz")
    (root / "x/away.gz").symlink_to("/etc/passwd")
    return root


async def test_walk_of_one_folder(tree: Path) -> None:
    found = [entry async for entry in walk(LocalListing(LocalFiles(tree)), "")]
    assert [entry.path for entry in found] == ["a.txt", "b.txt", "x", "y"]


async def test_walk_reads_only_what_may_match(tree: Path) -> None:
    server = FolderServer(tree)
    async with server.session(ftp()) as session:
        found = [entry.path async for entry in walk(session, "/", glob="y/*.gz")]
    assert [path for path in found if not path.endswith(".part")] == ["y/4.gz"]
    assert server.calls == ["list", "list"]


@pytest.mark.parametrize("remote", [False, True])
async def test_expansion_of_a_tree(tree: Path, remote: bool, tmp_path: Path) -> None:
    children = await _expand(tree, Selection.TREE, "/", remote=remote)
    expected = ["a.txt", "b.txt", "x/1.gz", "x/2.gz", "x/link.gz", "x/deep/er/3.gz", "y/4.gz"]
    if remote:
        # The folder that plays the server follows links to anywhere.
        children = [child for child in children if "away" not in child.source_path]
    assert sorted(child.source_path for child in children) == sorted("/" + path for path in expected)
    assert all(child.destination_path == "archive" + child.source_path for child in children)
    assert {child.size for child in children if child.source_path == "/x/link.gz"} == {6}


async def test_expansion_of_a_glob(tree: Path) -> None:
    children = await _expand(tree, Selection.GLOB, "/x/**/*.gz")
    assert [(child.source_path, child.destination_path) for child in children] == [
        ("/x/1.gz", "archive/1.gz"),
        ("/x/2.gz", "archive/2.gz"),
        ("/x/link.gz", "archive/link.gz"),
        ("/x/deep/er/3.gz", "archive/deep/er/3.gz"),
    ]


async def test_expansion_comes_in_chunks(tmp_path: Path) -> None:
    for number in range(1201):
        (tmp_path / f"{number}").touch()
    chunks: list[int] = []

    async def add(children: object) -> None:
        assert isinstance(children, list)
        chunks.append(len(children))

    task = task_between(End(local(tmp_path), "/"), End(ftp(), "in"), selection=Selection.TREE)
    await expand(task, LocalListing(LocalFiles(tmp_path)), add)
    assert chunks == [500, 500, 201]


async def test_missing_folder_fails_the_expansion(tmp_path: Path) -> None:
    with pytest.raises(TransferFailure) as failure:
        await _expand(tmp_path, Selection.TREE, "/no")
    assert failure.value.reason is ErrorReason.NOT_FOUND


@pytest.mark.parametrize("name", ["line\nbreak", "\udcff"])
async def test_name_that_can_not_be_transferred_fails_the_expansion(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(TransferFailure) as failure:
        await _expand(tmp_path, Selection.TREE, "/")
    assert failure.value.reason is ErrorReason.PATH
    message = failure.value.message
    message.encode()
    assert "\n" not in message


@pytest.mark.parametrize("name", ["../up", "..", "a/b", ""])
async def test_names_of_a_hostile_server_are_refused(tmp_path: Path, name: str) -> None:
    class Hostile(LocalListing):
        async def list(self, path: str) -> list[RemoteFile]:
            [file] = await super().list(path)
            return [RemoteFile(name, file.kind, file.size)]

    (tmp_path / "a").touch()
    task = task_between(End(ftp(), "/"), End(local(tmp_path), "in"), selection=Selection.TREE)

    async def add(children: object) -> None:
        raise AssertionError(children)

    with pytest.raises(TransferFailure):
        await expand(task, Hostile(LocalFiles(tmp_path)), add)


async def _expand(tree: Path, selection: Selection, path: str, *, remote: bool = False) -> list[Child]:
    found: list[Child] = []

    async def add(children: object) -> None:
        assert isinstance(children, list)
        found.extend(children)

    ends = ftp(), local(tree)
    source, destination = ends if remote else ends[::-1]
    task = task_between(End(source, path), End(destination, "archive/"), selection=selection)
    if remote:
        async with FolderServer(tree).session(ends[0]) as session:
            await expand(task, session, add)
    else:
        await expand(task, LocalListing(LocalFiles(tree)), add)
    return found
