"""Curves of methods against one quantity, labelled at their ends, and the line that says what a figure rests on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from companion import evaluate
from companion._support import one_of
from companion.show.theme import COLOURS, GROUND, LABELS, MARKERS, WIDTH, style


def series(
    result: Any,
    name: str,
    *,
    x: str,
    lines: str,
    images: str = "image",
    photo: Any = None,
    minus: object = None,
    only: Sequence[object] | None = None,
    **at: object,
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Read an array of a stored result by the names of its axes, as :func:`curves` and :func:`table` take it.

    ``show.curves(*show.series(run, "psnr", x="m", lines="method"), xlabel="m", ylabel="PSNR (dB)")``

    Parameters
    ----------
    result
        What ``experiments.load`` returns: its ``axes(name)`` gives axis -> labels, its ``take(name, axis=label)`` the
        array over the axes left.
    name
        Of the array.
    x, lines, images
        The axis along the curve, the axis with one curve a label, and the axis of observations. The mean is taken over
        any other axis, such as draws.
    photo
        [images]: numbers of the photographs of which images are crops; the mean of a photograph's crops is then one
        observation.
    minus
        Label of a line to subtract, image by image, from all the others.
    only
        The labels of the lines to read, in this order; by default all.
    at
        axis=label for each axis to read at one place.

    Returns the labels of `x` and label of the line -> [observations, points].
    """
    axes = result.axes(name)
    left = [axis for axis in axes if axis != lines and axis not in at]

    def read(label: object) -> np.ndarray:
        array = np.asarray(result.take(name, **{lines: label}, **at), dtype=np.float64)
        array = np.moveaxis(array, (left.index(images), left.index(x)), (0, 1))
        array = array.reshape(*array.shape[:2], -1).mean(2)
        return array if photo is None else np.stack([array[np.asarray(photo) == k].mean(0) for k in np.unique(photo)])

    wanted = [label for label in (axes[lines] if only is None else only) if label != minus]
    base = 0.0 if minus is None else read(minus)
    return list(axes[x]), {str(label): read(label) - base for label in wanted}


def mean_and_half(name: str, values: Any, length: int) -> tuple[np.ndarray, np.ndarray | None, int | None]:
    """Return mean, half-width of the bar, and number of observations of the curve `name`.

    `values`: [observations, length], whose bar is the 95 % interval of the mean; a pair (mean [length], half-width
    [length]), passed through; or mean [length] alone. ValueError for other shapes.
    """
    pair = [np.asarray(part, dtype=np.float64) for part in (values[:2] if isinstance(values, tuple) else [values])]
    shapes = [part.shape for part in pair]
    if shapes in ([(length,)], [(length,)] * 2):
        return pair[0], pair[1] if len(pair) == 2 else None, None
    if len(pair) > 1 or len(shapes[0]) != 2 or shapes[0][1] != length or shapes[0][0] < 2:
        allowed = f"[observations (2 or more), {length}], (mean, half-width) or [{length}]"
        given = f"shape {shapes[0]}" if len(pair) == 1 else f"shapes {shapes}"
        raise ValueError(f"methods[{name!r}]: got {given}; allowed: {allowed}")
    found = evaluate.interval(pair[0])
    return found.mean.numpy(), found.half.numpy(), found.groups


def curves(
    x: Sequence[float] | Sequence[str],
    methods: Mapping[str, Any],
    *,
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    logy: bool = False,
    levels: Mapping[str, float] | None = None,
    dashed: Sequence[str] = (),
    colours: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    title: str = "",
    ax: Axes | None = None,
    width: float = WIDTH,
    height: float = 3.3,
) -> Figure:
    """Draw one curve a method with its 95 % interval over images, and write its name where it ends.

    Parameters
    ----------
    x
        [points]; shown as the ticks where there are at most eight and room for them. Words stand for categories: their
        points are not joined, and stand side by side.
    methods
        Name -> [images, points], (mean, half-width) or [points]; NaN leaves a gap. Names are those of COLOURS.
    xlabel, ylabel
        Quantity and unit.
    logx, logy
        Whether an axis is logarithmic.
    levels
        Name -> height of a dashed horizontal line in the colour of that name: a ceiling, a published value.
    dashed
        Names whose curves are dashed.
    colours, labels
        Of names that COLOURS lacks; what to write at a curve's end instead of LABELS, "" for nothing.
    ax
        Axes to draw on, of a :func:`figure` with several; by default those of a new figure.
    width, height
        Of a new figure, in inches.

    Raises ValueError for an unknown method, or for shapes that do not fit.
    """
    palette, names = {**COLOURS, **(colours or {})}, {**LABELS, **(labels or {})}
    words = [str(value) for value in x] if any(isinstance(value, str) for value in x) else []
    points = np.asarray(range(len(words)) if words else x, dtype=np.float64)
    if points.ndim != 1 or not methods:
        given = f"shape {points.shape} and {len(methods)} methods"
        raise ValueError(f"x, methods: got {given}; allowed: [points], at least one")
    for name in [*methods, *(levels or {})]:
        one_of("method", name, palette)
    counts = set()
    with style():
        fig = Figure(figsize=(width, height), layout="constrained") if ax is None else ax.figure.figure
        ax = fig.subplots() if ax is None else ax
        ax.set(xscale="log" if logx else "linear", yscale="log" if logy else "linear", ylabel=ylabel, title=title)
        ends = []
        for k, (name, values) in enumerate(methods.items()):
            mean, half, observations = mean_and_half(name, values, len(points))
            at = points + (0.6 * ((k + 0.5) / len(methods) - 0.5) if words else 0.0)
            look: Any = {"color": palette[name], "marker": MARKERS.get(name, "o")}
            line = "none" if words else "--" if name in dashed else "-"
            ax.errorbar(at, mean, yerr=half, capsize=3, elinewidth=1.2, linestyle=line, **look)
            counts.add(observations if half is not None else 0)
            there = np.flatnonzero(np.isfinite(mean))
            if there.size:
                ends.append((np.inf if words else at[there[-1]], mean[there[-1]], names.get(name, name), palette[name]))
        for name, level in (levels or {}).items():
            ax.axhline(level, color=palette[name], linestyle="--", linewidth=1.2)
            if name not in methods:
                ends.append((np.inf, level, names.get(name, name), palette[name]))
        # Frozen, because ticks and labels are placed as fractions of the axes.
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim(), xlabel=xlabel)
        if words:
            ax.set_xticks(points, words)
        else:
            _ticks(ax, points, fig)
        if counts - {0}:
            over = f" over {(counts - {0}).pop()} images" if len(counts) == 1 and None not in counts else ""
            fig.supxlabel(f"bars: 95 % interval of the mean{over}", fontsize=9)
        _label_ends(ax, ends, fig)
    return fig


