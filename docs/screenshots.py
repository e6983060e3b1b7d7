"""The screenshots of these pages: TensorBoard and the HTML report, as headless Chromium shows them.

    python docs/screenshots.py

It writes the report of committed results into a temporary folder, serves it, and photographs both
into docs/screenshots/. Needs Chromium on the path; nothing is fetched.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from girsanov.scoreboard.output.tensorboard import address, log_row, unit_of
from girsanov.scoreboard.report import report
from girsanov.scoreboard.spec import RunSpec, Spent
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


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tensorboard(out: Path, to: Path) -> None:
    """Serve ``out``, photograph the time series and the custom scalars."""
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(out), "--port", str(port)]
    command += ["--load_fast", "false"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://localhost:{port}/data/runs")
        photograph(address(port), to / "tensorboard.png", 60)
        photograph(f"{address(port)}#custom_scalars", to / "tensorboard_scores.png", 60)
    finally:
        server.terminate()
        server.wait()


def _wait(url: str, seconds: float = 900) -> None:
    end = time.time() + seconds
    while time.time() < end:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                if b"seed0" in answer.read():
                    return
        except OSError:
            pass
        time.sleep(1)
    raise SystemExit(f"TensorBoard did not answer at {url}")


def restored(out: Path) -> None:
    """The report of the committed runs, and the events of each, as the run had written them."""
    shutil.copy(RESULTS / archive.FILE, out)
    report(out, refine=False)
    for record in archive.finished(out):
        spec = RunSpec.from_json(record["spec"])
        with SummaryWriter(str(spec.folder(out))) as writer:
            for row in record["rows"]:
                spent = Spent(**{name: row.get(name, 0) for name in Spent._fields})
                log_row(writer, row, spent, unit_of(spec.budget), spent.seconds)


def main() -> None:
    """Make the files, and photograph them."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        restored(out)
        photograph((out / "report.html").as_uri(), FOLDER / "report.png", 5, "1400,1600")
        tensorboard(out, FOLDER)


if __name__ == "__main__":
    main()
