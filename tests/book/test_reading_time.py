"""Reading time: what counts, and what the tool writes."""

import re
from pathlib import Path

import nbformat
import pytest
import reading_time
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

BOX = "```{admonition} In a box\n:class: tip\n\n**Reading time** 25 minutes. **Running time** short.\n```"


def chapter(*cells: NotebookNode) -> NotebookNode:
    """A notebook of a box and these cells."""
    return new_notebook(cells=[new_markdown_cell(BOX), *cells])


def test_words_and_lines_add_up() -> None:
    # seven words in the box
    assert reading_time.minutes(chapter(new_markdown_cell("word " * 353))) == 2
    assert reading_time.minutes(chapter(new_markdown_cell("word " * 354))) == 3
    assert reading_time.minutes(chapter(new_markdown_cell("word " * 353), new_code_cell("x = 1\n\n" * 15))) == 3


@pytest.mark.parametrize(
    "cells",
    [
        [new_code_cell("draw()\n" * 99, metadata={"tags": ["hide-input"]})],
        [new_markdown_cell(":::{dropdown} Why?\n" + "so " * 999 + "\n:::")],
        [
            new_markdown_cell("```{solution-start} ex\n:class: dropdown\n```"),
            new_code_cell("solve()\n" * 99),
            new_markdown_cell("so " * 999 + "\n```{solution-end}\n```"),
        ],
    ],
    ids=["folded figure", "quiz", "solution"],
)
def test_what_the_page_folds_takes_no_time(cells: list[NotebookNode]) -> None:
    assert reading_time.minutes(chapter(*cells)) == 1


def test_the_tool_mends_the_box_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.ipynb"
    nbformat.write(chapter(new_markdown_cell("word " * 354), new_code_cell("x = 1", execution_count=1)), path)
    reading_time.main([path])
    assert "3 minutes, was another number" in capsys.readouterr().out
    mended = nbformat.read(path, as_version=4)
    assert mended.cells[0].source == BOX.replace("25", "3")
    assert mended.cells[2].execution_count == 1
    before = path.stat().st_mtime_ns
    reading_time.main([path])
    assert path.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="reading time: got no line"):
        reading_time.rewrite(new_notebook(cells=[]))


BOOK = Path(__file__).resolve().parents[2] / "book"
WEEKS = re.findall(r"^\| (\d+) \| (.+?) \| (.+? min) \|", (BOOK / "teaching.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("week, chapters, told", WEEKS, ids=[week for week, *_ in WEEKS])
def test_the_plan_for_lecturers_adds_up_the_chapters_times(week: str, chapters: str, told: str) -> None:
    def total(text: str) -> int:
        paths = re.findall(r"\((part[^)]+\.ipynb)\)", text)
        return sum(reading_time.minutes(nbformat.read(BOOK / path, as_version=4)) for path in paths)

    given, _, _ = chapters.partition("; for the curious")
    assert told == (
        f"{total(given)} min" if total(given) == total(chapters) else f"{total(given)} ({total(chapters)}) min"
    )
