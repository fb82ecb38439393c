"""Places in documents and the `$ref`s between them.

Only references that the analysis comes across are followed, so a broken or unreachable one in a part that does not
matter to a load test (a response's schema, say) does no harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from opsplane_server.loadtesting.openapi.loading import BrokenDocument, load

_MAX_CHAIN = 32


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it is: the URL of its document (empty for the analyzed one) and its JSON pointer."""

    value: Any
    document: str
    pointer: str

    @property
    def place(self) -> str:
        """The place as errors name it."""
        return f"{self.document}#{self.pointer}"

    def child(self, key: str | int) -> Node:
        """The node under a key of a mapping or an index of a sequence; its value is None when there is none."""
        value: Any = None
        if isinstance(self.value, dict):
            value = self.value.get(key)
        elif isinstance(self.value, list) and isinstance(key, int) and key < len(self.value):
            value = self.value[key]
        escaped = str(key).replace("~", "~0").replace("/", "~1")
        return Node(value, self.document, f"{self.pointer}/{escaped}")

    def entries(self, kind: str) -> Iterator[tuple[str, Node]]:
        """The nodes of a mapping, none for null; `kind` names it in errors. Raises BrokenDocument."""
        if self.value is None:
            return
        if not isinstance(self.value, dict):
            raise BrokenDocument(self.place, f"{kind} must be an object, not {type_name(self.value)}")
        for key in self.value:
            yield key, self.child(key)

    def elements(self, kind: str) -> Iterator[Node]:
        """The nodes of a sequence, none for null; `kind` names it in errors. Raises BrokenDocument."""
        if self.value is None:
            return
        if not isinstance(self.value, list):
            raise BrokenDocument(self.place, f"{kind} must be an array, not {type_name(self.value)}")
        for index in range(len(self.value)):
            yield self.child(index)


def type_name(value: Any) -> str:
    """The JSON name of a value's type, for messages."""
    names: dict[type, str] = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


class References:
    """Follows `$ref`s within the document and into others whose text is given.

    `documents` maps URLs to texts, `unavailable` URLs to why there is no text. Other documents that are needed are
    gathered in `missing`; the analysis then goes on with an empty object in their place and is repeated with them.
    """

    def __init__(
        self, root: Any, source_url: str, documents: Mapping[str, str], unavailable: Mapping[str, str]
    ) -> None:
        self.root = Node(root, "", "")
        self.missing: set[str] = set()
        self._source_url = source_url
        self._texts = documents
        self._unavailable = unavailable
        self._loaded: dict[str, Any] = {}

    def follow(self, node: Node) -> Node:
        """`node`, or what its `$ref` leads to. Raises BrokenDocument when that leads nowhere."""
        for _ in range(_MAX_CHAIN):
            reference = node.value.get("$ref") if isinstance(node.value, dict) else None
            if not isinstance(reference, str):
                return node
            node = self._target(node, reference)
        raise BrokenDocument(node.place, "the $ref leads back to itself")

    def _target(self, node: Node, reference: str) -> Node:
        location, fragment = urldefrag(reference)
        document = self._absolute(node, location) if location else node.document
        if document == self._source_url:
            document = ""
        root = self.root if not document else self._document(node, document)
        if root is None:
            return Node({}, document, "")
        if fragment and not fragment.startswith("/"):
            raise BrokenDocument(node.place, f"the $ref {reference!r} is not a JSON pointer")
        target = root
        for part in fragment.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            is_index = isinstance(target.value, list) and key.isascii() and key.isdigit()
            target = target.child(int(key) if is_index else key)
            if target.value is None:
                raise BrokenDocument(node.place, f"the $ref {reference!r} leads to nothing")
        return target

    def _absolute(self, node: Node, location: str) -> str:
        base = node.document or self._source_url
        url = urljoin(base, location)
        if urlsplit(url).scheme not in ("http", "https"):
            problem = f"the $ref leads to another document, {location!r}, which cannot be found without a URL"
            raise BrokenDocument(node.place, problem)
        return url

    def _document(self, node: Node, url: str) -> Node | None:
        if url not in self._loaded:
            if url in self._unavailable:
                raise BrokenDocument(node.place, f"{url} cannot be had: {self._unavailable[url]}")
            if url not in self._texts:
                self.missing.add(url)
                return None
            try:
                self._loaded[url] = load(self._texts[url])
            except BrokenDocument as error:
                raise BrokenDocument(url, str(error)) from error
        return Node(self._loaded[url], url, "")
