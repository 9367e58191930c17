"""What students hand in: which notebooks, whose they are, and the code in them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from companion import _support
from companion.grading.master import Assignment, load, names, source

SIZE = 2**25  # bytes of a submission that are read
_MASTERS = re.compile(r"\bgrading\b|\bmaster\.ipynb\b")  # what leads to the solutions


def notebooks(submissions: Sequence[str | Path], pages: Path | None = None) -> dict[str, Path]:
    """Notebooks by student's identifier, and the folders of students without one; `pages` is no student's.

    ValueError where a submission is not there, none is a notebook, or two have one identifier.
    """
    found: dict[str, Path] = {}
    for given in map(Path, submissions):
        if not given.exists():
            raise ValueError(f"submission: got {given}; allowed: a notebook or a folder that is there")
        for name, path in _named(given, pages and pages.resolve()):
            if found.setdefault(name, path) != path:
                allowed = "a name of its own for each, or one folder with a folder for each student"
                raise ValueError(f"submission: got {path} and {found[name]}; allowed: {allowed}")
    if not found:
        raise ValueError(f"submission: got no notebook in {', '.join(map(str, submissions))}; allowed: one or more")
    return found


def _named(given: Path, pages: Path | None) -> list[tuple[str, Path]]:
    """Identifiers and notebooks: the notebooks' own names or, where each student has a folder, the folders'.

    A student's notebooks may lie deeper, as in an archive; a folder without one stands for its student all the same.
    """
    if not given.is_dir():
        return [(given.stem, given)]
    alone, deeper = _visible(given, "*.ipynb"), _visible(given, "*/**/*.ipynb")
    if alone and deeper:
        raise ValueError(f"submission: got {alone[0]} beside {deeper[0]}; allowed: notebooks, or a folder a student")
    if alone or not deeper:
        return [(path.stem, path) for path in alone]
    found = []
    folders = [each for each in _visible(given, "*") if each.is_dir() and each.resolve() != pages]
    for folder in (each for each in folders if not each.name.startswith("__")):  # as __MACOSX
        paths = [path for path in deeper if folder in path.parents] or [folder]
        found += [(folder.name + f" {path.stem}" * (len(paths) > 1), path) for path in paths]
    return found


def _visible(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def code_cells(content: bytes, task: Assignment) -> tuple[list[tuple[int, str]], list[str], str]:
    """Numbered code cells of a submission without the visible tests, remarks on them, and what is wrong with the file.

    A cell that is marked as a test and is none, changed or a copy, may hold an answer: it stays.
    """
    if len(content) > SIZE:
        return [], [], f"is larger than {SIZE // 2**20} MB"
    given = {text.strip() for question in task.questions for text in question.tests}
    kept, remarks, changed = [], [], []
    try:
        notebook = json.loads(content)
        named = notebook.get("metadata", {})
        language = named.get("kernelspec", {}).get("language") or named.get("language_info", {}).get("name") or "python"
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        texts = {source(cell).strip() for cell in code}
        for number, cell in enumerate(code, 1):
            text = source(cell)
            if text.strip() in given:
                continue
            kept.append((number, text))
            if "test" in cell.get("metadata", {}).get("companion", {}):
                changed.append(
                    f"code cell {number} is none of the tests, though marked as one: it was run as an answer"
                )
            if _MASTERS.search(text):
                remarks.append(f"code cell {number} names the grader or a master: read it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [], [], "is not a Jupyter notebook"
    if str(language).lower() != "python":
        return [], [], f"is for a kernel of {language}, not of Python"
    if not texts & given and (other := _another(texts)):
        changed = [f"the submission looks like the assignment {other}"]
    return kept, changed + remarks, ""


def _another(texts: set[str]) -> str:
    """The assignment of this checkout most of whose tests are among the texts; empty where none is."""
    found = {name: sum(t.strip() in texts for q in load(name).questions for t in q.tests) for name in names()}
    best = max(found, key=lambda name: found[name], default="")
    return best if best and found[best] else ""


def code_digest(cells: list[tuple[int, str]]) -> str:
    """Digest of the code of cells; empty where there are none."""
    return _support.sha256(json.dumps([text for _, text in cells])) if cells else ""
