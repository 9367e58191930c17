"""The assignments: full marks for the solution, none for the untouched file, a plausible mistake loses its question."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from companion import grading
from companion.grading.master import source

ASSIGNMENTS = Path(__file__).resolve().parents[1] / "assignments"


def mistakes(name: str) -> dict[str, list[list[str]]]:
    """Of each question, what plausible mistakes put in place of what the solution has."""
    return tomllib.loads((ASSIGNMENTS / name / "mistakes.toml").read_text(encoding="utf-8"))


def lines(cell: dict[str, Any]) -> set[str]:
    return {line.strip() for line in source(cell).splitlines()}


class Solved:
    """The solution, run here: a process for each mistake would mostly import torch."""

    def __init__(self, task: grading.Assignment) -> None:
        # neither copied tests, as in the grader, nor figures of open questions: minutes, mistake after mistake
        cells = task.solution["cells"]
        self.task = task
        self.code = [source(c) for c in cells if c["cell_type"] == "code" and "companion" not in c["metadata"]]
        self.space: dict[str, Any] = {}
        self.before: list[dict[str, Any]] = []  # the names that there are when a cell begins
        for text in self.code:
            self.before.append(dict(self.space))
            exec(text, self.space)

    def lost(self, old: str, new: str) -> set[str]:
        """Questions of which a test fails after a mistake, from whose cell on all is run again."""
        found = [number for number, text in enumerate(self.code) if old in text]
        assert len(found) == 1, f"{old!r} stands in {len(found)} cells"
        (number,) = found
        self.space.clear()  # and no other dictionary, in which the functions of earlier cells would not look
        self.space |= self.before[number]
        for text in [self.code[number].replace(old, new), *self.code[number + 1 :]]:
            exec(text, self.space)
        failed = set()
        for question in self.task.questions:
            for test in question.tests:
                try:
                    exec(test, dict(self.space))
                except Exception:
                    failed.add(question.name)
        return failed


@pytest.mark.slow
@pytest.mark.parametrize("name", grading.names())
def test_marks_of_solution_and_untouched_file(name: str, tmp_path: Path) -> None:
    task = grading.load(name)
    cells = [cell for cell in task.solution["cells"] if "answer" not in cell["metadata"].get("companion", {})]
    solution = {**task.solution, "cells": cells}  # its figures have no marks; tests/test_archive.py draws them
    for identifier, notebook in {"solution": solution, "student": task.student}.items():
        (tmp_path / f"{identifier}.ipynb").write_text(json.dumps(notebook))
    records = grading.grade(sorted(tmp_path.glob("*.ipynb")), name, tmp_path / "marks.csv")
    full = {question.name: None if question.manual else question.points for question in task.questions}
    nothing = {question: None if points is None else 0 for question, points in full.items()}
    assert [record["marks"] for record in records] == [full, nothing]


@pytest.mark.slow
@pytest.mark.parametrize("name", grading.names())
def test_a_mistake_loses_its_question(name: str) -> None:
    task, planted = grading.load(name), mistakes(name)
    # more than one, so that where each loses its own alone, the solution of each passes
    assert set(planted) == {question.name for question in task.questions if not question.manual} and len(planted) > 1
    solved = Solved(task)
    for question, pairs in planted.items():
        for old, new in pairs:
            assert solved.lost(old, new) == {question}, f"{old!r} made {new!r}"


@pytest.mark.parametrize("name", grading.names())
def test_student_file_holds_no_solution(name: str) -> None:
    task = grading.load(name)
    pairs = [
        (lines(given), lines(solved))
        for given, solved in zip(task.student["cells"], task.solution["cells"], strict=True)
    ]
    student = set().union(*(given for given, _ in pairs))
    taken = set().union(*(solved - given for given, solved in pairs))
    assert len(taken) > 10
    # a short line, such as "]", may stand in a question too
    assert not {line for line in taken & student if len(line) > 20}
    assert all(old not in "\n".join(student) for found in mistakes(name).values() for old, _ in found)
    assert not any("SOLUTION" in line or "HIDDEN" in line or "Rubric" in line for line in student)
    assert not any("answer" in cell["metadata"].get("companion", {}) for cell in task.student["cells"])
