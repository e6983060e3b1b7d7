"""Build the site and serve it: ``python docs/serve.py``, then http://127.0.0.1:8000.

It is built again whenever a page changes. ``--build`` builds it once, with warnings as errors, as
CI does. ``--check-links`` asks every outside link, which needs a network.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
SITE = DOCS / "_build" / "html"


def main() -> int:
    """Parse the command line and run Sphinx."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", action="store_true", help="build once; a warning is an error")
    parser.add_argument("--check-links", action="store_true", help="ask every outside link")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    if given.check_links:
        command = ["sphinx", "-q", "-b", "linkcheck", str(DOCS), str(DOCS / "_build" / "links")]
    elif given.build:
        command = ["sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(SITE)]
    else:
        # what the build itself writes must not start the next one
        ignored = ["--ignore", str(DOCS / "_build" / "**")]
        command = ["sphinx_autobuild", *ignored, "--port", str(given.port), str(DOCS), str(SITE)]
    return subprocess.run([sys.executable, "-m", *command], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
