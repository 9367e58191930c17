"""Grids of images: the truth first, each estimate labelled with its PSNR, pixels upscaled without smoothing."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from companion import evaluate
from companion.show.theme import LABELS, WIDTH, style

_LINE = 0.2  # inches that a line of small text takes


def pixels(name: str, image: "Tensor | np.ndarray") -> np.ndarray:
    """Return an image [channels (1 or 3), height, width] as float [height, width(, 3)], clipped to [0, 1].

    Bytes (uint8) are levels of 255. ValueError for another shape, for NaN or infinite pixels, for other whole numbers,
    and for pixels outside [-4, 5], which are no image of [0, 1], whatever noise is on it.
    """
    given = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    if given.ndim != 3 or given.shape[0] not in (1, 3):
        raise ValueError(f"{name}: got shape {given.shape}; allowed: [1 or 3, height, width]")
    array = given.astype(np.float64) / (255 if given.dtype == np.uint8 else 1)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: got NaN or infinite pixels; allowed: finite ones")
    whole = given.dtype != np.uint8 and not np.issubdtype(given.dtype, np.floating)
    if whole or array.min() < -4 or array.max() > 5:
        levels = f"{given.dtype} pixels from {array.min():g} to {array.max():g}"
        raise ValueError(f"{name}: got {levels}; allowed: floating-point ones in [0, 1], or uint8 ones in [0, 255]")
    return np.clip(array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, -1), 0, 1)


def images(
    rows: Sequence[Sequence["Tensor | np.ndarray"]],
    titles: Sequence[str],
    *,
    psnr: Sequence[Sequence[float | None]] | None = None,
    row_labels: Sequence[str] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Draw a grid of images, one problem a row and one method a column, the truth in the first column.

    Parameters
    ----------
    rows
        Images [channels (1 or 3), height, width] in [0, 1] (clipped to it) or of bytes, as [row][column].
    titles
        One for each column.
    psnr
        In dB, as [row][column]; None where there is nothing to say, as beneath the truth.
    row_labels, width
        Words at the left of each row; width of the figure in inches.

    Raises ValueError where rows, titles, psnr and row_labels do not fit together, or an image is not as above.
    """
    columns = len(titles)
    if not rows or any(len(row) != columns for row in rows):
        given = f"{[len(row) for row in rows]} images for {columns} titles"
        raise ValueError(f"rows: got {given}; allowed: at least one row, an image a title")
    if psnr is not None and [len(values) for values in psnr] != [columns] * len(rows):
        raise ValueError(f"psnr: got {[len(values) for values in psnr]}; allowed: {len(rows)} rows of {columns}")
    if row_labels is not None and len(row_labels) != len(rows):
        raise ValueError(f"row_labels: got {len(row_labels)}; allowed: {len(rows)}, one for each row")
    drawn = [[pixels(f"rows[{i}][{j}]", image) for j, image in enumerate(row)] for i, row in enumerate(rows)]

    cell = (width - (_LINE if row_labels is not None else 0)) / columns
    letters = max(6, int(cell / 0.085))
    wrapped = [textwrap.fill(title, letters) for title in titles]
    lines = max(title.count("\n") + 1 for title in wrapped)
    tall = drawn[0][0].shape[0] / drawn[0][0].shape[1]
    height = len(rows) * (cell * tall + (_LINE if psnr is not None else 0.04)) + lines * _LINE
    with style(), mpl.rc_context({"axes.grid": False}):  # whose lines, never seen here, take a tenth of the time
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
        fig = Figure(figsize=(width, height), layout=layout)
        axes = fig.subplots(len(rows), columns, squeeze=False)
        for i, row in enumerate(drawn):
            for j, image in enumerate(row):
                ax = axes[i, j]
                ax.imshow(image, vmin=0, vmax=1, interpolation="nearest")
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                if i == 0:
                    ax.set_title(wrapped[j], fontsize=10, pad=3)
                if j == 0 and row_labels is not None:
                    ax.set_ylabel(row_labels[i], fontsize=10)
                value = None if psnr is None else psnr[i][j]
                if value is not None:
                    ax.set_xlabel(f"{value:.1f} dB", fontsize=10, labelpad=2)
    return fig


def pictures(
    truth: "Tensor | np.ndarray",
    estimates: Mapping[str, "Tensor | np.ndarray"],
    *,
    first: int = 4,
    where: Tensor | None = None,
    bare: Sequence[str] = (),
    row_labels: Sequence[str] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Draw the first few true images beside their estimates, each labelled with its PSNR, as :func:`images` does.

    Parameters
    ----------
    truth
        True images [batch, channels, height, width] in [0, 1] or of bytes.
    estimates
        Name of a column (a method of LABELS, or any other words) -> images of the same shape.
    first
        How many images to show, one a row.
    where
        The pixels that count, as for :func:`companion.evaluate.psnr`.
    bare
        Columns without a PSNR: measurements, for example.
    row_labels, width
        As for :func:`images`, whose errors are these too.
    """
    if "truth" in estimates:
        raise ValueError(
            "estimates: got one named 'truth'; allowed: other names, as the true images are the first column"
        )
    columns = {name: _unit(batch)[:first] for name, batch in {"truth": truth, **estimates}.items()}
    true = columns["truth"]
    if where is not None and where.dim() == len(true.shape) and len(where) > 1:
        where = where[:first]
    scored = [name for name in estimates if name not in bare]
    scores = {name: evaluate.psnr(columns[name], true, where).tolist() for name in scored}
    rows = [[batch[i] for batch in columns.values()] for i in range(len(true))]
    psnr = [[scores[name][i] if name in scores else None for name in columns] for i in range(len(true))]
    return images(rows, [LABELS.get(name, name) for name in columns], psnr=psnr, row_labels=row_labels, width=width)


def _unit(batch: "Tensor | np.ndarray") -> Tensor:
    """Images as floating-point numbers in [0, 1], from bytes or from such numbers."""
    given = torch.as_tensor(batch).detach().cpu()
    return given.double() / 255 if given.dtype == torch.uint8 else given
