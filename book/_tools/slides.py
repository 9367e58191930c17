"""Slides of each part, made from its chapters: `make slides`.

A slide for each section that has something to show: its title, the sentence that carries the idea (the first with words
in bold, else the first), its formulas and theorem, and its figure with caption; another slide for each further figure. A
table has a slide only in a section without figures, and there the first; a section that has a sentence alone has none.
What is taller than the window gets smaller letters, and is scrolled by the keys before they turn it. The pages need no
network: pictures stand in them, and MathJax lies beside them.
"""

import argparse
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nbformat
import yaml
from light_pages import MATHJAX_SETTINGS, copy_mathjax
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode
from pybtex.database import parse_file
from readable_downloads import FENCE, LABELLED_EQUATION, citation, plain
from run_chapters import BOOK

from companion._support import atomic

SKIPPED = ("Exercises", "Further reading")
HEADING = re.compile(r"^#{1,3} +(.+)$", re.MULTILINE)
FORMULA = re.compile(r"\$\$.+?\$\$", re.DOTALL)
FIGURE = re.compile(r'\s*<figure class="companion-')
SENTENCE = re.compile(r"(?<=[.!?]) +(?=[A-Z*\[${])")
WHOLE = re.compile(r"[A-Z*\[${].*[.!?]\**$")
REFERENCE = re.compile(
    r"(?i:guess)|\{eq\}|\{numref\}|\{ref\}"
)  # to what is not on the slide
EQUATION = re.compile(r"\{eq\}`[^`]+`")
ITEM = re.compile(r"^(?:[-*]|\d+\.) +(.+(?:\n +.+)*)", re.MULTILINE)
TABLE = re.compile(r"(?:^\|.*\|\n?)+", re.MULTILINE)
CELL = re.compile(r"(?<=\|)(?:[^|\n\\]|\\.)+(?=\|)")
FORMULAS, WORDS = 2, 12  # on a slide: formulas at most, words of an idea at least
LONG = 12  # rows of a table, from which on it is set smaller
SOURCES = parse_file(str(BOOK / "references.bib")).entries
TABULAR = "companion-table"
KINDS = {"fig": "the figure", "tab": "the table"}


@dataclass
class Section:
    """A heading, the Markdown below it, and the HTML of its figures and tables."""

    title: str
    text: str = ""
    figures: list[str] = field(default_factory=list)


def sections(notebook: NotebookNode) -> list[Section]:
    """The sections of a chapter, its title first; cells of solutions are left out."""
    found: list[Section] = []
    solving = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            marks = re.findall(r"\{solution-(start|end)\}", cell.source)
            solving = marks[-1] == "start" if marks else solving
            before, *rest = HEADING.split(cell.source)
            if found:
                found[-1].text += before + "\n"
            for title, text in zip(rest[::2], rest[1::2], strict=True):
                found.append(Section(title.strip(), text + "\n"))
        elif found and not solving:
            shown = [
                output.get("data", {}).get("text/html", "") for output in cell.outputs
            ]
            found[-1].figures += [text for text in shown if FIGURE.match(text)]
    return found


def idea(text: str) -> str:
    """The prose that carries a section's idea, a sentence or two; nothing where there is no prose."""
    prose = LABELLED_EQUATION.sub("\n\n", FENCE.sub("\n\n", text))
    prose = ITEM.sub("", TABLE.sub("", FORMULA.sub("\n\n", prose)))
    blocks = [SENTENCE.split(" ".join(block.split())) for block in prose.split("\n\n")]
    tails = [block[start:] for block in blocks for start in range(len(block))]
    fit = [
        tail for tail in tails if WHOLE.match(tail[0]) and not REFERENCE.search(tail[0])
    ]
    chosen = next((tail for tail in fit if "**" in tail[0]), fit[0] if fit else [])
    said = chosen[:1]
    for sentence in chosen[1:]:
        if (
            len(" ".join(said).split()) >= WORDS
            or not WHOLE.match(sentence)
            or REFERENCE.search(sentence)
        ):
            break
        said.append(sentence)
    return " ".join(said)


def boxed(text: str, kind: str) -> list[re.Match[str]]:
    """The directives of a kind, such as `prf:theorem`."""
    return [match for match in FENCE.finditer(text) if match["name"] == kind]


def _set_formula(content: str, options: dict[str, bool]) -> str:
    left, right = (r"\[", r"\]") if options["display_mode"] else (r"\(", r"\)")
    return f"{left}{html.escape(content.strip())}{right}"


MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
MARKDOWN.use(dollarmath_plugin, renderer=_set_formula, allow_labels=False)


