"""A table of results: one row a method, one column a point, means with their intervals."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from companion import evaluate
from companion.show.output import emit, figure_html, text
from companion.show.theme import LABELS


def table(
    columns: Sequence[object],
    rows: Mapping[str, Any],
    *,
    caption: str,
    corner: str = "",
    form: str = ".1f",
    labels: Mapping[str, str] | None = None,
    anchor: str | None = None,
) -> None:
    """Show a table; arguments are those of :func:`curves`, so that ``show.table(*show.series(...))`` tells its numbers.

    Parameters
    ----------
    columns
        Heads of the columns.
    rows
        Name of a row (a method of LABELS, or other words) -> an array [observations, columns], shown as the mean ± half
        of its 95 % interval; or one value a column: a number, an `evaluate.Interval`, words, or None for nothing.
    corner, form, labels
        Head of the column of names; format of the numbers; names of rows in place of those of LABELS.
    caption, anchor
        As for :func:`companion.show.display`.

    Raises ValueError for a blank caption, for no row, or for a row that does not fit the columns.
    """
    caption = text("caption", caption)
    if not rows:
        raise ValueError("rows: got none; allowed: at least one")
    names = {**LABELS, **(labels or {})}
    lines = [[corner, *map(str, columns)]]
    for name, values in rows.items():
        if isinstance(values, np.ndarray) and values.ndim == 2:
            values = [evaluate.interval(each) for each in values.T]
        cells = ["" if value is None else value if isinstance(value, str) else f"{value:{form}}" for value in values]
        if len(cells) != len(columns):
            raise ValueError(f"rows[{name!r}]: got {len(cells)} values; allowed: {len(columns)}, one for each column")
        lines.append([names.get(name, name), *cells])
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in lines[0])
    body = ""
    for name, *cells in lines[1:]:
        body += f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
    html = f'<table class="table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    wide = f'<div style="overflow-x:auto">{html}</div>'
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    plain = "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)
    emit({"text/html": figure_html("table", wide, caption, anchor), "text/plain": f"{caption}\n{plain}"})
