"""Documents of every version of OpenAPI to endpoints, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opsplane_server.errors import InvalidArgument
from opsplane_server.loadtesting.definitions import (
    AnalyzedSpec,
    Endpoint,
    Parameter,
    ParameterLocation,
    ParameterStyle,
    RequestBody,
    SecurityScheme,
    Tag,
)
from opsplane_server.loadtesting.openapi.analysis import MAX_ENDPOINTS, MissingDocuments, analyze
from pydantic import TypeAdapter

V3 = """
openapi: 3.0.3
info: {title: Petstore, version: 1.10, description: Pets}
servers:
  - url: https://{region}.example.com/{base}/
    variables:
      region: {default: eu, enum: [eu, us]}
      base: {default: v1}
  - url: /relative
tags:
  - {name: pets, description: All about pets}
security:
  - key: []
paths:
  x-internal: {anything: goes}
  /pets/{petId}:
    summary: ignored
    parameters:
      - $ref: '#/components/parameters/PetId'
      - {name: trace, in: header, required: false, schema: {type: string}}
    get:
      operationId: getPet
      summary: One pet
      description: All of it
      tags: [pets, animals, pets]
      deprecated: true
      security: []
      parameters:
        - {name: trace, in: header, required: true, example: abc}
        - {name: Accept, in: header, schema: {type: string}}
        - {name: fields, in: query, style: pipeDelimited, explode: false, schema: {type: array, items: {type: string}}}
        - {name: filter, in: query, content: {application/json: {schema: {type: object, example: {a: 1}}}}}
      responses:
        200: {description: ok, content: {application/json: {schema: {$ref: '#/nowhere'}}}}
        304: {description: same}
        404: {description: none}
        default: {description: else}
    put:
      servers: [{url: 'https://write.example.com'}]
      security: [{key: [], token: [write]}, {token: []}]
      requestBody: {$ref: '#/components/requestBodies/Pet'}
      responses: {2XX: {description: ok}, 201: {description: ok}}
  /pets:
    $ref: '#/x-paths/pets'
x-paths:
  pets:
    post:
      requestBody:
        content:
          text/plain: {schema: {type: string}}
          application/vnd.pet+json: {example: {name: Rex}}
components:
  parameters:
    PetId: {name: petId, in: path, required: true, schema: {type: integer, minimum: 7}}
  requestBodies:
    Pet:
      required: true
      content:
        application/xml: {schema: {type: string}}
        application/json: {schema: {$ref: '#/components/schemas/Pet'}}
  schemas:
    Pet:
      required: [name]
      properties:
        name: {type: string}
        parent: {$ref: '#/components/schemas/Pet'}
  securitySchemes:
    key: {type: apiKey, in: header, name: X-Key}
    token: {type: http, scheme: Bearer}
"""


def endpoints(text: str, **options: Any) -> dict[str, Endpoint]:
    return {endpoint.label: endpoint for endpoint in analyze(text, **options).endpoints}


def document(paths: Any, **rest: Any) -> str:
    info = {"title": "t", "version": "1"}
    return json.dumps({"openapi": "3.1.0", "info": info, "paths": paths, **rest})


def test_a_document_of_version_3() -> None:
    analyzed = analyze(V3, source_url="https://docs.example.com/a/openapi.yaml")
    about = analyzed.specification
    assert (about.title, about.version, about.description) == ("Petstore", "1.10", "Pets")
    assert (about.openapi_version, about.size_bytes) == ("3.0.3", len(V3))
    assert about.servers == ("https://eu.example.com/v1", "https://docs.example.com/relative")
    assert about.base_url == "https://eu.example.com/v1"
    assert about.tags == (Tag("pets", "All about pets"), Tag("animals"))
    assert about.security_schemes == (
        SecurityScheme("key", "apiKey", "header", "X-Key"),
        SecurityScheme("token", "http", "bearer"),
    )
    assert about.warnings == ()
    assert [endpoint.label for endpoint in analyzed.endpoints] == [
        "GET /pets/{petId}",
        "PUT /pets/{petId}",
        "POST /pets",
    ]
    get, put, post = analyzed.endpoints
    assert (get.operation_id, get.summary, get.description) == ("getPet", "One pet", "All of it")
    assert (get.tags, get.deprecated, get.security, get.body) == (("pets", "animals"), True, (), None)
    assert get.success_statuses == (200, 304)
    assert get.parameters == (
        Parameter(ParameterLocation.PATH, "petId", True, 7, ParameterStyle.SIMPLE, False),
        Parameter(ParameterLocation.HEADER, "trace", True, "abc", ParameterStyle.SIMPLE, False),
        Parameter(ParameterLocation.QUERY, "fields", False, ["string"], ParameterStyle.PIPE_DELIMITED, False),
        Parameter(ParameterLocation.QUERY, "filter", False, {"a": 1}, ParameterStyle.JSON, False),
    )
    assert put.body == RequestBody("application/json", True, '{"name": "string"}')
    assert (put.server_url, put.security) == ("https://write.example.com", ("key", "token"))
    assert put.success_statuses == ()
    assert post.body == RequestBody("application/vnd.pet+json", False, '{"name": "Rex"}')
    assert post.security == ("key",)


def test_a_document_of_version_2() -> None:
    text = """
