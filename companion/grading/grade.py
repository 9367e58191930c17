"""Grade submissions: each runs in a process and folder of its own, under limits, and gets marks, remarks and a page."""

import ast
import csv
import html
import io
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from companion import __version__, _support
from companion.grading.master import Assignment, Question, load, names, source

_RUNNER = Path(__file__).with_name("runner.py")
_PACKAGE = Path(__file__).resolve().parents[1]
_ATTEMPTS = 4  # a run for each cell or test that ends or hangs its process, then no more
_OUTPUT = 20_000  # bytes of a student's output that are kept
_MESSAGES = 2**22  # bytes of messages that a run may send
_SUBMISSION = 2**25  # bytes of a submission that are read
_FILE = 2**26  # bytes of a file that a student's code may write
_PROCESSES = 64
_MASTERS = re.compile(r"\bgrading\b|\bmaster\.ipynb\b")  # what leads to the solutions
_MAXIMUM = "(maximum)"  # the table's first row
_NAMESPACE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")


@dataclass
class _Run:
    """What one process did: where it stands, and what its tests gave (None: passed, else why not)."""

    cell: int | None = None
    test: str | None = None
    ran: bool = False
    done: bool = False
    ended: str = ""
    errors: dict[int, str] = field(default_factory=dict)
    results: dict[str, str | None] = field(default_factory=dict)
    output: bytes = b""
    cut: bool = False


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
        for each student, as Moodle makes it, has their names; where a student's has several notebooks, both names.
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
        For a submission that is not there, two with one identifier, an assignment that is none, or a file `out`
        that is not a table of this assignment.
    """
    task, out = load(assignment), Path(out)
    _support.count("workers", workers)
    paths = _notebooks(submissions)
    pages = out.with_suffix("")
    if pages == out:
        raise ValueError(f"out: got {out}; allowed: a file such as marks.csv")
    _support.writable("out", pages)
    _rows(out, task)  # before hours of grading: a table that is there can be completed
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
    _table(found, task, out)
    return found


@cache
def isolation() -> tuple[str, ...]:
    """Command that starts a process without network in a process table of its own; empty where the system has none."""
    if shutil.which(_NAMESPACE[0]) is None:
        return ()
    return _NAMESPACE if subprocess.run([*_NAMESPACE, "true"], capture_output=True).returncode == 0 else ()


def _notebooks(submissions: Sequence[str | Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for given in map(Path, submissions):
        if not given.exists():
            raise ValueError(f"submission: got {given}; allowed: a notebook or a folder that is there")
        for name, path in _named(given):
            if found.setdefault(name, path) != path:
                allowed = "a name of its own for each, or one folder with a folder for each student"
                raise ValueError(f"submission: got {path} and {found[name]}; allowed: {allowed}")
    if not found:
        raise ValueError(f"submission: got no notebook in {', '.join(map(str, submissions))}; allowed: one or more")
    return found


def _named(given: Path) -> list[tuple[str, Path]]:
    """Identifiers and notebooks: the notebooks' own names or, where each student has a folder, the folders'."""
    if not given.is_dir():
        return [(given.stem, given)]
    if paths := _visible(given, "*.ipynb"):
        return [(path.stem, path) for path in paths]
    paths = _visible(given, "*/*.ipynb")
    several = Counter(path.parent for path in paths)
    return [(path.parent.name + f" {path.stem}" * (several[path.parent] > 1), path) for path in paths]


def _visible(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


@cache
def _made_with() -> dict[str, str]:
    """Versions that marks depend on: the package's, with a digest of its code, and torch's."""
    code = _support.sha256(*sorted(_PACKAGE.rglob("*.py")))
    return {"flow-priors": f"{__version__} ({code[:12]})", "torch": torch.__version__}


def _record(name: str, path: Path, task: Assignment, pages: Path) -> dict[str, Any]:
    """One student's record: the stored one if it is of this submission, assignment and code, else a new one."""
    stored = pages / f"{name}.json"
    try:
        with path.open("rb") as file:
            content = file.read(_SUBMISSION + 1)
    except OSError as error:
        content, failed = b"", f"cannot be read ({type(error).__name__})"
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
    cells, looks, failed = ([], [], failed) if failed else _cells(content, task)
    if failed:
        marks = {question.name: None if question.manual else 0.0 for question in task.questions}
        remarks, output = [f"the submission {failed}"], ""
    else:
        marks, remarks, output = _examine(cells, task)
        remarks = looks + remarks
    total = sum(value for value in marks.values() if value is not None)
    record = {"identifier": name, "digest": digest, "code": _code(cells), "made with": _made_with()}
    record |= {"marks": marks, "automatic": total, "remarks": [_plain(remark) for remark in remarks], "output": output}
    with _support.atomic(pages / f"{name}.html") as part:
        part.write_text(_page(record, task), encoding="utf-8")
    with _support.atomic(stored) as part:
        part.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return record


