"""OpenAPI documents: fetched, parsed and analyzed into endpoints with sample values."""

from opsplane_server.loadtesting.openapi.analysis import analyze
from opsplane_server.loadtesting.openapi.analyzer import AnalysisLimits, SpecAnalyzer
from opsplane_server.loadtesting.openapi.fetching import FetchedDocument, FetchLimits, SpecFetcher

__all__ = ["AnalysisLimits", "FetchLimits", "FetchedDocument", "SpecAnalyzer", "SpecFetcher", "analyze"]