swagger: "2.0"
info: {title: Old, version: v1}
host: api.example.com
basePath: /v2
schemes: [http, https, wss]
consumes: [application/json]
securityDefinitions:
  basic: {type: basic}
  oauth: {type: oauth2, flow: implicit}
paths:
  /a/{id}:
    post:
      tags: [a]
      parameters:
        - {in: path, name: id, required: true, type: string, format: uuid}
        - {in: query, name: many, type: array, items: {type: integer}, collectionFormat: multi}
        - {in: query, name: csv, type: array, items: {type: integer}}
        - {in: query, name: page, type: integer, default: 3, required: true}
        - {in: body, name: body, required: true, schema: {$ref: '#/definitions/A'}}
      responses: {"200": {description: ok}}
  /upload:
    post:
      consumes: [multipart/form-data]
      parameters:
        - {in: formData, name: file, type: file, required: true}
        - {in: formData, name: note, type: string}
      responses: {}
  /form:
    post:
      parameters:
        - {in: formData, name: a b, type: string, default: "x&y"}
      responses: {}
definitions:
  A: {type: object, properties: {n: {type: number}}}
"""
    analyzed = analyze(text)
    about = analyzed.specification
    assert about.servers == ("https://api.example.com/v2", "http://api.example.com/v2")
    assert about.security_schemes == (SecurityScheme("basic", "http", "basic"), SecurityScheme("oauth", "oauth2"))
    post, upload, form = analyzed.endpoints
    assert [(p.name, p.sample, p.style, p.explode) for p in post.parameters] == [
        ("id", "3fa85f64-5717-4562-b3fc-2c963f66afa6", ParameterStyle.SIMPLE, False),
        ("many", [1], ParameterStyle.FORM, True),
        ("csv", [1], ParameterStyle.FORM, False),
        ("page", 3, ParameterStyle.FORM, False),
    ]
    assert post.body == RequestBody("application/json", True, '{"n": 1}')
    assert upload.body is not None
    kind, _, boundary = upload.body.content_type.partition("; boundary=")
    assert kind == "multipart/form-data"
    assert upload.body.sample.split("\r\n") == [
        f"--{boundary}",
        'Content-Disposition: form-data; name="file"; filename="file.bin"',
        "Content-Type: application/octet-stream",
        "",
        "sample",
        f"--{boundary}",
        'Content-Disposition: form-data; name="note"',
        "",
        "string",
        f"--{boundary}--",
        "",
    ]
    assert form.body == RequestBody("application/x-www-form-urlencoded", False, "a+b=x%26y")


def test_version_2_without_host_is_where_the_document_came_from() -> None:
    text = '{"swagger": "2.0", "basePath": "/b", "paths": {}}'
    assert (
        analyze(text, source_url="http://127.0.0.1:8080/swagger.json").specification.base_url
        == "http://127.0.0.1:8080/b"
    )
    assert analyze(text).specification.base_url == ""


def test_version_3_1() -> None:
    text = document(
        {"/a": {"post": {"requestBody": {"content": {"*/*": {"schema": {"$ref": "#/$defs/A"}}}}}}},
        **{
            "$defs": {
                "A": {"type": ["null", "object"], "properties": {"c": {"const": 5}, "n": {"exclusiveMinimum": 2}}}
            }
        },
    )
    (endpoint,) = analyze(text, source_url="https://example.com/d/o.json").endpoints
    assert endpoint.body == RequestBody("application/json", False, '{"c": 5, "n": "string"}')
    no_paths = '{"openapi": "3.1.0", "webhooks": {}}'
    assert analyze(no_paths).endpoints == ()


def test_an_undeclared_path_parameter_gets_a_value_and_a_warning() -> None:
    analyzed = analyze(document({"/a/{x}/{y}": {"get": {"parameters": [{"name": "y", "in": "path"}]}}}))
    assert [(p.name, p.sample) for p in analyzed.endpoints[0].parameters] == [("x", "1"), ("y", "1")]
    assert analyzed.specification.warnings == ("#/paths/~1a~1{x}~1{y}/get: the path parameter 'x' is not declared",)


def test_what_does_not_matter_does_no_harm() -> None:
    analyzed = analyze(
        document(
            {
                "/a": {
                    "x-y": 1,
                    "get": {
                        "parameters": None,
                        "tags": [7],
                        "callbacks": 5,
                        "responses": {"200": {"$ref": "other.yaml#/nowhere"}, "abc": 1},
                        "externalDocs": "?",
                    },
                    "description": [],
                    "post": {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/gone"}}}}},
                }
            },
            components=[],
        )
    )
    get, post = analyzed.endpoints
    assert (get.tags, get.success_statuses) == (("7",), (200,))
    assert post.body == RequestBody("application/json", False, "")
    assert any("'#/gone' leads to nothing" in warning for warning in analyzed.specification.warnings)


def test_text_that_cannot_be_stored_is_made_storable() -> None:
    text = document(
        {
            "/a": {
                "get": {
                    "summary": "a\0b\ud800c",
                    "parameters": [{"name": "q", "in": "query", "example": "\0\udfff"}],
                }
            }
        }
    )
    (endpoint,) = analyze(text).endpoints
    assert endpoint.summary == "ab?c"
    assert endpoint.parameters[0].sample == "?"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "#: an OpenAPI document is an object, not an array"),
        ("just text", "#: an OpenAPI document is an object, not a string"),
        ("{}", "#: neither `openapi` nor `swagger`"),
        ("swagger: 1.2\npaths: {}", "#/swagger: version '1.2' is not supported"),
        ("openapi: 4.0.0\npaths: {}", "#/openapi: version '4.0.0' is not supported"),
        ("openapi: 3.0.0", "#: the document has no `paths`"),
        ("openapi: 3.0.0\ninfo: x\npaths: {}", "#/info: info must be an object"),
        ("openapi: 3.0.0\npaths: []", "#/paths: paths must be an object, not an array"),
        ("openapi: 3.0.0\npaths: {a: {}}", "#/paths/a: a path must start with /"),
        ("openapi: 3.0.0\npaths: {/a: 1}", "#/paths/~1a: a path must be an object, not a number"),
        ("openapi: 3.0.0\npaths: {/a: {get: x}}", "#/paths/~1a/get: an operation must be an object"),
        (
            "openapi: 3.0.0\npaths: {/a~b: {get: {parameters: {}}}}",
            "#/paths/~1a~0b/get/parameters: parameters must be an array",
        ),
        (
            "openapi: 3.0.0\npaths: {/a: {get: {parameters: [{in: query}]}}}",
            "#/paths/~1a/get/parameters/0/name: a parameter needs a name",
        ),
        (
            "openapi: 3.0.0\npaths: {/a: {get: {parameters: [{name: a, in: url}]}}}",
            "#/paths/~1a/get/parameters/0/in: a parameter cannot be in 'url'",
        ),
        (
            "openapi: 3.0.0\npaths: {/a: {get: {parameters: [{$ref: '#/x'}]}}}",
            "#/paths/~1a/get/parameters/0: the $ref '#/x' leads to nothing",
        ),
        ("openapi: 3.0.0\npaths: {/a: {$ref: '#/paths/~1a'}}", "#/paths/~1a: the $ref leads back to itself"),
        ("openapi: 3.0.0\npaths: {/a: {$ref: 'b.yaml'}}", "#/paths/~1a: the $ref leads to another document, 'b.yaml'"),
        (
            "openapi: 3.0.0\npaths: {/a: {post: {requestBody: {content: []}}}}",
            "#/paths/~1a/post/requestBody/content: content must be an object",
        ),
        ("openapi: 3.0.0\nservers: [{}]\npaths: {}", "#/servers/0: a server needs a url"),
        ("openapi: 3.0.0\npaths:\n  /a: [", "line 4, column 1: invalid YAML"),
    ],
)
def test_a_broken_document_is_refused_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        analyze(text)
    (violation,) = caught.value.violations
    assert violation.field == "content"
    assert problem in violation.description
    assert caught.value.reason == "SPEC_BROKEN"


def test_the_field_is_the_url_when_the_document_was_fetched() -> None:
    with pytest.raises(InvalidArgument) as caught:
        analyze("{}", source_url="https://example.com/o.json")
    assert caught.value.violations[0].field == "openapi_url"


def test_too_many_operations_are_refused() -> None:
    paths: dict[str, Any] = {f"/{n}": {"get": {}} for n in range(MAX_ENDPOINTS + 1)}
    with pytest.raises(InvalidArgument, match=f"more than {MAX_ENDPOINTS} operations"):
        analyze(document(paths))


class TestOtherDocuments:
    SOURCE = "https://example.com/api/openapi.yaml"
    TEXT = """
