"""Curves of methods against one quantity, labelled at their ends, and the line that says what a figure rests on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import stdtrit

from companion._support import one_of
from companion.show.theme import COLOURS, LABELS, MARKERS, WIDTH, style

SPREADS = ("standard error", "95 % interval")


def mean_and_spread(
    name: str, values: Any, length: int, spread: str
) -> tuple[np.ndarray, np.ndarray | None, int | None]:
    """Return mean, half-width of the bar, and number of images of one curve.

    Args:
        name: of the curve, for the error.
        values: array [images, length]; or a pair (mean [length], half-width [length]), which is passed through; or
            mean [length] alone.
        length: number of points.
        spread: "standard error" of the mean over images, or the "95 % interval" of that mean (Student's t).

    Raises:
        ValueError: for another shape, or for fewer than two images.
    """
    if isinstance(values, tuple):
        pair = [np.asarray(part, dtype=np.float64) for part in values]
        if [part.shape for part in pair] != [(length,)] * 2:
            shapes = [part.shape for part in pair]
            raise ValueError(f"methods[{name!r}]: got shapes {shapes}; allowed: (mean, half-width) of {length} points")
        return pair[0], pair[1], None
    array = np.asarray(values, dtype=np.float64)
    if array.shape == (length,):
        return array, None, None
    if array.ndim != 2 or array.shape[1] != length or array.shape[0] < 2:
        allowed = f"[images (2 or more), {length}], (mean, half-width) or [{length}]"
        raise ValueError(f"methods[{name!r}]: got shape {array.shape}; allowed: {allowed}")
    images = array.shape[0]
    error = array.std(axis=0, ddof=1) / np.sqrt(images)
    return array.mean(axis=0), error * (stdtrit(images - 1, 0.975) if spread == SPREADS[1] else 1.0), images


def curves(
    x: Sequence[float],
    methods: Mapping[str, Any],
    *,
    xlabel: str,
    ylabel: str,
    spread: str = "95 % interval",
    logx: bool = False,
    logy: bool = False,
    colours: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    width: float = WIDTH,
    height: float = 3.3,
) -> Figure:
    """Draw one curve a method, with error bars over images, and write its name at its end.

    Args:
        x: [points]; shown as the ticks where there are at most eight and room for them.
        methods: name -> [images, points], (mean, half-width) or [points]; NaN leaves a gap. Names are those of COLOURS.
        xlabel: quantity and unit of x.
        ylabel: quantity and unit of y.
        spread: what the bars are: "standard error" or "95 % interval" of the mean; written beneath the axis.
        logx: whether x is on a logarithmic axis.
        logy: whether y is on a logarithmic axis.
        colours: of names that COLOURS lacks.
        labels: what to write at a curve's end instead of LABELS.
        width: of the figure, in inches.
        height: of the figure, in inches.

    Raises:
        ValueError: for an unknown method or spread, or for shapes that do not fit.
    """
    one_of("spread", spread, SPREADS)
    palette = {**COLOURS, **(colours or {})}
    names = {**LABELS, **(labels or {})}
    points = np.asarray(x, dtype=np.float64)
    if points.ndim != 1 or not methods:
        raise ValueError(
            f"x, methods: got shape {points.shape} and {len(methods)} methods; allowed: [points], at least one"
        )
    counts = set()
    with style():
        fig = Figure(figsize=(width, height), layout="constrained")
        ax = fig.subplots()
        ax.set(xscale="log" if logx else "linear", yscale="log" if logy else "linear", ylabel=ylabel)
        ends = []
        for name, values in methods.items():
            one_of("method", name, palette)
            mean, half, images = mean_and_spread(name, values, len(points), spread)
            marker = MARKERS.get(name, "o")
            ax.errorbar(points, mean, yerr=half, capsize=3, elinewidth=1.2, color=palette[name], marker=marker)
            counts.add(images if half is not None else 0)
            there = np.flatnonzero(np.isfinite(mean))
            if there.size:
                ends.append((points[there[-1]], mean[there[-1]], names.get(name, name), palette[name]))
        # Frozen, because ticks and labels are placed as fractions of the axes.
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
        _ticks(ax, points)
        ax.set_xlabel(xlabel)
        if counts - {0}:
            fig.supxlabel(_explained(spread, counts - {0}), fontsize=9)
        _label_ends(ax, ends, height)
    return fig


def _explained(spread: str, counts: set[int | None]) -> str:
    over = f" over {counts.pop()} images" if len(counts) == 1 and None not in counts else ""
    return f"bars: {spread} of the mean{over}" if spread == SPREADS[1] else f"bars: ± 1 {spread}{over}"


def _ticks(ax: Axes, points: np.ndarray) -> None:
    places = (ax.transData + ax.transAxes.inverted()).transform(np.stack([points, points * 0 + 1], axis=1))[:, 0]
    # Labels of points closer than this, as a fraction of the axis, would run into each other.
    gap, labelled, last = 0.08, set(), -1.0
    for index in np.argsort(places):
        if places[index] - last > gap:
            labelled.add(points[index])
            last = places[index]
    # matplotlib chooses where some would have none, but not on a log axis: between powers of ten its own overlap too
    if ax.get_xscale() != "log" and not len(labelled) == len(points) <= 8:
        return
    ax.set_xticks(points, [f"{value:g}" if value in labelled else "" for value in points])
    ax.minorticks_off()


def _label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]], height: float) -> None:
    """Write each label right of the axes at its curve's height, pushed apart where two would overlap."""
    to_axes = ax.transData + ax.transAxes.inverted()
    placed = sorted((float(to_axes.transform((x, y))[1]), label, colour) for x, y, label, colour in ends)
    heights = spread_out([at for at, _, _ in placed], gap=0.28 / height)
    for at, (_, label, colour) in zip(heights, placed, strict=True):
        ax.text(1.02, at, label, transform=ax.transAxes, color=colour, va="center", weight="bold", fontsize=10)


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


def caption(result: Any, *, images: object = None, seeds: object = None, budget: object = None) -> str:
    """Return the line that says what a figure rests on: profile, images, seeds, budget, device and date.

    Args:
        result: what ``experiments.load`` returns; its settings `images`, `seeds` and `budget` are used if they exist.
        images: number of images, in place of the settings'.
        seeds: a list of seeds, or a number of draws, in place of the settings'; else the run's seed.
        budget: evaluations that each image was given, or words for it, in place of the settings'; else the evaluations
            of the whole run, if it made any.
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
        facts.append(f"seed {origin.seed}" if seeds is None else f"seeds {_listed(seeds)}")
    if budget is not None:
        facts.append(f"budget {budget} evaluations an image" if isinstance(budget, int) else f"budget {budget}")
    elif origin.evaluations:
        facts.append(f"{origin.evaluations:,} forward evaluations")
    waits = f" Pending a new run: {result.pending}." if result.pending else ""
    return f"Stored run: {', '.join(facts)}; {_duration(origin.wall_seconds)} on {origin.device}, {origin.date}.{waits}"


def _listed(values: object) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list | tuple | range) else str(values)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
