"""The environment of k6.

It begins empty: what happens to be set where the server runs, proxies for example, must not decide how a load test
goes, and is none of a user's script's business, which sees all of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import quote

from opsplane_server.loadtesting.metrics.otlp import INSTANCE_ATTRIBUTE
from opsplane_server.loadtesting.runners.port import Exporter

# Where temporary files, libraries and the system's certificates are.
_INHERITED = ("LD_LIBRARY_PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "TZ")

# Each tag costs time for every sample; figures are told apart by these two. Thresholds of a script may use others.
_TAGS = "name,scenario"
_TAGS_OF_THRESHOLDS = "name,scenario,method,status,group,check,error_code,expected_response"


def k6_environment(
    exporter: Exporter, *, instance: str, home: str, thresholds: bool, script: Mapping[str, str]
) -> dict[str, str]:
    """All environment variables of a k6 that sends its metrics to `exporter`, with what its script reads in `script`.

    `home` is its home folder, where it looks for settings.
    """
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    environment |= script
    environment |= {
        "HOME": home,
        # Less garbage collection: more rate than the metrics cost, for a quarter more memory.
        "GOGC": "400",
        "K6_NO_USAGE_REPORT": "true",
        # Scripts must not make k6 download another k6.
        "K6_BINARY_PROVISIONING": "false",
        "K6_AUTO_EXTENSION_RESOLUTION": "false",
        "K6_SYSTEM_TAGS": _TAGS_OF_THRESHOLDS if thresholds else _TAGS,
        "K6_OTEL_GRPC_EXPORTER_ENDPOINT": exporter.endpoint,
        "K6_OTEL_GRPC_EXPORTER_INSECURE": "false" if exporter.tls else "true",
        # Both parts are percent-decoded; a comma would begin the next header.
        "K6_OTEL_HEADERS": f"authorization={quote(f'Bearer {exporter.token}', safe='')}",
        "K6_OTEL_EXPORT_INTERVAL": "1s",
        # What was measured since the last flush is lost when k6 is killed.
        "K6_OTEL_FLUSH_INTERVAL": "200ms",
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
        "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "base2_exponential_bucket_histogram",
        # Retries included, the first after 2.5 to 7.5 s: a server that comes back within this time has lost nothing,
        # unless k6 ends while it waits to try again.
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "25000",
        "OTEL_RESOURCE_ATTRIBUTES": f"{INSTANCE_ATTRIBUTE}={quote(instance, safe='')}",
    }
    if exporter.certificate is not None:
        environment["K6_OTEL_TLS_CERTIFICATE"] = str(exporter.certificate)
    return environment
