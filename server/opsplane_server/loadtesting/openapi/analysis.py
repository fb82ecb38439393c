"""An OpenAPI document becomes a specification with endpoints. Pure: no network, no files.

Strict about what a load test stands on (paths, operations, parameters, servers), lenient about everything else:
unknown keywords, extensions, responses' schemas and wrong examples are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.definitions import (
    AnalyzedSpec,
    Endpoint,
    Parameter,
    ParameterLocation,
    ParameterStyle,
    RequestBody,
    SecurityScheme,
    Specification,
    Tag,
)
from opsplane_server.loadtesting.openapi.bodies import encode, media_rank
from opsplane_server.loadtesting.openapi.loading import BrokenDocument, load
from opsplane_server.loadtesting.openapi.parameters import Parameters, collect
from opsplane_server.loadtesting.openapi.references import Node, References, type_name
from opsplane_server.loadtesting.openapi.samples import Samples, clean_text

MAX_ENDPOINTS = 10_000
MAX_WARNINGS = 100

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_TEMPLATE = re.compile(r"\{([^{}]+)\}")


class MissingDocuments(Exception):
    """The document refers to others; analyze it again with the texts of `urls`."""

    def __init__(self, urls: frozenset[str]) -> None:
        super().__init__(", ".join(sorted(urls)))
        self.urls = urls


def analyze(
    text: str,
    *,
    source_url: str = "",
    documents: Mapping[str, str] | None = None,
    unavailable: Mapping[str, str] | None = None,
) -> AnalyzedSpec:
    """Analyzes an OpenAPI 2.0, 3.0 or 3.1 document, JSON or YAML.

    `source_url` is where it came from (empty when its content was given); relative servers and references count
    from there. `documents` are the texts of other documents by URL, `unavailable` says why one cannot be had.
    Raises InvalidArgument on `content` or `openapi_url` with the place of what is wrong, and MissingDocuments.
    """
    try:
        references = References(load(text), source_url, documents or {}, unavailable or {})
        analyzed = _Analysis(references, source_url, len(text.encode("utf-8", "replace"))).run()
    except BrokenDocument as error:
        field = "openapi_url" if source_url else "content"
        raise InvalidArgument.of(field, str(error), reason="SPEC_BROKEN") from error
    if references.missing:
        raise MissingDocuments(frozenset(references.missing))
    return analyzed


class _Analysis:
    def __init__(self, references: References, source_url: str, size: int) -> None:
        self._references = references
        self._root = references.root
        self._source_url = source_url
        self._size = size
        self._warnings: list[str] = []
        self._format = self._version()
        self._swagger2 = self._format == "2.0"
        samples = Samples(references, self._warnings)
        self._parameters = Parameters(references, samples, swagger2=self._swagger2)
        self._samples = samples

    def run(self) -> AnalyzedSpec:
        info = self._root.child("info")
        if info.value is not None and not isinstance(info.value, dict):
            raise BrokenDocument(info.place, f"info must be an object, not {type_name(info.value)}")
        servers = self._servers(self._root) or self._implied_servers()
        endpoints = tuple(self._endpoints())
        title = _text(info.child("title"), 200)
        if not title:
            self._warnings.append("#/info/title: the document has no title")
        specification = Specification(
            title=title or urlsplit(self._source_url).hostname or "Untitled",
            version=_text(info.child("version"), 100),
            description=_text(info.child("description"), 20_000),
            openapi_version=self._format,
            base_url=servers[0] if servers else "",
            servers=servers,
            tags=self._tags(endpoints),
            security_schemes=tuple(self._security_schemes()),
            source_url=self._source_url,
            size_bytes=self._size,
            warnings=self._all_warnings(),
        )
        return AnalyzedSpec(specification, endpoints)

    def _version(self) -> str:
        if not isinstance(self._root.value, dict):
            raise BrokenDocument("#", f"an OpenAPI document is an object, not {type_name(self._root.value)}")
        swagger, openapi = self._root.value.get("swagger"), self._root.value.get("openapi")
        if swagger is None and openapi is None:
            raise BrokenDocument("#", "neither `openapi` nor `swagger` says which version of OpenAPI this is")
        key, version = ("swagger", str(swagger)) if openapi is None else ("openapi", str(openapi))
        if key == "swagger" and version == "2.0":
            return version
        if key == "openapi" and re.match(r"3\.[01](\.|\Z)", version):
            return clean_text(version)[:20]
        if key == "openapi" and re.match(r"3\.\d+(\.|\Z)", version):
            self._warnings.append(f"#/openapi: version {version[:20]} is read as if it were 3.1")
            return clean_text(version)[:20]
        raise BrokenDocument(f"#/{key}", f"version {version[:20]!r} is not supported; 2.0, 3.0 and 3.1 are")

    # --- paths and operations ---

    def _endpoints(self) -> Iterator[Endpoint]:
        paths = self._root.child("paths")
        if paths.value is None and self._format.startswith(("2.", "3.0")):
            raise BrokenDocument("#", "the document has no `paths`")
        count = 0
        for path, entry in paths.entries("paths"):
            if path.startswith("x-"):
                continue
            if not path.startswith("/"):
                raise BrokenDocument(entry.place, "a path must start with /")
            item = self._references.follow(entry)
            for method, operation in item.entries("a path"):
                if method.lower() not in _METHODS:
                    continue
                if not isinstance(operation.value, dict):
                    kind = type_name(operation.value)
                    raise BrokenDocument(operation.place, f"an operation must be an object, not {kind}")
                count += 1
                if count > MAX_ENDPOINTS:
                    raise BrokenDocument("#/paths", f"the document has more than {MAX_ENDPOINTS} operations")
                yield self._endpoint(path, method.upper(), item, operation)

    def _endpoint(self, path: str, method: str, item: Node, operation: Node) -> Endpoint:
        declared = collect(self._references, item.child("parameters"), operation.child("parameters"))
        parameters = [
            parameter
            for (location, name), node in declared.items()
            if location not in ("body", "formData")
            and (parameter := self._parameters.convert(location, name, node)) is not None
        ]
        servers = self._servers(operation) or self._servers(item)
        return Endpoint(
            method=method,
            path=clean_text(path),
            operation_id=_text(operation.child("operationId"), 300),
            summary=_text(operation.child("summary"), 1_000),
            description=_text(operation.child("description"), 20_000),
            deprecated=operation.value.get("deprecated") is True,
            tags=tuple(dict.fromkeys(_text(tag, 200) for tag in operation.child("tags").elements("tags"))),
            parameters=tuple(self._path_parameters(path, parameters, operation)),
            body=self._form_body(operation, declared) if self._swagger2 else self._body(operation),
            success_statuses=self._success_statuses(operation),
            security=self._security(operation),
            server_url=servers[0] if servers else "",
        )

    def _path_parameters(self, path: str, parameters: list[Parameter], operation: Node) -> Iterator[Parameter]:
        """The parameters, with one for each part of the path template that the document forgot to declare."""
        in_path = list(dict.fromkeys(clean_text(name) for name in _TEMPLATE.findall(path)))
        known = {parameter.name for parameter in parameters if parameter.location is ParameterLocation.PATH}
        for name in in_path:
            if name not in known:
                self._warnings.append(f"{operation.place}: the path parameter {name!r} is not declared")
                yield Parameter(ParameterLocation.PATH, name, True, "1", ParameterStyle.SIMPLE, False)
        for parameter in parameters:
            if parameter.location is not ParameterLocation.PATH or parameter.name in in_path:
                yield parameter

    def _body(self, operation: Node) -> RequestBody | None:
        if operation.child("requestBody").value is None:
            return None
        body = self._references.follow(operation.child("requestBody"))
        offers = list(body.child("content").entries("content"))
        if not offers:
            return None
        content_type, entry = min(offers, key=lambda offer: media_rank(offer[0]))
        media = self._references.follow(entry)
        sample = self._parameters.media_sample(media) if isinstance(media.value, dict) else None
        required = body.value.get("required") is True
        return encode(_header(content_type), sample, required=required, root=_root_name(media.child("schema")))

    def _form_body(self, operation: Node, declared: Mapping[tuple[str, str], Node]) -> RequestBody | None:
        """The body of OpenAPI 2.0: one parameter in `body`, or fields in `formData`."""
        consumes = operation.child("consumes")
        if consumes.value is None:
            consumes = self._root.child("consumes")
        offers = [_header(node.value) for node in consumes.elements("consumes") if isinstance(node.value, str)]
        for (location, _), node in declared.items():
            if location == "body":
                content_type = min(offers, key=media_rank) if offers else "application/json"
                schema = node.child("schema")
                sample = self._samples.of(schema) if schema.value is not None else None
                required = node.value.get("required") is True
                return encode(content_type, sample, required=required, root=_root_name(schema))
        fields = {name: node for (location, name), node in declared.items() if location == "formData"}
        if not fields:
            return None
        multipart = "multipart/form-data"
        has_file = any(node.value.get("type") == "file" for node in fields.values())
        form = multipart if has_file or offers == [multipart] else "application/x-www-form-urlencoded"
        values = {clean_text(name): self._parameters.sample(node) for name, node in fields.items()}
        required = any(node.value.get("required") is True for node in fields.values())
        return encode(form, values, required=required)

    def _success_statuses(self, operation: Node) -> tuple[int, ...]:
        """The codes from 200 to 399; none when a range such as `2XX` is among them, which says less than a code."""
        codes: set[int] = set()
        for code, _ in operation.child("responses").entries("responses"):
            if code.upper() in ("2XX", "3XX"):
                return ()
            if re.fullmatch(r"[23][0-9]{2}", code):
                codes.add(int(code))
        return tuple(sorted(codes))

    # --- servers, security, tags ---

    def _servers(self, holder: Node) -> tuple[str, ...]:
        """The absolute URLs of the `servers` of 3.x, without a slash at the end."""
        urls = []
        for server in holder.child("servers").elements("servers"):
            template = server.child("url").value
            if not isinstance(template, str):
                raise BrokenDocument(server.place, "a server needs a url")
            variables = server.child("variables")

            def default(match: re.Match[str], variables: Node = variables) -> str:
                variable = variables.child(match.group(1))
                given = _text(variable.child("default"), 500)
                choices = [_text(choice, 500) for choice in variable.child("enum").elements("enum")]
                return given or (choices[0] if choices else match.group(0))

            urls.append(_TEMPLATE.sub(default, template))
        return self._absolute(urls)

    def _implied_servers(self) -> tuple[str, ...]:
        """Where the API is when a document names no `servers`: 2.0's host and basePath, or where it came from."""
        source = urlsplit(self._source_url)
        if not self._swagger2:
            return self._absolute(["/"])
        host = _text(self._root.child("host"), 500) or source.netloc
        path = _text(self._root.child("basePath"), 500)
        schemes = [_text(scheme, 10) for scheme in self._root.child("schemes").elements("schemes")]
        usable = [scheme for scheme in schemes if scheme in ("http", "https")] or [source.scheme or "https"]
        usable.sort(key=lambda scheme: scheme != "https")
        return self._absolute([f"{scheme}://{host}/{path.lstrip('/')}" for scheme in usable]) if host else ()

    def _absolute(self, urls: list[str]) -> tuple[str, ...]:
        found: list[str] = []
        for url in urls:
            try:
                full = urljoin(self._source_url, clean_text(url.strip()))
                parts = urlsplit(full)
                usable = parts.scheme in ("http", "https") and bool(parts.hostname) and "{" not in full
            except ValueError:
                usable = False
            if usable:
                found.append(full.rstrip("/"))
            elif url != "/":
                self._warnings.append(f"#/servers: {url[:200]!r} is not a complete http or https URL")
        return tuple(dict.fromkeys(found))

    def _security(self, operation: Node) -> tuple[str, ...]:
        requirements = operation.child("security")
        if requirements.value is None:
            requirements = self._root.child("security")
        return tuple(
            dict.fromkeys(
                clean_text(scheme)
                for requirement in requirements.elements("security")
                for scheme, _ in requirement.entries("a security requirement")
            )
        )

    def _security_schemes(self) -> Iterator[SecurityScheme]:
        holder = self._root if self._swagger2 else self._root.child("components")
        schemes = holder.child("securityDefinitions" if self._swagger2 else "securitySchemes")
        for name, entry in schemes.entries("security schemes"):
            node = self._references.follow(entry)
            kind = _text(node.child("type"), 50)
            scheme = _text(node.child("scheme"), 50).lower()
            if kind == "basic":
                kind, scheme = "http", "basic"
            if kind == "apiKey":
                scheme = _text(node.child("in"), 50)
            parameter_name = _text(node.child("name"), 200) if kind == "apiKey" else ""
            yield SecurityScheme(clean_text(name), kind, scheme, parameter_name)

    def _tags(self, endpoints: tuple[Endpoint, ...]) -> tuple[Tag, ...]:
        tags: dict[str, Tag] = {}
        for node in self._root.child("tags").elements("tags"):
            name = _text(node.child("name"), 200)
            if name:
                tags.setdefault(name, Tag(name, _text(node.child("description"), 2_000)))
        for endpoint in endpoints:
            for name in endpoint.tags:
                tags.setdefault(name, Tag(name))
        return tuple(tags.values())

    def _all_warnings(self) -> tuple[str, ...]:
        unique = [clean_text(warning)[:500] for warning in dict.fromkeys(self._warnings)]
        if len(unique) > MAX_WARNINGS:
            return (*unique[:MAX_WARNINGS], f"and {len(unique) - MAX_WARNINGS} more")
        return tuple(unique)


def _text(node: Node, limit: int) -> str:
    """The text at a node, cut at `limit` characters; numbers as their text, empty for anything else."""
    value: Any = node.value
    if isinstance(value, str):
        return clean_text(value)[:limit]
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _header(content_type: str) -> str:
    """A media type as it can stand in a header: one line."""
    return " ".join(clean_text(content_type).split())[:200]


def _root_name(schema: Node) -> str:
    """What an XML body of this schema is called."""
    value = schema.value if isinstance(schema.value, dict) else {}
    xml, reference = value.get("xml"), value.get("$ref")
    if isinstance(xml, dict) and isinstance(xml.get("name"), str):
        return str(xml["name"])
    return reference.rsplit("/", 1)[-1] if isinstance(reference, str) else "root"
