"""Parameters of operations, of OpenAPI 2.0 and 3.x."""

from __future__ import annotations

from pydantic import JsonValue

from opsplane_server.loadtesting.definitions import Parameter, ParameterLocation, ParameterStyle
from opsplane_server.loadtesting.openapi.loading import BrokenDocument
from opsplane_server.loadtesting.openapi.references import Node, References
from opsplane_server.loadtesting.openapi.samples import Samples, clean_text

# Headers that follow from the body and the credentials of a call, whatever a document says of them.
_OWN_HEADERS = frozenset({"accept", "content-type", "authorization"})

_COLLECTION_FORMATS = {
    "csv": (ParameterStyle.FORM, False),
    "ssv": (ParameterStyle.SPACE_DELIMITED, False),
    "tsv": (ParameterStyle.TAB_DELIMITED, False),
    "pipes": (ParameterStyle.PIPE_DELIMITED, False),
    "multi": (ParameterStyle.FORM, True),
}
_STYLES = frozenset(style.value for style in ParameterStyle)
_SERIALIZED = frozenset({"style", "explode", "collectionFormat", "content"})


def collect(references: References, *lists: Node) -> dict[tuple[str, str], Node]:
    """The parameters of a path and an operation, resolved, by (location, name); later lists win.

    Raises BrokenDocument for one without a name or a known location.
    """
    found: dict[tuple[str, str], Node] = {}
    for parameters in lists:
        for element in parameters.elements("parameters"):
            node = references.follow(element)
            if not isinstance(node.value, dict):
                raise BrokenDocument(node.place, "a parameter must be an object")
            if not node.value:
                continue  # stands for a document that is still to be fetched
            name, location = node.value.get("name"), node.value.get("in")
            if not isinstance(name, str) or not name:
                raise BrokenDocument(node.child("name").place, "a parameter needs a name")
            if location not in ("path", "query", "header", "cookie", "body", "formData"):
                raise BrokenDocument(node.child("in").place, f"a parameter cannot be in {location!r}")
            found[(location, name)] = node
    return found


class Parameters:
    """Turns the parameters of a document into the domain's."""

    def __init__(self, references: References, samples: Samples, *, swagger2: bool) -> None:
        self._references = references
        self._samples = samples
        self._swagger2 = swagger2

    def convert(self, location: str, name: str, node: Node) -> Parameter | None:
        """The parameter; None where it is not ours to send (Accept, Content-Type, Authorization)."""
        place = ParameterLocation(location)
        if place is ParameterLocation.HEADER and name.lower() in _OWN_HEADERS:
            return None
        style, explode = self._style(place, node)
        sample = self.sample(node)
        if sample is None and place is ParameterLocation.PATH:
            sample = "1"
        description = node.value.get("description")
        return Parameter(
            location=place,
            name=clean_text(name),
            required=node.value.get("required") is True or place is ParameterLocation.PATH,
            sample=sample,
            style=style,
            explode=explode,
            description=clean_text(description)[:2000] if isinstance(description, str) else "",
        )

    def sample(self, node: Node) -> JsonValue:
        """The value to send for a parameter, or for a form field of OpenAPI 2.0."""
        if self._swagger2:
            # A parameter of 2.0 is its own schema, in which `required` and `in` mean other things.
            schema = {key: value for key, value in node.value.items() if key not in ("name", "in", "required")}
            return self._samples.of(Node(schema, node.document, node.pointer))
        holder = node
        for _, media in node.child("content").entries("content"):
            holder = self._references.follow(media)
            break
        return self.media_sample(holder if isinstance(holder.value, dict) else node)

    def media_sample(self, node: Node) -> JsonValue:
        """The sample of whatever has `example`, `examples` and `schema` (a 3.x parameter or media type)."""
        if node.child("example").value is not None:
            return self._samples.example(node.child("example"))
        if isinstance(node.value.get("examples"), dict):
            for _, example in node.child("examples").entries("examples"):
                target = self._references.follow(example).child("value")
                if target.value is not None:
                    return self._samples.example(target)
        schema = node.child("schema")
        return self._samples.of(schema) if schema.value is not None else None

    def _style(self, location: ParameterLocation, node: Node) -> tuple[ParameterStyle, bool]:
        usual = location in (ParameterLocation.QUERY, ParameterLocation.COOKIE)
        given = {key: node.value[key] for key in _SERIALIZED if key in node.value}
        if self._swagger2:
            style, explode = _COLLECTION_FORMATS.get(str(given.get("collectionFormat")), (ParameterStyle.FORM, False))
            return (style, explode) if usual or style is not ParameterStyle.FORM else (ParameterStyle.SIMPLE, False)
        if isinstance(given.get("content"), dict):
            return ParameterStyle.JSON, False
        style = ParameterStyle.FORM if usual else ParameterStyle.SIMPLE
        if given.get("style") in _STYLES:
            style = ParameterStyle(given["style"])
        said = given.get("explode")
        return style, said if isinstance(said, bool) else style is ParameterStyle.FORM
