"""The page of a report in a real browser, where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from opsplane_server.loadtesting.reports.page import page

from scripts.report_pictures import PICTURES, browser, draw
from tests.unit.loadtesting.reports.contents import content


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="needs Chromium")
def test_a_browser_draws_the_page_and_has_nothing_to_complain_of(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(page(content(baseline=True)), encoding="utf-8")
    assert draw(report, tmp_path) == []
    drawn = {name: (tmp_path / name).read_bytes() for name in PICTURES}
    assert drawn["light.png"].startswith(b"\x89PNG")
    assert drawn["light.png"] != drawn["dark.png"]
    assert drawn["paper.pdf"].startswith(b"%PDF")


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="needs Chromium")
def test_what_a_browser_complains_of_is_told(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    whole = page(content())
    report.write_text(whole.replace("<main>", "<main><script>1</script>", 1), encoding="utf-8")
    assert any("Content Security Policy" in complaint for complaint in draw(report, tmp_path))
