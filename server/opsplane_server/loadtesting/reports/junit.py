"""A report as JUnit XML, for CI: a test case for the run itself, one for each target, one for each figure compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from xml.etree import ElementTree

from opsplane_server.loadtesting.comparison.figures import Change, FigureChange
from opsplane_server.loadtesting.metrics.results import Verdict
from opsplane_server.loadtesting.model import RunState
from opsplane_server.loadtesting.reports.content import Content

# XML 1.0 cannot hold these, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(content: Content) -> str:
    """The whole file."""
    run = content.run
    suites = ElementTree.Element("testsuites", name=_clean(run.title))
    suite = _suite(suites, run.name, content.results.duration.total_seconds())
    case = _case(suite, run.name, "run")
    if run.state is not RunState.COMPLETED or run.verdict is Verdict.INVALID:
        _problem(case, "error", run.failure_reason or run.verdict or run.state, _why(content))
    for target in content.targets:
        case = _case(suite, run.name, target.words)
        if target.missed is not None:
            words = f"{target.words}: measured {target.missed.actual:.6g}"
            _problem(case, "failure", "TARGET_MISSED", words)
    _count(suite)
    if content.comparison is not None:
        suite = _suite(suites, f"{run.name} against {content.baseline}", 0.0)
        for figure in content.comparison.figures:
            _compared(suite, run.name, figure)
        _count(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _compared(suite: ElementTree.Element, run: str, figure: FigureChange) -> None:
    case = _case(suite, run, f"{figure.figure} of {figure.series or 'the whole run'}")
    words = f"{figure.baseline:.6g} became {figure.value:.6g}"
    if isfinite(figure.ratio):
        words += f" ({figure.ratio:+.1%})"
    if figure.change is Change.WORSE:
        _problem(case, "failure", "WORSE", words)
    elif figure.change is Change.UNSPECIFIED:
        ElementTree.SubElement(case, "skipped", message="too little data")


def _why(content: Content) -> str:
    run = content.run
    reasons: Sequence[str] = [run.failure_message, *run.notes, content.results.incomplete_reason]
    return "; ".join(reason for reason in reasons if reason) or f"the run is {run.state.value}"


def _suite(parent: ElementTree.Element, name: str, seconds: float) -> ElementTree.Element:
    return ElementTree.SubElement(parent, "testsuite", name=_clean(name), time=f"{seconds:.3f}")


def _case(suite: ElementTree.Element, run: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_clean(run.replace("/", ".")), name=_clean(name))


def _problem(case: ElementTree.Element, tag: str, kind: str, message: str) -> None:
    ElementTree.SubElement(case, tag, type=_clean(str(kind)), message=_clean(message)).text = _clean(message)


def _count(suite: ElementTree.Element) -> None:
    suite.set("tests", str(len(suite)))
    for tag, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f"testcase/{tag}"))))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
