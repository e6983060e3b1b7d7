"""The screenshots in these pages, as headless Chromium shows them: the HTML report, TensorBoard.

    python docs/screenshots.py [report] [tensorboard]

It writes the report of committed results into a temporary folder and photographs it, and what
TensorBoard makes of it, into docs/screenshots/. Needs Chromium on the path; nothing is fetched.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
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


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[int]:
    """TensorBoard on a folder; its port, once it has read the events."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = ["-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    words += ["--load_fast", "false", "--reload_interval", "5"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, *words], **quiet)  # type: ignore[call-overload]
    try:
        runs = b""
        while len(runs) < 10:  # of nothing: []
            time.sleep(1)
            with contextlib.suppress(OSError):
                runs = urllib.request.urlopen(f"http://localhost:{port}/data/runs").read()
        time.sleep(5)
        yield port
    finally:
        server.terminate()
        server.wait()


def main(wanted: list[str]) -> None:
    """Write the report, and photograph it, and what TensorBoard shows."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        shutil.copy(RESULTS / archive.FILE, out)
        html = report(out, refine=False).with_suffix(".html")
        if "report" in wanted:
            photograph(html.as_uri(), FOLDER / "report.png", 5, "1400,1600")
        if "tensorboard" in wanted:
            with tensorboard(out) as port:
                # the time series tab draws by WebGL, which a browser without a screen leaves empty
                page = f"http://localhost:{port}/#custom_scalars"
                photograph(page, FOLDER / "tensorboard_agents.png", 60, "1400,1000")


if __name__ == "__main__":
    main(sys.argv[1:] or ["report", "tensorboard"])
