"""Sphinx: ``python docs/serve.py`` builds the site and serves it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))  # pages that run code find docs/ nowhere else

import girsanov  # noqa: E402

project = "girsanov"
author = "girsanov contributors"
copyright = "girsanov contributors, MIT licence"
release = version = girsanov.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "girsanov"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["style"]
html_css_files = ["girsanov.css"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",  # reports are included below a page's title
    "misc.copy_overwrite",
]

# Pages with a Jupytext header are run when the site is built; what did not change is kept. Their
# figures go into the page, whatever the shell asks of matplotlib.
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
nb_execution_mode = "cache"
nb_execution_timeout = 900  # a busy machine takes its time
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars
nb_render_markdown_format = "myst"  # tables

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

linkcheck_timeout = 20  # only by hand: python docs/serve.py --check-links


def _plain(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
    """Docstrings write ``|a|`` and ``*args`` as is; to reStructuredText both are marks."""
    for i, line in enumerate(lines):
        parts = re.split(r"(``.*?``|:\w+:`.*?`)", line)
        marks = re.compile(r"(?<!\\)(\||(?<=[\s(])\*(?=\w))")
        parts[::2] = [marks.sub(r"\\\1", part) for part in parts[::2]]
        lines[i] = "".join(parts)


def setup(app):  # type: ignore[no-untyped-def]
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _plain)