openapi: 3.0.0
paths:
  /a: {$ref: 'paths/a.yaml'}
  /b:
    get: {parameters: [{$ref: 'https://other.example.com/p.json#/P'}]}
"""
    A = "post: {requestBody: {content: {application/json: {schema: {$ref: '../schemas.yaml#/A'}}}}}"
    P = '{"P": {"name": "p", "in": "query", "required": true, "example": {"$ref": "not a reference"}}}'
    SCHEMAS = "A: {type: object, properties: {b: {$ref: '#/B'}, self: {$ref: 'openapi.yaml#/x-c'}}}\nB: {enum: [b]}"

    def test_are_asked_for_until_they_are_there(self) -> None:
        documents: dict[str, str] = {}
        with pytest.raises(MissingDocuments) as first:
            analyze(self.TEXT, source_url=self.SOURCE, documents=documents)
        assert first.value.urls == {"https://example.com/api/paths/a.yaml", "https://other.example.com/p.json"}
        documents["https://example.com/api/paths/a.yaml"] = self.A
        documents["https://other.example.com/p.json"] = self.P
        with pytest.raises(MissingDocuments) as second:
            analyze(self.TEXT, source_url=self.SOURCE, documents=documents)
        assert second.value.urls == {"https://example.com/api/schemas.yaml"}
        documents["https://example.com/api/schemas.yaml"] = self.SCHEMAS
        text = self.TEXT + "x-c: {default: c}\n"
        found = endpoints(text, source_url=self.SOURCE, documents=documents)
        body = found["POST /a"].body
        assert body is not None
        assert json.loads(body.sample) == {"b": "b", "self": "c"}
        assert found["GET /b"].parameters[0].name == "p"

    def test_that_are_broken_are_named(self) -> None:
        documents = {"https://example.com/api/paths/a.yaml": "[1,"}
        with pytest.raises(InvalidArgument, match=r"https://example.com/api/paths/a.yaml: line 1, column 4"):
            analyze(self.TEXT, source_url=self.SOURCE, documents=documents)

    def test_that_cannot_be_had_are_an_error_only_where_they_matter(self) -> None:
        unavailable = {"https://example.com/api/schemas.yaml": "answered 404"}
        documents = {"https://example.com/api/paths/a.yaml": self.A, "https://other.example.com/p.json": self.P}
        analyzed = analyze(self.TEXT, source_url=self.SOURCE, documents=documents, unavailable=unavailable)
        assert any("answered 404" in warning for warning in analyzed.specification.warnings)
        unavailable = {"https://example.com/api/paths/a.yaml": "answered 404"}
        with pytest.raises(InvalidArgument, match="cannot be had: answered 404"):
            analyze(self.TEXT, source_url=self.SOURCE, unavailable=unavailable)


def test_the_result_survives_storage_as_json() -> None:
    adapter = TypeAdapter(AnalyzedSpec)
    analyzed = analyze(V3, source_url="https://docs.example.com/a/openapi.yaml")
    assert adapter.validate_json(adapter.dump_json(analyzed)) == analyzed
