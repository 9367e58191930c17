"""The edition without solutions: nothing of them is left, and all else is."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import run_chapters
import without_solutions
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

BEFORE = """# Page

```{exercise-start} Guess
:label: ex-guess
```
Kept task.
```{exercise-end}
```
```{solution-start} ex-guess
:class: dropdown
```
Quokkaone
"""
AFTER = """Quokkathree
```{solution-end}
```
Kept between.

:::{exercise}
:label: ex-short
Kept short task.
:::

::::{solution} ex-short
:class: dropdown
Quokkafour
:::{note}
Quokkafive
:::
Quokkasix
::::

### Check yourself

:::{dropdown} Kept question?
Quokkaseven
:::

Kept end.
"""


def book() -> NotebookNode:
    """A page with all that hides solutions, in text, code and outputs."""
    shown = new_output("stream", name="stdout", text="Quokkaoutput")
    cells = [
        new_markdown_cell(BEFORE),
        new_code_cell("quokkacode()", outputs=[shown], execution_count=1),
        new_markdown_cell("Quokkatwo"),
        new_markdown_cell(AFTER),
        new_code_cell("keptcode()", execution_count=2),
    ]
    return new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


def text(notebook: NotebookNode) -> str:
    return nbformat.writes(notebook)


def lines(notebook: NotebookNode) -> set[str]:
    return {line.strip() for cell in notebook.cells for line in cell.source.splitlines()}


def test_solutions_and_answers_go_and_the_rest_stays() -> None:
    left = without_solutions.without_solutions(book())
    assert "quokka" not in text(left).lower()
    kept = ("task", "between", "short task", "question?", "end")
    assert all(f"Kept {words}" in text(left) for words in kept) and "keptcode" in text(left)
    assert "solution" not in text(left) and text(left).count("{exercise") == 3
    assert text(without_solutions.without_solutions(left)) == text(left)


@pytest.mark.parametrize(
    "source",
    [
        "```{solution-start} a\n```\nDone.",
        "```{solution-start} a",
        ":::{solution} a\nDone.",
        "````{dropdown} Why?\nSo.\n```",
    ],
)
def test_a_solution_without_an_end_is_an_error(source: str) -> None:
    with pytest.raises(ValueError, match="solution: got a"):
        without_solutions.without_solutions(new_notebook(cells=[new_markdown_cell(source)]))


@pytest.mark.parametrize("path", run_chapters.chapters(), ids=lambda path: path.stem)
def test_chapters_keep_everything_else(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    left = without_solutions.without_solutions(notebook)
    whole, rest = ("\n".join(cell.source for cell in each.cells) for each in (notebook, left))
    assert "{solution" not in rest and "{dropdown}" not in rest and "A good answer" not in rest
    assert rest.count("{exercise") == whole.count("{exercise") > 0
    assert rest.count("\n## ") == whole.count("\n## ")
    assert rest.split("## Exercises")[0].strip() == whole.split("## Exercises")[0].strip()


def test_the_page_for_lecturers_is_left_out(root: Path, tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "copy"
    (source / "book").mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml", "book/intro.md", "book/teaching.md", "book/notation.md"):
        shutil.copy(root / name, source / name)
    without_solutions.copy_book(source, site)
    left = {path.name: path.read_text() for path in site.rglob("*") if path.is_file()}
    assert set(left) == {"_config.yml", "_toc.yml", "intro.md", "notation.md"}
    assert not any("teaching" in words.lower() for name, words in left.items() if name != "_config.yml")
    assert len(left["_toc.yml"].splitlines()) == len((source / "_toc.yml").read_text().splitlines()) - 1
    gone = set((source / "book" / "intro.md").read_text().split()) - set(left["intro.md"].split())
    assert gone == {"[Teaching", "book](teaching.md)", "lecturers."}
    assert left["notation.md"] == (source / "book" / "notation.md").read_text()


@pytest.mark.slow
def test_nothing_leaks_into_the_site(root: Path, tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "copy"
    shutil.copytree(root / "book" / "_ext", source / "book" / "_ext")
    shutil.copytree(root / "book" / "_static", source / "book" / "_static")
    shutil.copy(root / "_config.yml", source)
    (source / "_toc.yml").write_text("format: jb-book\nroot: book/page\n")
    (source / "book" / "teaching.md").write_text("Quokkamaster")
    (source / "book" / "references.bib").write_text("@misc{one, title={One}}")
    nbformat.write(book(), source / "book" / "page.ipynb")
    without_solutions.copy_book(source, site)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "--quiet", "--all", site]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = [path for path in site.rglob("*") if path.is_file()]
    assert not [path for path in files if b"quokka" in path.read_bytes().lower()]
    kept = {"page.html": "Kept question?", "searchindex.js": "kept", "page.ipynb": "Kept short task."}
    for name, words in kept.items():  # the page, the search, the download: where a leak would be
        assert any(words in path.read_text() for path in files if path.name == name and "html" in path.parts), name


@pytest.mark.slow
def test_nothing_of_the_chapters_solutions_is_in_the_built_edition(root: Path) -> None:
    site = root / "_build" / "without-solutions" / "_build" / "html"
    if not (site / "index.html").is_file():
        pytest.skip("the edition is not built (make book SOLUTIONS=no)")
    taken: set[str] = set()
    left: set[str] = set()
    for path in run_chapters.chapters():
        notebook = nbformat.read(path, as_version=4)
        taken |= lines(notebook)
        left |= lines(without_solutions.without_solutions(notebook))
    made = [
        path for path in site.rglob("*") if path.suffix in (".html", ".ipynb", ".js") and "_static" not in path.parts
    ]
    built = "\n".join(path.read_text() for path in made)
    # short lines stand elsewhere by chance; titles of folded answers stay, as questions
    secrets = {line for line in taken - left if len(line) > 30 and "{" not in line[:5]}
    assert len(secrets) > 100
    assert not {line for line in secrets if line in built}
