"""What this provider makes of settings that are meant for a cluster."""

from __future__ import annotations

from collections.abc import Iterator

from opsplane_server.instances.model import InstanceSpec, Notice


def notices(spec: InstanceSpec) -> Iterator[Notice]:
    """Of every engine."""
    yield Notice(
        "resources.memory_bytes",
        "not enforced by local: buffers and connections are derived from it",
    )
    yield Notice("resources.cpu_millis", "not enforced by local: the number of workers is derived from it")
    yield Notice("resources.storage_bytes", "watched by local, not enforced: servers share the disk of the machine")
    if spec.resources.memory_request_bytes != spec.resources.memory_bytes:
        yield Notice("resources.memory_request_bytes", "local sets no memory aside")
    if spec.resources.cpu_request_millis != spec.resources.cpu_millis:
        yield Notice("resources.cpu_request_millis", "local sets no processor time aside")
    if spec.placement is not None:
        for field in ("namespace", "storage_class", "zone_spread"):
            if getattr(spec.placement, field):
                yield Notice(f"placement.{field}", "local has no cluster: it is kept without effect")
