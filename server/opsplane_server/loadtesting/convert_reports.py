"""proto <-> domain: comparisons."""

from __future__ import annotations

from collections.abc import Iterable

from opsplane.loadtesting.v1 import metrics_pb2, reports_pb2

from opsplane_server.loadtesting.comparison.comparing import DEFAULT_TOLERANCE, Comparison, RunComparison
from opsplane_server.loadtesting.comparison.figures import Change, FigureChange, Tolerance

CHANGES = {change: reports_pb2.Change.Value(f"CHANGE_{change.value}") for change in Change}


def tolerances_from_proto(request: reports_pb2.CompareRunsRequest) -> list[Tolerance]:
    """The tolerance of all figures, and then those of single ones."""
    return [
        Tolerance(request.tolerance_ratio or DEFAULT_TOLERANCE),
        *(Tolerance(one.ratio, one.figure, one.series) for one in request.tolerances),
    ]


def comparison_to_proto(comparison: Comparison) -> reports_pb2.CompareRunsResponse:
    """Runs against a baseline."""
    return reports_pb2.CompareRunsResponse(
        baseline=comparison.baseline, comparisons=[run_comparison_to_proto(one) for one in comparison.comparisons]
    )


def run_comparison_to_proto(comparison: RunComparison) -> reports_pb2.RunComparison:
    """One run against a baseline."""
    return reports_pb2.RunComparison(
        run=comparison.run,
        change=CHANGES[comparison.change],
        figures=_figures(comparison.figures),
        notes=comparison.notes,
    )


def _figures(figures: Iterable[FigureChange]) -> list[reports_pb2.FigureChange]:
    return [
        reports_pb2.FigureChange(
            series=figure.series,
            figure=figure.figure,
            baseline_value=figure.baseline,
            value=figure.value,
            change_ratio=figure.ratio,
            confidence=metrics_pb2.Range(min=figure.bounds[0], avg=figure.ratio, max=figure.bounds[1])
            if figure.bounds
            else None,
            change=CHANGES[figure.change],
        )
        for figure in figures
    ]
