"""A table of results: one row a method, one column a point, means with their intervals."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

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
        of its 95 % interval; or one value a column: a number, an `evaluate.Interval`, words, or None for nothing. Or
        name of a group -> its rows, which then stand under that name.
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
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in lines[0])
    body = ""
    for group, members in _grouped(rows):
        if group is not None:
            lines.append([group, *[""] * len(columns)])
            span = f'scope="rowgroup" colspan="{len(columns) + 1}"'
            body += f'<tr class="group"><th {span}>{escape(group)}</th></tr>'
        for name, values in members.items():
            line = [names.get(name, name), *_cells(name, values, form, len(columns))]
            lines.append(line)
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in line[1:])
            body += f'<tr><th scope="row">{escape(line[0])}</th>{cells}</tr>'
    html = f'<table class="table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    wide = f'<div style="overflow-x:auto">{html}</div>'
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    plain = "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)
    emit({"text/html": figure_html("table", wide, caption, anchor), "text/plain": f"{caption}\n{plain}"})


def _grouped(rows: Mapping[str, Any]) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    """Groups with their rows; a row of no group is alone in one without a name. ValueError for a group of none."""
    for name, values in rows.items():
        if isinstance(values, Mapping) and not values:
            raise ValueError(f"rows[{name!r}]: got none; allowed: at least one")
        yield (name, values) if isinstance(values, Mapping) else (None, {name: values})


def _cells(name: str, values: Any, form: str, columns: int) -> list[str]:
    """The cells of a row, as words; ValueError where they are not one for each column."""
    if getattr(values, "ndim", 0) == 2:
        values = [evaluate.interval(each) for each in values.T]
    cells = ["" if value is None else value if isinstance(value, str) else f"{value:{form}}" for value in values]
    if len(cells) != columns:
        raise ValueError(f"rows[{name!r}]: got {len(cells)} values; allowed: {columns}, one for each column")
    return cells