def _ticks(ax: Axes, points: np.ndarray, fig: Figure) -> None:
    places = (ax.transData + ax.transAxes.inverted()).transform(np.stack([points, points * 0 + 1], axis=1))[:, 0]
    # Labelled from the left where the last label leaves room: axes take about 0.6 of a figure's width, a digit of ten
    # points 0.088 inches.
    place = ax.get_subplotspec()
    inches = 0.6 * fig.get_figwidth() / (place.get_gridspec().ncols if place else 1)
    labelled, end = set(), -np.inf
    for index in np.argsort(places):
        half = 0.044 * len(f"{points[index]:g}")
        if places[index] * inches - half > end + 0.02:
            labelled.add(points[index])
            end = places[index] * inches + half
    # matplotlib chooses where some would have none, but not on a log axis: between powers of ten its own overlap too
    if ax.get_xscale() != "log" and not len(labelled) == len(points) <= 8:
        return
    ax.set_xticks(points, [f"{value:g}" if value in labelled else "" for value in points])
    ax.minorticks_off()


def _label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]], fig: Figure) -> None:
    """Write each label right of its curve's last point, pushed apart where two that end together would overlap."""
    to_axes = ax.transData + ax.transAxes.inverted()
    placed = []
    for x, y, label, colour in ends:
        across, up = to_axes.transform((min(x, ax.get_xlim()[1]), y))
        placed.append((round(float(across), 1) if across < 0.85 else 1.0, float(up), float(across), label, colour))
    # A panel's height in inches is not known before the layout: at least two thirds of its row's share.
    place = ax.get_subplotspec()
    rows = place.get_gridspec().nrows if place else 1
    gap, halo = 0.28 * rows / fig.get_figheight(), [withStroke(linewidth=3, foreground=GROUND)]
    for column in {end[0] for end in placed}:
        together = sorted(end for end in placed if end[0] == column and end[3])
        heights = spread_out([up for _, up, *_ in together], gap)
        for height, (_, _, across, label, colour) in zip(heights, together, strict=True):
            look: Any = {"color": colour, "va": "center", "weight": "bold", "fontsize": 10, "path_effects": halo}
            at = (1.0 if column == 1.0 else across, height)
            ax.annotate(label, at, (7, 0), xycoords="axes fraction", textcoords="offset points", **look)


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Return rising heights moved as little as needed (least squares) to be at least `gap` apart."""
    # Subtracting i * gap turns "at least gap apart" into "rising": isotonic regression by pooling adjacent violators.
    pools: list[list[float]] = []
    for index, height in enumerate(heights):
        pools.append([height - index * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    rising = [float(np.mean(pool)) for pool in pools for _ in pool]
    return [height + index * gap for index, height in enumerate(rising)]


def caption(result: Any, *, images: Any = None, seeds: Any = None, budget: Any = None) -> str:
    """Return the line that says what a figure rests on: profile, images, seeds, budget, device, date, and what waits.

    `result` is what ``experiments.load`` returns. The number of images, the seeds (a list, or a number of draws) and
    the budget (evaluations that each image was given, or words for it) take the place of its settings' of these names;
    without any, the run's own seed and evaluations are told.
    """
    origin = result.provenance
    settings = origin.settings
    images = settings.get("images") if images is None else images
    seeds = settings.get("seeds") if seeds is None else seeds
    budget = settings.get("budget") if budget is None else budget
    facts = [f"profile {origin.profile}"]
    if images is not None:
        facts.append(f"{len(images) if isinstance(images, list) else images} images")
    if isinstance(seeds, int):
        facts.append(f"{seeds} draw{'' if seeds == 1 else 's'}")
    else:
        facts.append(f"seed {origin.seed}" if seeds is None else f"seeds {', '.join(map(str, seeds))}")
    if budget is not None:
        facts.append(f"budget {budget} evaluations an image" if isinstance(budget, int) else f"budget {budget}")
    elif origin.evaluations:
        facts.append(f"{origin.evaluations:,} forward evaluations")
    return f"Stored run: {', '.join(facts)}; {_duration(origin.wall_seconds)} on {origin.device}, {origin.date}."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
