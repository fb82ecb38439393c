"""Request bodies: which media type a script sends, and its text."""

from __future__ import annotations

import contextlib
import json
import re
from urllib.parse import urlencode
from xml.sax.saxutils import escape

from pydantic import JsonValue

from opsplane_server.loadtesting.definitions import RequestBody
from opsplane_server.loadtesting.openapi.samples import Binary

_BOUNDARY = "opsplane-7d3f0c61b2"
_XML_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")


def media_rank(content_type: str) -> int:
    """How well scripts can send a media type; the lowest of those on offer is sent."""
    kind = essence(content_type)
    ranks = {
        "application/json": 0,
        "application/x-www-form-urlencoded": 2,
        "multipart/form-data": 3,
        "*/*": 4,
        "application/*": 4,
    }
    if kind in ranks:
        return ranks[kind]
    if kind == "application/json-patch+json":
        return 2  # its samples are seldom of use; a merge patch is the better offer
    if kind.endswith("+json"):
        return 1
    if kind.endswith(("/xml", "+xml")):
        return 5
    return 6 if kind.startswith("text/") else 7


def essence(content_type: str) -> str:
    """A media type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def is_json(content_type: str) -> bool:
    """True for JSON and the types built on it."""
    kind = essence(content_type)
    return kind in ("application/json", "text/json") or kind.endswith("+json")


def encode(content_type: str, sample: JsonValue, *, required: bool, root: str = "root") -> RequestBody:
    """The body for a sample; `root` names the outermost element where it becomes XML."""
    kind = essence(content_type)
    if kind in ("*/*", "application/*", ""):
        content_type = kind = "application/json"
    if is_json(kind):
        return RequestBody(content_type, required, "" if sample is None else _json(sample))
    if sample is None or isinstance(sample, str):
        return RequestBody(content_type, required, sample or "")
    if kind == "application/x-www-form-urlencoded" and isinstance(sample, dict):
        return RequestBody(content_type, required, urlencode(_fields(sample)))
    if kind == "multipart/form-data" and isinstance(sample, dict):
        return RequestBody(f"{kind}; boundary={_BOUNDARY}", required, _multipart(sample))
    if kind.endswith(("/xml", "+xml")):
        return RequestBody(content_type, required, _xml(root, sample))
    return RequestBody(content_type, required, _json(sample))


def _json(sample: JsonValue) -> str:
    if isinstance(sample, str) and sample.lstrip()[:1] in ("{", "["):
        # Documents often give the example of an object as its text.
        with contextlib.suppress(ValueError, RecursionError):
            sample = json.loads(sample)
    return json.dumps(sample, ensure_ascii=False)


def _fields(sample: dict[str, JsonValue]) -> list[tuple[str, str]]:
    return [
        (name, item if isinstance(item, str) else _json(item))
        for name, value in sample.items()
        for item in (value if isinstance(value, list) else [value])
    ]


def _multipart(sample: dict[str, JsonValue]) -> str:
    lines: list[str] = []
    for name, value in _fields(sample):
        quoted = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        lines.append(f"--{_BOUNDARY}")
        if isinstance(value, Binary):
            lines.append(f'Content-Disposition: form-data; name="{quoted}"; filename="{quoted}.bin"')
            lines.append("Content-Type: application/octet-stream")
        else:
            lines.append(f'Content-Disposition: form-data; name="{quoted}"')
        lines += ["", value]
    return "\r\n".join([*lines, f"--{_BOUNDARY}--", ""])


def _xml(name: str, value: JsonValue) -> str:
    tag = name if _XML_NAME.match(name) else "item"
    if isinstance(value, dict):
        inner = "".join(
            "".join(_xml(key, item) for item in part) if isinstance(part, list) else _xml(key, part)
            for key, part in value.items()
        )
    elif isinstance(value, list):
        inner = "".join(_xml("item", part) for part in value)
    else:
        inner = escape(value if isinstance(value, str) else json.dumps(value))
    return f"<{tag}>{inner}</{tag}>"
