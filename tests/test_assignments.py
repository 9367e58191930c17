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


def changed(notebook: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    found = [cell for cell in notebook["cells"] if old in source(cell)]
    assert len(found) == 1, f"{old!r} stands in {len(found)} cells"
    cells = [{**cell, "source": source(cell).replace(old, new)} for cell in notebook["cells"]]
    return {**notebook, "cells": cells}


def lines(cell: dict[str, Any]) -> set[str]:
    return {line.strip() for line in source(cell).splitlines()}


@pytest.mark.slow
@pytest.mark.parametrize("name", grading.names())
def test_marks_of_solution_untouched_file_and_mistakes(name: str, tmp_path: Path) -> None:
    task = grading.load(name)
    given = {"solution": task.solution, "student": task.student}
    for question, pairs in mistakes(name).items():
        given |= {f"{question}-{k}": changed(task.solution, old, new) for k, (old, new) in enumerate(pairs)}
    for identifier, notebook in given.items():
        (tmp_path / f"{identifier}.ipynb").write_text(json.dumps(notebook))
    records = grading.grade(sorted(tmp_path.glob("*.ipynb")), name, tmp_path / "marks.csv")
    marks = {record["identifier"]: record["marks"] for record in records}
    full = {question.name: None if question.manual else question.points for question in task.questions}
    assert marks.pop("solution") == full
    assert marks.pop("student") == {question: None if points is None else 0 for question, points in full.items()}
    wrong = {identifier: identifier.rpartition("-")[0] for identifier in marks}
    assert set(wrong.values()) == {question for question, points in full.items() if points is not None}
    assert marks == {identifier: {**full, question: 0} for identifier, question in wrong.items()}


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
