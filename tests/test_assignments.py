"""The assignments: full marks for the solution, none for the untouched file, a plausible mistake loses its question."""

import json
from pathlib import Path
from typing import Any

import pytest

from companion import grading
from companion.grading.master import source

# Of each question, what a mistake puts in place of what.
MISTAKES = {
    "01-coupling-flow": {
        "encode": ("torch.exp(-s)], 1), -s", "torch.exp(-s)], 1), s"),
        "decode": (
            "z[:, 1] * torch.exp(scale(first)) + shift(first)",
            "(z[:, 1] + shift(first)) * torch.exp(scale(first))",
        ),
        "density": (" + log_det", " - log_det"),
        "fit": ("(-log_prob(x).mean())", "log_prob(x).mean()"),
    },
}


def changed(notebook: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    found = [cell for cell in notebook["cells"] if old in source(cell)]
    assert len(found) == 1
    cells = [{**cell, "source": source(cell).replace(old, new)} for cell in notebook["cells"]]
    return {**notebook, "cells": cells}


@pytest.mark.slow
@pytest.mark.parametrize("name", grading.names())
def test_marks_of_solution_untouched_file_and_mistakes(name: str, tmp_path: Path) -> None:
    task = grading.load(name)
    given = {"solution": task.solution, "student": task.student}
    given |= {question: changed(task.solution, *mistake) for question, mistake in MISTAKES[name].items()}
    for identifier, notebook in given.items():
        (tmp_path / f"{identifier}.ipynb").write_text(json.dumps(notebook))
    records = grading.grade(sorted(tmp_path.glob("*.ipynb")), name, tmp_path / "marks.csv")
    marks = {record["identifier"]: record["marks"] for record in records}
    full = {question.name: None if question.manual else question.points for question in task.questions}
    assert marks.pop("solution") == full
    assert marks.pop("student") == {question: None if points is None else 0 for question, points in full.items()}
    assert set(marks) == {question for question, points in full.items() if points is not None}
    for question, got in marks.items():
        assert got == {**full, question: 0}


@pytest.mark.parametrize("name", grading.names())
def test_student_file_holds_no_solution(name: str) -> None:
    task = grading.load(name)
    student = {line.strip() for cell in task.student["cells"] for line in source(cell).splitlines()}
    solved = {line.strip() for cell in task.solution["cells"] for line in source(cell).splitlines()}
    assert all(old not in "\n".join(student) for old, _ in MISTAKES[name].values())
    assert not any("SOLUTION" in line or "HIDDEN" in line or "Rubric" in line for line in student)
    assert solved - student  # the solution has lines of its own
