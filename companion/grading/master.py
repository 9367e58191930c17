"""An assignment: a master notebook in otter-grader's raw-cell format, of which student file and tests are made.

Raw cells mark the parts: ``# ASSIGNMENT CONFIG`` (lines ``key: value``: seconds, memory_mb), ``# BEGIN QUESTION``
(name, points, manual) to ``# END QUESTION``, and in it ``# BEGIN SOLUTION`` and ``# BEGIN TESTS`` to their ``# END``.
In the code of a solution, a line that ends with ``# SOLUTION`` becomes ``...``, and ``# BEGIN SOLUTION`` to ``# END
SOLUTION`` one ``...``; Markdown between the raw cells of a solution becomes room for an answer. A test cell that begins
with ``# HIDDEN`` is not in the student's file. Before the first code stands a cell that installs the package where that
is missing.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from companion import __version__, _support

MASTER = "master.ipynb"
# Links are not followed: a submission finds the package through one, and no masters beside that.
_ASSIGNMENTS = Path(__file__).absolute().parents[2] / "assignments"
_BOOK = _ASSIGNMENTS.with_name("_config.yml")
_MARK = re.compile(r"#\s*(ASSIGNMENT CONFIG|(BEGIN|END) (QUESTION|SOLUTION|TESTS))\s*$", re.MULTILINE)

Notebook = dict[str, Any]


@dataclass
class Question:
    """One question: its marks, and the sources of its tests (none where a person marks it)."""

    name: str
    points: float
    manual: bool
    tests: list[str] = field(default_factory=list)


@dataclass
class Assignment:
    """What a master says: questions in order, limits of a run, the student's notebook and the solved one."""

    name: str
    digest: str
    seconds: int
    memory_mb: int
    questions: list[Question]
    student: Notebook
    solution: Notebook


def load(assignment: str | Path) -> Assignment:
    """Read the master in ``assignments/<name>/``, or in a folder; ValueError where it is none or breaks the format."""
    folder = Path(assignment)
    if not (folder / MASTER).is_file():
        folder = _ASSIGNMENTS / str(_support.one_of("assignment", str(assignment), names()))
    path = folder / MASTER
    config: dict[str, str] = {}
    questions: list[Question] = []
    student: list[dict[str, Any]] = []
    solution: list[dict[str, Any]] = []
    inside: list[str] = []
    master = json.loads(path.read_text(encoding="utf-8"))
    for cell in master["cells"]:
        text = source(cell)
        mark = _MARK.match(text) if cell["cell_type"] == "raw" else None
        if mark is None:
            _place(cell, text, inside, questions, student, solution)
        elif mark[1] == "ASSIGNMENT CONFIG":
            config = _pairs(text)
        elif mark[2] == "BEGIN":
            inside.append(mark[3])
            if mark[3] == "QUESTION":
                questions.append(_question(_pairs(text), {question.name for question in questions}))
        elif not inside or inside.pop() != mark[3]:
            raise ValueError(f"assignment: got {mark[0].strip()!r} in {path}; allowed: the end of what was begun last")
    if inside or not questions:
        raise ValueError(f"assignment: got {path} with {inside or 'no question'}; allowed: questions that end")
    seconds = _support.count("seconds", int(config.get("seconds", 600)))
    memory = _support.count("memory_mb", int(config.get("memory_mb", 8192)))
    first = next((k for k, cell in enumerate(student) if cell["cell_type"] == "code"), len(student))
    for cells in (student, solution):
        cells.insert(first, _install(repository()))
    whole = {key: value for key, value in master.items() if key != "cells"}
    versions = [{**whole, "cells": cells} for cells in (student, solution)]
    return Assignment(folder.resolve().name, _support.sha256(path), seconds, memory, questions, *versions)


def names() -> list[str]:
    """Names of the assignments of this checkout (a wheel has none)."""
    return sorted(path.parent.name for path in _ASSIGNMENTS.glob(f"*/{MASTER}"))


def source(cell: dict[str, Any]) -> str:
    """Text of a notebook's cell, which the file holds as text or as lines."""
    text = cell.get("source", "")
    return text if isinstance(text, str) else "".join(text)


def repository() -> str:
    """The repository's address in the book's configuration; empty where that names none."""
    found = re.search(r'^  url: "(.+)"', _BOOK.read_text(encoding="utf-8"), re.MULTILINE) if _BOOK.is_file() else None
    return found[1] if found else ""


def _install(address: str) -> dict[str, Any]:
    """A student's first code cell: it makes sure that the package is there."""
    if address:
        says, does = f"installs it from\n# {address}", f"%pip install --quiet git+{address}"
    else:
        says = "says what to do"
        wheel = f"flow_priors-{__version__}-py3-none-any.whl"
        does = f"""raise ModuleNotFoundError(
        "companion: run: pip install {wheel}, the file given out with this notebook"
        " (or, in a copy of the book's repository: pip install .)"
    )"""
    text = (
        f"# Where the book's package is missing, as in Colab, this cell {says}. Elsewhere it does nothing.\n"
        f'from importlib.util import find_spec\n\nif find_spec("companion") is None:\n    {does}'
    )
    return {
        "cell_type": "code",
        "id": "install",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": text,
    }


def _pairs(text: str) -> dict[str, str]:
    lines = (line.partition(":") for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in lines}


def _question(config: dict[str, str], taken: set[str]) -> Question:
    name = config.get("name", "")
    if not name or name in taken:
        raise ValueError(f"question: got name {name!r}; allowed: a name of its own for each question")
    points = _support.positive("points", float(config.get("points", 1)))
    return Question(name, points, config.get("manual", "false").lower() == "true")


def _place(
    cell: dict[str, Any],
    text: str,
    inside: list[str],
    questions: list[Question],
    student: list[dict[str, Any]],
    solution: list[dict[str, Any]],
) -> None:
    """Put an ordinary cell of the master where it belongs."""
    clean = {**cell, "metadata": {}}
    if cell["cell_type"] == "code":
        clean |= {"outputs": [], "execution_count": None}
    if "TESTS" in inside:
        hidden = text.startswith("# HIDDEN")
        questions[-1].tests.append(text)
        if not hidden:
            clean["metadata"] = {"companion": {"test": questions[-1].name}}
            student.append(clean)
            solution.append(clean)
    elif "SOLUTION" in inside:
        named = {"companion": {"answer": questions[-1].name}} if questions and questions[-1].manual else {}
        solution.append({**clean, "metadata": named})
        prompt = _prompt(text) if cell["cell_type"] == "code" else "*Your answer here.*"
        student.append({**clean, "source": prompt})
    else:
        student.append(clean)
        solution.append(clean)


def _prompt(text: str) -> str:
    """Code without its solution."""
    text = re.sub(
        r"^([ \t]*)# BEGIN SOLUTION[ \t]*\n.*?^[ \t]*# END SOLUTION[ \t]*$",
        r"\1...",
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    text = re.sub(r"^([ \t]*)(\w+ = )?[^\n]*# SOLUTION[ \t]*$", r"\1\2...", text, flags=re.MULTILINE)
    if "SOLUTION" in text:
        raise ValueError("assignment: got an unfinished '# BEGIN SOLUTION'; allowed: one with its '# END SOLUTION'")
    return text
