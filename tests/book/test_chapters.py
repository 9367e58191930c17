"""Every chapter and page keeps the book's rules, and proof that each check can fail."""

from pathlib import Path

import chapter_checks
import nbformat
import pytest
import reading_time
import run_chapters
import source_checks
from chapter_checks import Chapter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

CHAPTERS = run_chapters.chapters()

PROSE = """# Title
What you will be able to do: judge. What you need: nothing. **Reading time** 1 minutes, running time 1 s.
The stored results were run on two cores. ![A curve that falls](figure.png)
## What reproduced, and what did not
## Pitfalls
## Exercises
:::{exercise}
:label: first
Do it.
:::
:::{solution} first
:class: dropdown
Done.
:::
## Take away
## Further reading
"""
# 2 x 1 pixels, black and white; 1 x 1 pixel
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAAAAADRSSBWAAAAC0lEQVR42mNg+A8AAQIBAGV3uIIAAAAASUVORK5CYII="
BLANK = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def sound() -> Chapter:
    """A small chapter without a fault."""
    shown = new_output("display_data", {"image/png": PICTURE, "text/plain": "<Figure>"})
    slider = f'<input type="range"><img alt="m = 20 %" src="data:image/png;base64,{PICTURE}">'
    slider = f'<figure class="companion-explore" id="fig-m">{slider}<figcaption>A step</figcaption></figure>'
    cells = [
        new_markdown_cell(PROSE),
        new_code_cell("draw()", outputs=[shown], execution_count=1, metadata={"mystnb": {"image": {"alt": "A step"}}}),
        new_code_cell(
            "frames = explore(caption='A step')",
            outputs=[new_output("display_data", {"text/html": slider})],
            execution_count=2,
            metadata={"tags": ["hide-input"]},
        ),
    ]
    notebook = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    record = {"code": run_chapters.code_hash(notebook), "stored": {}, "profile": "quick", "device": "cpu"}
    notebook.metadata[run_chapters.RECORD] = record | {"versions": {"python": "3.11"}}
    return Chapter(Path("sound.ipynb"), notebook, 1000)


def add_output(chapter: Chapter, cell: int, *arguments: object, **fields: object) -> None:
    """Append an output to a cell."""
    chapter.notebook.cells[cell].outputs.append(new_output(*arguments, **fields))


def swap(chapter: Chapter, old: str, new: str) -> None:
    """Replace text in the chapter's prose."""
    assert old in chapter.notebook.cells[0].source
    chapter.notebook.cells[0].source = chapter.notebook.cells[0].source.replace(old, new)


def html(chapter: Chapter, text: str) -> None:
    """Give the second code cell this HTML output."""
    chapter.notebook.cells[2].outputs[0].data["text/html"] = text


BROKEN = [
    ("run_in_order", lambda c: c.notebook.cells[2].update(execution_count=None)),
    ("run_in_order", lambda c: c.notebook.cells[1].update(execution_count=7)),
    ("run_in_order", lambda c: c.notebook.cells[2].update(source=" ")),
    ("no_errors_or_warnings", lambda c: add_output(c, 1, "error", ename="ValueError", evalue="", traceback=[])),
    ("no_errors_or_warnings", lambda c: add_output(c, 1, "stream", name="stderr", text="UserWarning: old")),
    ("up_to_date", lambda c: c.notebook.cells[1].update(source="draw(2)")),
    ("up_to_date", lambda c: c.notebook.metadata.companion.update(stored={"results/x/quick.json": "0"})),
    ("up_to_date", lambda c: c.notebook.metadata.companion.pop("device")),
    ("clean_metadata", lambda c: c.notebook.metadata.kernelspec.update(name="my-kernel")),
    ("clean_metadata", lambda c: c.notebook.metadata.update(widgets={})),
    ("clean_metadata", lambda c: c.notebook.cells[1].metadata.update(execution={"iopub.execute_input": "now"})),
    ("clean_metadata", lambda c: setattr(c, "size", 2_000_000)),
    ("no_local_paths", lambda c: add_output(c, 1, "stream", name="stdout", text="saved in /home/somebody/run")),
    ("no_local_paths", lambda c: swap(c, "Do it.", "Open `/root/book`.")),
    ("pictures_show_something", lambda c: c.notebook.cells[1].outputs[0].data.update({"image/png": BLANK})),
    ("pictures_show_something", lambda c: c.notebook.cells[1].outputs[0].data.update({"image/png": PICTURE[:40]})),
    ("pictures_show_something", lambda c: html(c, f'<img alt="m" src="data:image/png;base64,{BLANK}">')),
    ("alt_texts", lambda c: c.notebook.cells[1].metadata.pop("mystnb")),
    ("alt_texts", lambda c: html(c, f'<img src="data:image/png;base64,{PICTURE}">')),
    ("alt_texts", lambda c: swap(c, "A curve that falls", "")),
    (
        "alt_texts",
        lambda c: swap(c, "Do it.", "Do it.\n:::\n```{figure} a.png\n:width: 3em\nCaption\n```\n:::{note}\n"),
    ),
    ("has_sections", lambda c: swap(c, "## Pitfalls", "")),
    ("has_sections", lambda c: swap(c, "# Title", "# Title\n# Another")),
    ("has_sections", lambda c: swap(c, "able to", "told to")),
    ("exercises_have_solutions", lambda c: swap(c, "{solution} first", "{solution} other")),
    ("exercises_have_solutions", lambda c: swap(c, ":class: dropdown", "")),
    ("exercises_have_solutions", lambda c: swap(c, ":label: first", "")),
    ("narrow", lambda c: add_output(c, 1, "stream", name="stdout", text="a line\n" + 81 * "-")),
    ("narrow", lambda c: c.notebook.cells[1].update(source=f"draw()  # {80 * '-'}")),
    ("little_code", lambda c: lengthen(c, "draw()\n" * 13, cells=1)),
    ("little_code", lambda c: lengthen(c, "draw()\n" * 10, cells=13)),
    ("figures_are_folded", lambda c: c.notebook.cells[2].metadata.pop("tags")),
    ("figures_are_folded", lambda c: c.notebook.cells[1].update(source="show.display(fig, alt='A curve that falls')")),
    ("folded_cells_only_draw", lambda c: add_output(c, 2, "stream", name="stdout", text="3")),
    ("folded_cells_only_draw", lambda c: lengthen(c, "print(frames)", cells=1)),
    ("figures_are_named", lambda c: html(c, '<figure class="companion-figure"></figure>')),
    ("figures_are_named", lambda c: add_output(c, 1, "display_data", c.notebook.cells[2].outputs[0].data)),
    ("reading_time_is_measured", lambda c: swap(c, "**Reading time** 1", "**Reading time** 25")),
]