def _code(cells: list[tuple[int, str]]) -> str:
    """Digest of the code of cells; empty where there are none."""
    return _support.sha256(json.dumps([text for _, text in cells])) if cells else ""


def _compare(records: list[dict[str, Any]], task: Assignment) -> None:
    """Add a remark where two students have the same code, and more of it than they were given."""
    nothing = {"", _code(_cells(json.dumps(task.student).encode(), task)[0])}
    same: dict[str, list[str]] = {}
    for record in records:
        same.setdefault(record["code"], []).append(record["identifier"])
    for record in records:
        others = [name for name in same[record["code"]] if name != record["identifier"]]
        if others and record["code"] not in nothing:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            record["remarks"].append(f"the same code as {others[0]}{more}")


def _cells(content: bytes, task: Assignment) -> tuple[list[tuple[int, str]], list[str], str]:
    """Numbered code cells of a submission without the visible tests, remarks on them, and what is wrong with the file.

    A cell that is marked as a test and is none, changed or a copy, may hold an answer: it stays.
    """
    if len(content) > _SUBMISSION:
        return [], [], f"is larger than {_SUBMISSION // 2**20} MB"
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


def _examine(cells: list[tuple[int, str]], task: Assignment) -> tuple[dict[str, float | None], list[str], str]:
    """Marks, remarks and output: runs until every test has a result, each time without what ended the last run."""
    tests = {f"{q.name}/{number}": text for q in task.questions for number, text in enumerate(q.tests, 1)}
    results: dict[str, str | None] = {}
    ended: dict[int, str] = {}
    run = _Run()
    for _ in range(_ATTEMPTS):
        left = [(number, text) for number, text in cells if number not in ended]
        run = _attempt(left, {key: text for key, text in tests.items() if key not in results}, task)
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
        remarks.append(f"output cut after {_OUTPUT // 1000} kB")
    if not isolation():
        remarks.append("graded with the network open: this system has no user namespaces")
    return marks, remarks, run.output.decode("utf-8", "replace")


