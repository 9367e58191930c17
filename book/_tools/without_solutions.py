"""Copy the book without its solutions, to build the edition for a course: `make book SOLUTIONS=no`.

What a reader could find a solution in is made from the copy: pages, downloads, search index. So the solutions, with code and
outputs, and the folded answers (`{dropdown}`), of which the questions stay, are taken out before anything is built; so is the
page for lecturers, with the sentence that leads to it.
"""

import argparse
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^ *(?P<marks>`{3,}|:{3,})\{(?P<name>[\w:-]+)\} *(?P<title>.*)$")

LECTURERS = "teaching"
TO_LECTURERS = re.compile(rf"\s*\[[^\]]*\]\((?:\.\./)*{LECTURERS}\.md\)[^.]*\.")


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """The notebook without solutions and folded answers; ValueError for one that has no end."""
    kept, inside = [], False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines, inside = _remaining(cell.source.splitlines(), inside)
            cell = NotebookNode(cell, source="\n".join(lines).strip())
            if cell.source:
                kept.append(cell)
        elif not inside:
            kept.append(cell)
    if inside:
        raise ValueError(
            "solution: got a {solution-start}; allowed: one with its {solution-end}"
        )
    return NotebookNode(notebook, cells=kept)


def _remaining(lines: list[str], inside: bool) -> tuple[list[str], bool]:
    """The lines outside of solutions, and whether the cell ends within one."""
    kept: list[str] = []
    rest = iter(lines)
    for line in rest:
        fence = FENCE.match(line)
        name = fence["name"] if fence else ""
        if fence and name in ("solution", "solution-start", "solution-end", "dropdown"):
            _skip(rest, fence["marks"])
            inside = name == "solution-start" or (inside and name != "solution-end")
            if name == "dropdown" and not inside:
                kept.append(f"- {fence['title']}")
        elif not inside:
            kept.append(line)
    return kept, inside


def _skip(lines: Iterator[str], marks: str) -> None:
    """Pass over the body of a directive and its closing fence."""
    for line in lines:
        if set(line.strip()) == {marks[0]} and len(line.strip()) >= len(marks):
            return
    raise ValueError(
        f"solution: got a directive opened by {marks}; allowed: one with its end in the same cell"
    )


def copy_book(root: Path, target: Path) -> None:
    """Make `target` a folder that jupyter-book builds: the book in `root`, without solutions."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copy(root / "_config.yml", target)
    contents = (root / "_toc.yml").read_text(encoding="utf-8")
    (target / "_toc.yml").write_text(
        re.sub(rf"(?m)^.*\b{LECTURERS}\n", "", contents), encoding="utf-8"
    )
    shutil.copytree(
        root / "book",
        target / "book",
        ignore=shutil.ignore_patterns(
            "_tools", "__pycache__", ".ipynb_checkpoints", f"{LECTURERS}.md"
        ),
    )
    for path in (target / "book").rglob("*.md"):
        left = TO_LECTURERS.sub("", path.read_text(encoding="utf-8"))
        path.write_text(left, encoding="utf-8")
    for path in (target / "book").rglob("*.ipynb"):
        try:
            nbformat.write(without_solutions(nbformat.read(path, as_version=4)), path)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(target)}: {error}") from None


def main() -> None:
    """Copy this repository's book."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="folder to make, or to make anew")
    copy_book(ROOT, parser.parse_args().target)


if __name__ == "__main__":
    main()
