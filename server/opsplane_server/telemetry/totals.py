"""The metrics of several processes as those of one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_CUMULATIVE = frozenset({"counter", "histogram", "summary"})

_Key = tuple[str, tuple[tuple[str, str], ...]]  # a sample's name and labels


@dataclass(slots=True)
class _Family:
    documentation: str
    type: str
    unit: str
    values: dict[_Key, float] = field(default_factory=dict)

    def add(self, values: Iterable[tuple[_Key, float]]) -> None:
        for key, value in values:
            self.values[key] = self.values.get(key, 0.0) + value


_Families = dict[str, _Family]


class Totals:
    """Adds up what processes tell in the text format of Prometheus.

    What a process has counted stays in the sum when it has ended, as it was told last, so that no total ever falls.
    Its gauges go with it.
    """

    def __init__(self) -> None:
        self._ended: _Families = {}
        self._living: dict[Hashable, _Families] = {}

    def update(self, process: Hashable, text: str) -> None:
        """Replaces what is known of a process. ValueError if the text is malformed."""
        self._living[process] = _parse(text)

    def retire(self, process: Hashable) -> None:
        """Notes that a process has ended."""
        last = self._living.pop(process, {})
        _add(self._ended, {name: family for name, family in last.items() if family.type in _CUMULATIVE})

    def render(self, own: Iterable[Metric] = ()) -> bytes:
        """The sum, after metrics of this process itself, as text."""
        total: _Families = {}
        for families in (self._ended, *self._living.values()):
            _add(total, families)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Rendered([*own, *_metrics(total)]))
        return generate_latest(registry)


class _Rendered(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _parse(text: str) -> _Families:
    families: _Families = {}
    for metric in text_string_to_metric_families(text):
        family = families.setdefault(metric.name, _Family(metric.documentation, metric.type, metric.unit))
        family.add(((sample.name, tuple(sample.labels.items())), sample.value) for sample in metric.samples)
    return families


def _add(total: _Families, families: _Families) -> None:
    for name, family in families.items():
        into = total.setdefault(name, _Family(family.documentation, family.type, family.unit))
        into.add(family.values.items())


def _metrics(families: _Families) -> Iterator[Metric]:
    for name, family in families.items():
        metric = Metric(name, family.documentation, family.type, family.unit)
        for (sample, labels), value in family.values.items():
            metric.add_sample(sample, dict(labels), value)
        yield metric
