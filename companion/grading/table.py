"""Where marks are kept: the table of a course, and each student's page."""

import csv
import html
import io
import re
from pathlib import Path
from typing import Any

from companion import _support
from companion.grading.master import Assignment, Question

_MAXIMUM = "(maximum)"  # the table's first row


def rows_of(out: Path, task: Assignment) -> dict[str, dict[str, str]]:
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


def write(records: list[dict[str, Any]], task: Assignment, out: Path) -> None:
    """Write the table: what is graded now, into what a person has made of the table since."""
    rows, manual = rows_of(out, task), {question.name for question in task.questions if question.manual}
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


def page(record: dict[str, Any], task: Assignment) -> str:
    """A student's page, HTML: points of each question, remarks, versions and output."""

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