def _attempt(cells: list[tuple[int, str]], tests: dict[str, str], task: Assignment) -> _Run:
    """Run the cells and tests in a new process, until it is done, ends, or its time is over."""
    limits = {
        "RLIMIT_CPU": task.seconds + 1,
        "RLIMIT_AS": task.memory_mb * 2**20,
        "RLIMIT_FSIZE": _FILE,
        "RLIMIT_CORE": 0,
    }
    if isolation():
        limits["RLIMIT_NPROC"] = _PROCESSES  # elsewhere it would count all processes of this user
    modules = sorted({name for text in tests.values() for name in _imports(text)})
    token = os.urandom(16).hex()
    first = {"modules": modules, "limits": limits, "cells": cells}
    run = _Run()
    here, there = socket.socketpair()
    with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as folder, here:
        home, path = Path(folder, "home"), Path(folder, "path")
        for made in (home, path):
            made.mkdir()
        (path / _PACKAGE.name).symlink_to(_PACKAGE)  # beside it lie no masters, as in the clone
        with there:
            process = subprocess.Popen(
                [*isolation(), sys.executable, "-P", "-B", str(_RUNNER), str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=home,
                env=_environment(home, path),
                pass_fds=[there.fileno()],
                start_new_session=True,
            )
        try:
            _converse(process, here, first, {"token": token, "tests": list(tests.items())}, task.seconds, run)
        except OSError:
            run.ended = run.ended or "closed its connection to the grader"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            assert process.stdout is not None
            process.stdout.close()
    if not run.done and not run.ended:
        run.ended = f"ended its process (exit code {code})"
    return run


def _converse(
    process: "subprocess.Popen[bytes]", here: socket.socket, first: Any, second: Any, seconds: int, run: _Run
) -> None:
    """Send the cells, then the tests; read messages and output into `run`."""
    assert process.stdout is not None
    over = time.monotonic() + seconds
    here.settimeout(seconds)
    here.sendall(json.dumps(first).encode() + b"\n")
    buffer, received, gone = b"", 0, False
    readers: list[Any] = [here, process.stdout]
    while not run.done:
        left = over - time.monotonic()
        if left <= 0:
            run.ended = f"ran past the limit of {seconds} s"
            return
        ready, _, _ = select.select(readers, [], [], min(left, 0.2))
        if process.stdout in ready and not _keep_output(process.stdout.fileno(), run):
            readers.remove(process.stdout)
        if here in ready:
            piece = here.recv(2**16)
            received += len(piece)
            if not piece or received > _MESSAGES:
                return
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in lines:
                if _hear(line, second["token"], run):
                    here.sendall(json.dumps(second).encode() + b"\n")
        elif gone and not ready:
            return  # a child of the student's code holds the socket open
        gone = process.poll() is not None
    while process.stdout in readers and not run.cut and select.select([process.stdout], [], [], 0)[0]:
        if not _keep_output(process.stdout.fileno(), run):
            return


def _keep_output(number: int, run: _Run) -> bool:
    """Read a piece of output and keep it up to the limit; False at the end of the output."""
    piece = os.read(number, 2**16)
    run.cut = run.cut or len(run.output) + len(piece) > _OUTPUT
    run.output = (run.output + piece)[:_OUTPUT]
    return bool(piece)


def _hear(line: bytes, token: str, run: _Run) -> bool:
    """Take one message; True when the tests are to be sent. Results without the run's token count for nothing."""
    try:
        message = json.loads(line)
        if message.get("token") == token:
            run.test, run.done = message.get("test"), bool(message.get("done"))
            if "passed" in message:
                run.results[message["test"]] = None if message["passed"] else str(message["error"])
        elif "ran" in message and not run.ran:
            run.ran = True
            return True
        elif "cell" in message and not run.ran:
            run.cell = int(message["cell"])
            if "error" in message:
                run.errors[run.cell] = str(message["error"])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        pass  # written by the student's code, not by the runner
    return False


def _imports(text: str) -> set[str]:
    """Modules that a test imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _environment(home: Path, path: Path) -> dict[str, str]:
    """Variables of a run: none of the grader's but the path of commands."""
    one = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    places = {name: str(home) for name in ("HOME", "TMPDIR", "MPLCONFIGDIR")}
    return one | places | {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(path), "MPLBACKEND": "Agg"}


def _plain(text: str) -> str:
    """One line without control characters, short enough for a table."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff\s]+", " ", text).strip()[:300]


def _rows(out: Path, task: Assignment) -> dict[str, dict[str, str]]:
    """Rows, by identifier, of the table that is there; ValueError where it is not one of this assignment.

    A spreadsheet may have saved it with a byte order mark, and other marks between the columns.
    """
    if not out.exists():
        return {}
    try:
        text = out.read_text(encoding="utf-8-sig")
        between = re.match(r'"?identifier"?([,;\t])', text)
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=between[1])) if between else []
    except (OSError, UnicodeDecodeError, csv.Error):
        rows = []
    if not rows or not {question.name for question in task.questions} <= set(rows[0]):
        raise ValueError(f"out: got {out}, which is there; allowed: a new file, or a table in UTF-8 of {task.name}")
    return {row["identifier"]: {key: value or "" for key, value in row.items() if key is not None} for row in rows}


def _table(records: list[dict[str, Any]], task: Assignment, out: Path) -> None:
    """Write the table: what is graded now, into what a person has made of the table since."""
    rows, manual = _rows(out, task), {question.name for question in task.questions if question.manual}
    most = {question.name: question.points for question in task.questions}
    automatic = sum(points for name, points in most.items() if name not in manual)
    first: dict[str, Any] = {"identifier": _MAXIMUM, "marks": most, "automatic": automatic, "remarks": []}
    columns = ["identifier", *most, "automatic", "remarks"]
    for record in [first, *records]:
        name = re.sub(r"^[=+@\t\r-]", r"'\g<0>", record["identifier"])  # a spreadsheet would compute it
        row = {"identifier": name, "automatic": f"{record['automatic']:g}", "remarks": "; ".join(record["remarks"])}
        row |= {question: "" if mark is None else f"{mark:g}" for question, mark in record["marks"].items()}
        kept = rows.get(name, {}).items()
        rows[name] = row | {key: text for key, text in kept if key not in row or (key in manual and not row[key])}
    more = dict.fromkeys(key for row in rows.values() for key in row if key not in columns)
    with _support.atomic(out) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, *more], restval="")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows, key=lambda name: (name != _MAXIMUM, name)))


def _page(record: dict[str, Any], task: Assignment) -> str:
    def row(question: Question) -> str:
        mark = record["marks"][question.name]
        given = "marked by a person" if mark is None else f"{mark:g}"
        return f"<tr><td>{html.escape(question.name)}</td><td>{given}</td><td>{question.points:g}</td></tr>"

    title = html.escape(f"{task.name}: {record['identifier']}")
    rows = "".join(map(row, task.questions))
    remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in record["remarks"])
    versions = html.escape(", ".join(f"{name} {version}" for name, version in record["made with"].items()))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
        f"<table><tr><th>Question</th><th>Points</th><th>of</th></tr>{rows}</table>"
        f"<p>Total of the automatic questions: {record['automatic']:g}</p><ul>{remarks}</ul>"
        f"<p>Made with {versions}.</p>"
        f"<h2>Output</h2><pre>{html.escape(record['output'])}</pre></html>\n"
    )