def rendered(text: str) -> str:
    """MyST as HTML; a reference to a label says what kind of thing it was."""
    text = LABELLED_EQUATION.sub(
        lambda match: f"$${match[1]}$$", EQUATION.sub("the formula above", text)
    )
    markdown = plain(
        text,
        partial(citation, sources=SOURCES),
        lambda label: KINDS.get(label.partition("-")[0], "the theorem"),
        lambda address: "",
    )
    return MARKDOWN.render(markdown)


def slide(title: str, parts: list[str], kind: str = "") -> str:
    """One slide of HTML parts: what stands over its whole width, at the left, and at the right."""
    shown = [f"<div>{part}</div>" for part in parts if part.strip()]
    top = shown.pop(0) if parts[0].strip() else ""
    columns = f'<div class="columns">{"".join(shown)}</div>' if shown else ""
    if any(part.count("<tr") > LONG for part in parts):
        kind = "long"
    return f'<section class="{kind}"><h2>{MARKDOWN.renderInline(title)}</h2>{top}{columns}</section>'


def section_slides(section: Section) -> Iterator[str]:
    """The slides of one section, none where it has nothing to show."""
    outside = FENCE.sub("", section.text)
    theorem = "".join(
        f"<aside><b>{MARKDOWN.renderInline(box['title'])}</b>{rendered(box['body'])}</aside>"
        for box in boxed(section.text, "prf:theorem")[:1]
    )
    pictures = [text for text in section.figures if TABULAR not in text[:60]]
    more = pictures or section.figures[:1]
    if re.search("reproduced|Pitfalls", section.title):
        table = TABLE.search(CELL.sub(lambda m: SENTENCE.split(m[0])[0], outside))
        items = [
            SENTENCE.split(" ".join(item.split()))[0] for item in ITEM.findall(outside)
        ]
        listed = table[0] if table else "\n".join(f"- {item}" for item in items)
        parts = ["", rendered(listed) + theorem]
    else:
        text = outside if section.title == "Take away" else idea(section.text)
        formulas = FORMULA.findall(outside)[:FORMULAS]
        parts = [rendered("\n\n".join(formulas)), rendered(text) + theorem]
        if not (more or theorem or formulas or section.title == "Take away"):
            return
        if more and TABULAR in more[0][:60]:  # wide: beneath, not beside
            parts = ["".join(parts), more.pop(0)]
        elif more:
            parts.append(more.pop(0))
    if any(part.strip() for part in parts):
        yield slide(section.title, parts)
    for figure in more:
        yield slide(section.title, ["", figure])


def chapter_slides(notebook: NotebookNode) -> Iterator[str]:
    """The slides of one chapter."""
    first, *others = sections(notebook)
    opening = FENCE.sub("", first.text).strip().split("\n\n")[0]
    aims = [
        item
        for box in boxed(first.text, "admonition")
        for item in ITEM.findall(box["body"])
    ]
    learned = "\n".join(f"- {' '.join(aim.split())}" for aim in aims)
    text = rendered(f"{opening}\n\n{learned}")
    yield slide(first.title, ["", text, *first.figures[:1]], "chapter")
    for section in others:
        if section.title not in SKIPPED:
            yield from section_slides(section)


def deck(title: str, chapters: list[NotebookNode]) -> str:
    """The page of one part."""
    names = "\n".join(f"1. {sections(chapter)[0].title}" for chapter in chapters)
    slides = [slide(title, [rendered(names)], "part")]
    slides += [one for chapter in chapters for one in chapter_slides(chapter)]
    page = (Path(__file__).with_name("slides.html")).read_text(encoding="utf-8")
    for name, value in {
        "TITLE": html.escape(title),
        "MATHJAX": json.dumps(MATHJAX_SETTINGS),
        "SLIDES": "\n".join(slides),
    }.items():
        page = page.replace(f"%{name}%", value)
    return page


def main(out: Path) -> None:
    """Write a page for each part of the book, and say where."""
    toc = yaml.safe_load((BOOK.parent / "_toc.yml").read_text(encoding="utf-8"))
    copy_mathjax(out / "mathjax")
    for part in toc["parts"]:
        paths = [BOOK.parent / chapter["file"] for chapter in part["chapters"]]
        paths = [path.with_suffix(".ipynb") for path in paths]
        if paths[0].parent != BOOK:  # the appendix has no slides
            target = out / f"{paths[0].parent.name}.html"
            with atomic(target) as whole:
                whole.write_text(
                    deck(part["caption"], [nbformat.read(path, 4) for path in paths]),
                    encoding="utf-8",
                )
            print(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BOOK.parent / "dist" / "slides")
    main(parser.parse_args().out)
