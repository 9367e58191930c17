"""Minutes that a chapter takes to read, and the line of its box that says so.

A reader takes 180 words or 15 lines of code a minute. Folded code, exercises' solutions and answers of the quiz are not
counted. ``python book/_tools/reading_time.py [PATH ...]`` writes the line anew where it is wrong.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from run_chapters import chapters, write

WORDS_A_MINUTE, LINES_A_MINUTE = 180, 15
FOLDED = "hide-input"  # the tag of cells whose code the page folds
LINE = re.compile(r"(\*\*Reading time\*\*) +(?:about +)?(\d+)( minutes?)")
SOLUTION = re.compile(r"\{solution-(start|end)\}")
DROPDOWN = re.compile(
    r"^(`{3,}|:{3,})\{(?:dropdown|solution)\}.*?^\1 *$", re.MULTILINE | re.DOTALL
)
MARKUP = re.compile(
    r"^ *(?:`{3,}|:{3,}).*$|^ *:[\w-]+:.*$|\{[\w:]+\}(?=`)|\]\([^)]*\)", re.MULTILINE
)


def visible(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that a page shows unfolded: neither tagged nor inside a solution."""
    shown, inside = [], False
    for cell in notebook.cells:
        marks = SOLUTION.findall(cell.source) if cell.cell_type == "markdown" else []
        if not inside and not marks and FOLDED not in cell.metadata.get("tags", []):
            shown.append(cell)
        inside = marks[-1] == "start" if marks else inside
    return shown


def code_lines(cell: NotebookNode) -> int:
    """Lines of a cell that hold something."""
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def minutes(notebook: NotebookNode) -> int:
    """Reading time, rounded up to whole minutes."""
    cells = visible(notebook)
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    words = sum(
        bool(re.search(r"\w", word))
        for word in MARKUP.sub(" ", DROPDOWN.sub("", prose)).split()
    )
    lines = sum(code_lines(cell) for cell in cells if cell.cell_type == "code")
    return -int(-(words / WORDS_A_MINUTE + lines / LINES_A_MINUTE) // 1)


def stated(notebook: NotebookNode) -> int | None:
    """The minutes that the chapter's box names; None when it names none."""
    found = [
        LINE.search(cell.source)
        for cell in notebook.cells
        if cell.cell_type == "markdown"
    ]
    return next((int(match[2]) for match in found if match), None)


def rewrite(notebook: NotebookNode) -> bool:
    """Put the measured time into the box; False where it stood there already. ValueError without such a line."""
    measured, before = minutes(notebook), stated(notebook)
    if before is None:
        raise ValueError(
            "reading time: got no line; allowed: **Reading time** NN minutes, in the chapter's box"
        )
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINE.sub(rf"\g<1> {measured} minutes", cell.source)
    return measured != before


def main(paths: list[Path]) -> None:
    """Rewrite the chapters' lines and say which changed."""
    for path in paths or chapters():
        notebook = nbformat.read(path, as_version=4)
        changed = rewrite(notebook)
        if changed:
            write(notebook, path)
        print(
            f"{path.name}: {stated(notebook)} minutes{', was another number' if changed else ''}"
        )


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
