"""Grids of images: the truth first, each estimate labelled with its PSNR, pixels upscaled without smoothing."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from companion.show.theme import WIDTH, style

_LINE = 0.2  # inches that a line of small text takes


def pixels(name: str, image: "Tensor | np.ndarray") -> np.ndarray:
    """Return an image [channels (1 or 3), height, width] as float [height, width(, 3)], clipped to [0, 1].

    Raises:
        ValueError: for another shape, or for NaN or infinite pixels.
    """
    array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image, dtype=np.float64)
    if array.ndim != 3 or array.shape[0] not in (1, 3):
        raise ValueError(f"{name}: got shape {array.shape}; allowed: [1 or 3, height, width]")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: got NaN or infinite pixels; allowed: finite ones")
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

    Args:
        rows: images [channels (1 or 3), height, width] in [0, 1] (clipped to it), as [row][column].
        titles: one for each column.
        psnr: in dB, as [row][column]; None where there is nothing to say, as beneath the truth.
        row_labels: one for each row, written at its left.
        width: of the figure, in inches.

    Raises:
        ValueError: where rows, titles, psnr and row_labels do not fit together, or an image is not as above.
    """
    columns = len(titles)
    if not rows or any(len(row) != columns for row in rows):
        lengths = [len(row) for row in rows]
        raise ValueError(
            f"rows: got {lengths} images for {columns} titles; allowed: at least one row, an image a title"
        )
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
    with style():
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
