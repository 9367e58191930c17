"""Grade submissions: each runs in a process and folder of its own, under limits, and gets marks, remarks and a page."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from companion import __version__, _support
from companion.grading.master import Assignment, load
from companion.grading.sandbox import OUTPUT, PACKAGE, Run, attempt, isolation
from companion.grading.submissions import SIZE, code_cells, code_digest, notebooks
from companion.grading.table import page, rows_of, write

_ATTEMPTS = 4  # a run for each cell or test that ends or hangs its process, then no more


def grade(
    submissions: Sequence[str | Path],
    assignment: str | Path,
    out: str | Path,
    *,
    workers: int = 1,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Grade notebooks, or the notebooks in folders, and write or complete a table of marks.

    A question's points are given when all its tests pass; one that a person marks stays empty. Beside `out`, a folder
    of the same name holds for each student the record (``.json``) and a page (``.html``). A record that matches the
    submission, the assignment, the package's code and torch's version is not made again, so a grading that was stopped
    goes on. A table that is there keeps what a person filled in for questions of theirs, columns of their own, and the
    rows of students not graded now.

    Parameters
    ----------
    submissions
        Notebooks, whose names without ``.ipynb`` identify the students, or folders of them. A folder of folders, one
        for each student, as Moodle makes it, has their names; where a student's has several notebooks, both names; one
        without a notebook gets a remark.
    assignment
        Name of an assignment of this checkout, or a folder with a master.
    out
        The table: identifier, a column a question, automatic (the sum of the questions that tests mark), remarks;
        its first row has the most that each can be.
    workers
        Submissions graded side by side.
    progress
        Show a bar on stderr.

    Returns
    -------
    list of dict
        The records, ordered by identifier.

    Raises
    ------
    ValueError
        For a submission that is not there, notebooks beside students' folders, two with one identifier, an assignment
        that is none, or a file `out` that is not a table of this assignment.
    """
    task, out = load(assignment), Path(out)
    _support.count("workers", workers)
    pages = out.with_suffix("")
    paths = notebooks(submissions, pages)
    if pages == out:
        raise ValueError(f"out: got {out}; allowed: a file such as marks.csv")
    _support.writable("out", pages)
    rows_of(out, task)  # before hours of grading: a table that is there can be completed
    records: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(_record, name, path, task, pages): name for name, path in paths.items()}
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), desc=task.name, disable=not progress):
                records[jobs[job]] = job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    found = [records[name] for name in sorted(records)]
    _compare(found, task)
    write(found, task, out)
    return found


@cache
def _made_with() -> dict[str, str]:
    """Versions that marks depend on: the package's, with a digest of its code, and torch's."""
    code = _support.sha256(*sorted(PACKAGE.rglob("*.py")))
    return {"flow-priors": f"{__version__} ({code[:12]})", "torch": torch.__version__}


def _record(name: str, path: Path, task: Assignment, pages: Path) -> dict[str, Any]:
    """One student's record: the stored one if it is of this submission, assignment and code, else a new one."""
    stored = pages / f"{name}.json"
    try:
        with path.open("rb") as file:
            content = file.read(SIZE + 1)
    except OSError as error:
        content, failed = b"", "has no notebook" if path.is_dir() else f"cannot be read ({type(error).__name__})"
    else:
        failed = ""
    digest = _support.sha256(content, task.digest, *_made_with().values())
    if stored.is_file():
        try:
            record: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8"))
            if record["digest"] == digest:
                return record
        except (ValueError, KeyError, TypeError):
            pass  # not whole: made anew
    cells, looks, failed = ([], [], failed) if failed else code_cells(content, task)
    if failed:
        marks = {question.name: None if question.manual else 0.0 for question in task.questions}
        remarks, output = [f"the submission {failed}"], ""
    else:
        marks, remarks, output = _examine(cells, task)
        remarks = looks + remarks
    total = sum(value for value in marks.values() if value is not None)
    record = {"identifier": name, "digest": digest, "code": code_digest(cells), "made with": _made_with()}
    record |= {"marks": marks, "automatic": total, "remarks": [_plain(remark) for remark in remarks], "output": output}
    with _support.atomic(pages / f"{name}.html") as part:
        part.write_text(page(record, task), encoding="utf-8")
    with _support.atomic(stored) as part:
        part.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return record


def _compare(records: list[dict[str, Any]], task: Assignment) -> None:
    """Add a remark where two students have the same code, and more of it than they were given."""
    nothing = {"", code_digest(code_cells(json.dumps(task.student).encode(), task)[0])}
    same: dict[str, list[str]] = {}
    for record in records:
        same.setdefault(record["code"], []).append(record["identifier"])
    for record in records:
        others = [name for name in same[record["code"]] if name != record["identifier"]]
        if others and record["code"] not in nothing:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            record["remarks"].append(f"the same code as {others[0]}{more}")


def _examine(cells: list[tuple[int, str]], task: Assignment) -> tuple[dict[str, float | None], list[str], str]:
    """Marks, remarks and output: runs until every test has a result, each time without what ended the last run."""
    tests = {f"{q.name}/{number}": text for q in task.questions for number, text in enumerate(q.tests, 1)}
    results: dict[str, str | None] = {}
    ended: dict[int, str] = {}
    run = Run()
    for _ in range(_ATTEMPTS):
        left = [(number, text) for number, text in cells if number not in ended]
        run = attempt(left, {key: text for key, text in tests.items() if key not in results}, task)
        results |= run.results
        if run.done:
            break
        if run.test is not None and run.test not in results:
            results[run.test] = run.ended
        elif run.cell is not None and not run.ran:
            ended[run.cell] = run.ended
    marks: dict[str, float | None] = {}
    remarks = [f"code cell {number} {text}; it was left out" for number, text in ended.items()]
    remarks += [f"code cell {number}: {text}" for number, text in run.errors.items()]
    for question in task.questions:
        failed = [
            results.get(key, f"not tested, since the code {run.ended}")
            for key in (f"{question.name}/{number}" for number in range(1, len(question.tests) + 1))
            if results.get(key, "") is not None
        ]
        marks[question.name] = None if question.manual else 0.0 if failed else question.points
        remarks += [f"{question.name}: {failed[0]}"] if failed else []
    if run.cut:
        remarks.append(f"output cut after {OUTPUT // 1000} kB")
    if not isolation():
        remarks.append("graded with the network open: this system has no user namespaces")
    return marks, remarks, run.output.decode("utf-8", "replace")


def _plain(text: str) -> str:
    """One line without control characters, short enough for a table."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff\s]+", " ", text).strip()[:300]