def lengthen(chapter: Chapter, source: str, cells: int) -> None:
    """Append code cells, and keep the box true."""
    new = [new_code_cell(source, execution_count=3 + i) for i in range(cells)]
    chapter.notebook.cells += new
    reading_time.rewrite(chapter.notebook)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("check", chapter_checks.CHECKS, ids=lambda check: check.__name__)
def test_chapter(path: Path, check: chapter_checks.Callable[[Chapter], list[str]]) -> None:
    assert check(Chapter.read(path)) == []


def test_chapter_checks_pass_a_sound_chapter() -> None:
    nbformat.validate(sound().notebook)
    assert [fault for check in chapter_checks.CHECKS for fault in check(sound())] == []


@pytest.mark.parametrize(("name", "spoil"), BROKEN, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BROKEN)])
def test_chapter_check_can_fail(name: str, spoil: chapter_checks.Callable[[Chapter], object]) -> None:
    chapter = sound()
    spoil(chapter)
    faulty = {check.__name__ for check in chapter_checks.CHECKS if check(chapter)}
    assert name in faulty
    assert faulty <= {name, "up_to_date"}  # a changed code cell is also a stale one


def test_every_chapter_check_is_shown_to_fail() -> None:
    assert {check.__name__ for check in chapter_checks.CHECKS} == {name for name, _ in BROKEN}


def test_exercises_across_cells_are_understood() -> None:
    chapter = sound()
    swap(chapter, ":::{exercise}\n:label: first\nDo it.\n:::", "```{exercise-start}\n:label: first\n```")
    swap(
        chapter, ":::{solution} first\n:class: dropdown\nDone.\n:::", "```{solution-start} first\n:class: dropdown\n```"
    )
    assert chapter_checks.exercises_have_solutions(chapter) == []


def test_a_progress_bar_in_an_ignored_cell_is_no_warning() -> None:
    chapter = sound()
    add_output(chapter, 1, "stream", name="stderr", text="100%|####|")
    assert chapter_checks.no_errors_or_warnings(chapter) != []
    chapter.notebook.cells[1].metadata["tags"] = ["nbval-ignore-output"]
    assert chapter_checks.no_errors_or_warnings(chapter) == []


@pytest.mark.parametrize("check", source_checks.CHECKS, ids=lambda check: check.__name__)
def test_sources(check: source_checks.Callable[[Path], list[str]], root: Path) -> None:
    assert check(root) == []


SPOILT_SOURCES = {
    "every_page_in_toc": ("book/part1/forgotten.md", "# Forgotten"),
    "every_source_cited": ("book/references.bib", "@article{cited,}\n@article{never,}"),
    "no_repeated_keys": ("_config.yml", "html:\n  a: 1\n  b: 2\n  a: 3\n"),
    "pages_have_alt_text": ("book/intro.md", "# A\n{cite}`cited` ![](a.png)"),
    "pages_have_no_local_paths": ("book/intro.md", "# A\n{cite}`cited` /home/somebody/book"),
    "pages_fetch_nothing": ("book/intro.md", "# A\n{cite}`cited` ![A face](https://other.invalid/a.png)"),
    "tables_are_named": ("book/intro.md", "# A\n{cite}`cited`\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"),
}


@pytest.mark.parametrize("check", source_checks.CHECKS, ids=lambda check: check.__name__)
def test_source_check_can_fail(check: source_checks.Callable[[Path], list[str]], tmp_path: Path) -> None:
    (tmp_path / "book" / "part1").mkdir(parents=True)
    (tmp_path / "_toc.yml").write_text("root: book/intro\nparts:\n- chapters:\n  - file: book/part1/one.ipynb\n")
    (tmp_path / "_config.yml").write_text("html: {a: 1}\nlatex: {a: 1}\n")
    (tmp_path / "book" / "intro.md").write_text("# A\n{cite}`cited`\n")
    (tmp_path / "book" / "references.bib").write_text("@article{cited,\n}\n")
    nbformat.write(sound().notebook, tmp_path / "book" / "part1" / "one.ipynb")
    assert check(tmp_path) == []
    name, text = SPOILT_SOURCES[check.__name__]
    (tmp_path / name).write_text(text)
    assert len(check(tmp_path)) == 1
