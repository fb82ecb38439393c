"""Every example of docs/seed-calls is a request that the API knows and takes."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from protovalidate import Validator

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "seed-calls"
SERVICES = {
    "loadtesting": "loadtesting",
    "instances": "instances",
    "backups": "backups",
    "logingest": "logingest",
    "ftptransfer": "ftptransfer",
    "common": "platform",
}

_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"grpcurl -plaintext -d '(?P<json>[^']*)' 127\.0\.0\.1:50051 (?P<service>[\w.]+)/(?P<method>\w+)\n")


class Example(NamedTuple):
    place: str
    text: str


def examples() -> Iterator[Example]:
    for page in sorted(FOLDER.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for block in _BLOCK.finditer(text):
            line = text.count("\n", 0, block.start()) + 1
            yield Example(f"{page.name}:{line}", block[1])


@pytest.fixture(scope="module")
def validator() -> Validator:
    for package, module in SERVICES.items():
        importlib.import_module(f"opsplane.{package}.v1.{module}_pb2")
    return Validator()


def request_of(example: Example) -> Message:
    found = _CALL.fullmatch(example.text)
    assert found, f"not of the form of the other examples: {example.text}"
    service: Any = descriptor_pool.Default().FindServiceByName(found["service"])
    assert found["method"] in service.methods_by_name, f"{found['service']} has no {found['method']}"
    method = service.methods_by_name[found["method"]]
    return json_format.Parse(found["json"], message_factory.GetMessageClass(method.input_type)())


@pytest.mark.parametrize("example", [pytest.param(example, id=example.place) for example in examples()])
def test_example_is_a_valid_request(example: Example, validator: Validator) -> None:
    violations = validator.collect_violations(request_of(example))
    assert [violation.proto.message for violation in violations] == []


def test_there_are_examples_of_every_page() -> None:
    pages = {page.name for page in FOLDER.glob("*.md")}
    assert {example.place.partition(":")[0] for example in examples()} == pages
    assert {"metric-vault.md", "panacea-locust.md"} <= pages
