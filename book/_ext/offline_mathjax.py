"""Sphinx extension: MathJax travels with the site, so that formulas show without a network."""

import shutil
from importlib.metadata import files
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# Colour, cancel and the other TeX packages are inside this one file; the loader fetches nothing more.
SCRIPT = "tex-svg.js"


def wheel_copy() -> Path:
    """Path of MathJax's script inside the installed wheel, whose folder name is not an importable one."""
    for file in files("sphinx-mathjax-offline") or []:
        if file.name == SCRIPT:
            return Path(str(file.locate()))
    raise ExtensionError(f"{SCRIPT} is not in the installed sphinx-mathjax-offline; run: rm -rf .venv && make book")


def copy_script(app: Sphinx, exception: Exception | None) -> None:
    """Put the script where every page's reference to it points."""
    if exception is None and app.builder.format == "html":
        target = Path(app.outdir) / "_static" / "mathjax" / SCRIPT
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(wheel_copy(), target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Point the pages at the local script and copy it when the build ends."""
    app.connect("config-inited", lambda app, config: setattr(config, "mathjax_path", f"mathjax/{SCRIPT}"))
    app.connect("build-finished", copy_script)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
