"""Looks at HTML reports in a real browser: `python scripts/report_pictures.py REPORT.html FOLDER`.

Chromium (Debian's package `chromium`) draws the report in light, in dark and on paper: FOLDER/light.png, dark.png and
paper.pdf. Ends with 1 when the browser complains of anything, or does not draw.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 120
# The numbers of blink's PreferredColorScheme.
PICTURES = {
    "light.png": ("--blink-settings=preferredColorScheme=1", "--screenshot={}"),
    "dark.png": ("--blink-settings=preferredColorScheme=0", "--screenshot={}"),
    "paper.pdf": ("--no-pdf-header-footer", "--print-to-pdf={}"),
}


def browser() -> str | None:
    """The path of Chromium; None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def draw(report: Path, folder: Path, *, width: int = 1400, height: int = 2100) -> list[str]:
    """Draws the pictures of a report; what the browser had to complain of."""
    program = browser()
    if program is None:
        return ["there is no Chromium on the PATH"]
    folder.mkdir(parents=True, exist_ok=True)
    complaints = []
    for name, options in PICTURES.items():
        target = (folder / name).absolute()
        with tempfile.TemporaryDirectory(prefix="opsplane-browser-") as profile:
            command = [
                program,
                "--headless",
                "--disable-gpu",
                "--hide-scrollbars",
                "--enable-logging=stderr",
                # The page is ours and comes from a file; containers often have no namespaces for the sandbox.
                "--no-sandbox",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                *(option.format(target) for option in options),
                report.absolute().as_uri(),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        complaints += [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        if done.returncode or not target.is_file() or not target.stat().st_size:
            complaints.append(f"{name} was not drawn: {done.stderr[-500:]}")
    return complaints


def main() -> int:
    """See the module."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    complaints = draw(Path(sys.argv[1]), Path(sys.argv[2]))
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
