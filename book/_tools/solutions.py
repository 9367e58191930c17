"""The assignments' solutions as pages, and the figures that students should get: `make assignments`.

The solved notebook is executed; its page shows the outputs, and each of its figures is a file, named after the question.
A page that was made of the same notebook is not made again. The pages need no network: pictures stand in them, and
MathJax lies beside them.
"""

import argparse
import base64
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import nbformat
from light_pages import MATHJAX_SETTINGS, copy_mathjax
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter
from run_chapters import BOOK, execute

from companion import grading
from companion._support import atomic, sha256

SETTINGS = {
    **MATHJAX_SETTINGS,
    "tex": {"inlineMath": [["$", "$"]]},
    "options": {"ignoreHtmlClass": "highlight|output"},
}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="made-of" content="{made_of}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
  body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif }}
  pre {{ padding: .6rem; overflow-x: auto; background: #f5f5f5; font-size: .85rem; line-height: 1.35 }}
  img {{ max-width: 100% }}
  table {{ border-collapse: collapse }} th, td {{ padding: .2rem .8rem; border-bottom: 1px solid #ccc }}
  .prompt, .anchor-link {{ display: none }}
  {colours}
</style>
<main>
{body}
</main>
<script>MathJax = {settings}</script>
<script src="mathjax/startup.js"></script>
</html>
"""


def figures(notebook: NotebookNode) -> dict[str, bytes]:
    """The PNG pictures of an executed solution, by names such as ``judge-1.png``: question and number."""
    found: dict[str, bytes] = {}
    shown: Counter[str] = Counter()
    for cell in notebook.cells:
        question = cell.metadata.get("companion", {}).get("answer", "given")
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture:
                shown[question] += 1
                name = f"{question}-{shown[question]}.png"
                found[name] = base64.b64decode(picture)
    return found


def page(notebook: NotebookNode, title: str, made_of: str) -> str:
    """An executed notebook as a page that names no other host."""
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    return PAGE.format(
        title=title,
        made_of=made_of,
        colours=HtmlFormatter().get_style_defs(".highlight"),
        body=body,
        settings=json.dumps(SETTINGS),
    )


def make(name: str, out: Path, force: bool) -> None:
    """Write the page and the figures of one assignment, and say where."""
    text = json.dumps(grading.load(name).solution)
    target, made_of = out / f"{name}-solution.html", sha256(text, Path(__file__))
    if not force and target.is_file() and made_of in target.read_text(encoding="utf-8"):
        print(f"{target}: up to date")
        return
    print(f"{target}: running the solution ...", flush=True)
    with tempfile.TemporaryDirectory() as place:
        notebook = execute(nbformat.reads(text, as_version=4), Path(place), "quick")
    folder = out / f"{name}-figures"
    shutil.rmtree(folder, ignore_errors=True)  # else a figure that is gone would stay
    for file, content in figures(notebook).items():
        with atomic(folder / file) as part:
            part.write_bytes(content)
    with atomic(target) as part:
        part.write_text(
            page(notebook, f"Solution of {name}", made_of), encoding="utf-8"
        )


def main() -> int:
    """Command line; the exit code is 1 when a solution fails."""
    parser = argparse.ArgumentParser(
        description="Make the solutions' pages and figures."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--out", type=Path, default=BOOK.parent / "dist/assignments")
    parser.add_argument("--force", action="store_true", help="also what is up to date")
    given = parser.parse_args()
    copy_mathjax(given.out / "mathjax")
    try:
        for name in given.names or grading.names():
            make(name, given.out, given.force)
    except CellExecutionError as error:
        print(f"{name}: a cell of the solution failed:\n{error}", file=sys.stderr)
        return 1
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
