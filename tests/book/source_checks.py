"""What the book's source files must keep together. Each check takes a folder and returns its faults."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import yaml
from chapter_checks import FENCED_CODE, LOCAL_PATH, missing_alt_in_markdown

YAML_FILES = ("_config.yml", "_toc.yml", "environment.yml")


def pages(root: Path) -> list[Path]:
    """The book's pages, chapters included; names that start with '_' or '.' are not pages."""
    found = [p for p in (root / "book").rglob("*") if p.suffix in {".md", ".ipynb"}]
    return sorted(p for p in found if not any(part[0] in "_." for part in p.relative_to(root).parts))


def prose(page: Path) -> str:
    """A page's Markdown."""
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    cells = nbformat.read(page, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def toc_entries(toc: Any) -> Iterator[str]:
    """Every file that a table of contents names, at any depth."""
    if isinstance(toc, list):
        for item in toc:
            yield from toc_entries(item)
    elif isinstance(toc, dict):
        yield from (toc[key] for key in ("root", "file") if key in toc)
        for value in toc.values():
            yield from toc_entries(value)


def every_page_in_toc(root: Path) -> list[str]:
    """Each page stands in _toc.yml, once: with only_build_toc_files a forgotten one vanishes without a word."""
    entries = list(toc_entries(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))
    names = [page.relative_to(root).with_suffix("").as_posix() for page in pages(root)]
    entries = [re.sub(r"\.(md|ipynb)$", "", entry) for entry in entries]
    return [f"{name}: {entries.count(name)} times in _toc.yml, not once" for name in names if entries.count(name) != 1]


def every_source_cited(root: Path) -> list[str]:
    """Each entry of the bibliography is cited on some page."""
    bibliography = (root / "book" / "references.bib").read_text(encoding="utf-8")
    keys = re.findall(r"^@\w+\{([^,\s]+)", bibliography, re.MULTILINE)
    text = "\n".join(prose(page) for page in pages(root))
    cited = {key.strip() for match in re.findall(r"\{cite[^}]*\}`([^`]+)`", text) for key in match.split(",")}
    faults = [f"{key} is cited nowhere" for key in keys if key not in cited]
    return faults + [f"{key} stands {keys.count(key)} times" for key in sorted(set(keys)) if keys.count(key) > 1]


def no_repeated_keys(root: Path) -> list[str]:
    """No YAML mapping has a key twice: the parser would keep the last and lose the first."""
    faults = []
    for name in YAML_FILES:
        if (root / name).is_file():
            node = yaml.compose((root / name).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
            faults += [f"{name}: {fault}" for fault in repeated_keys(node)]
    return faults


def repeated_keys(node: yaml.Node | None) -> Iterator[str]:
    """Keys that stand more than once in one mapping, at any depth."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        yield from (f"key {key!r} stands twice" for key in sorted({str(k) for k in keys if keys.count(k) > 1}))
        for _, value in node.value:
            yield from repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from repeated_keys(item)


def pages_have_alt_text(root: Path) -> list[str]:
    """Every picture of every page has an alternative text."""
    return [f"{page.name}: {fault}" for page in pages(root) for fault in missing_alt_in_markdown(prose(page))]


def pages_have_no_local_paths(root: Path) -> list[str]:
    """No page names a folder of its author's machine."""
    return [f"{page.name}: local path {match[0]}" for page in pages(root) for match in LOCAL_PATH.finditer(prose(page))]


def pages_fetch_nothing(root: Path) -> list[str]:
    """No picture, script or frame of a page comes from another host."""
    fetch = re.compile(
        r"!\[[^\]]*\]\(https?://|\{(?:figure|image)\} *https?://|<(?:img|script|iframe|video)[^>]*https?://"
    )
    found = [(page, match) for page in pages(root) for match in fetch.finditer(FENCED_CODE.sub("", prose(page)))]
    return [f"{page.name}: fetches from another host: {match[0]}" for page, match in found]


def tables_are_named(root: Path) -> list[str]:
    """Every table of Markdown has a caption, and so a number, and a name of its own, by which text can refer to it.

    A caption has no backticks, which end what a fence of them may say.
    """
    faults, seen = [], set[str]()
    for page in pages(root):
        text = prose(page)
        named = re.findall(r"^(`{3,})\{table\} [^`\n]+\n:name: (\S+)\n(?:.*\n)*?\1$", text, re.MULTILINE)
        rules = len(re.findall(r"^\|?(?: *:?-{3,}:? *\|)+ *(?::?-{3,}:? *)?$", text, re.MULTILINE))
        if rules != len(named):
            faults.append(f"{page.name}: {rules} tables, of which {len(named)} have a caption and a name")
        faults += [f"{page.name}: a second table named {name}" for _, name in named if name in seen]
        seen |= {name for _, name in named}
    return faults


CHECKS: list[Callable[[Path], list[str]]] = [
    every_page_in_toc,
    every_source_cited,
    no_repeated_keys,
    pages_have_alt_text,
    pages_have_no_local_paths,
    pages_fetch_nothing,
    tables_are_named,
]
