"""The screenshot of the HTML report in these pages, as headless Chromium shows it.

    python docs/screenshots.py

It writes the report of committed results into a temporary folder and photographs it into
docs/screenshots/. Needs Chromium on the path; nothing is fetched.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from girsanov.scoreboard.report import report
from girsanov.scoreboard.storage import archive

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "digits"
FOLDER = ROOT / "docs" / "screenshots"


def photograph(url: str, to: Path, wait: float, size: str = "1400,900") -> None:
    """What Chromium shows of a page after ``wait`` seconds of its own time."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        raise SystemExit("chromium must be on the path")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--run-all-compositor-stages-before-draw"]
        command += [f"--user-data-dir={profile}", f"--window-size={size}", f"--screenshot={to}"]
        command += [f"--virtual-time-budget={int(1000 * wait)}", url]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=600)


def main() -> None:
    """Write the report, and photograph it."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        shutil.copy(RESULTS / archive.FILE, out)
        page = report(out, refine=False).with_suffix(".html")
        photograph(page.as_uri(), FOLDER / "report.png", 5, "1400,1600")


if __name__ == "__main__":
    main()
