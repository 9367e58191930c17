"""Arrays whose axes have names, and labels where their positions mean something."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Axes = dict[str, list[Any]]  # name -> labels, in the order of the array's axes


@dataclass(frozen=True)
class Named:
    """An array with the names and labels of its axes; made by :func:`named`."""

    values: np.ndarray
    axes: Axes


def named(values: Any, **axes: int | Iterable[Any]) -> Named:
    """An array with an axis for each keyword, in order: labels (text or numbers), or a length where there are none.

    ``named(psnr, m=(154, 307), method=("glow", "tv"), image=12)`` has shape (2, 2, 12). ValueError for another shape.
    """
    array = np.asarray(values)
    labels = {
        name: list(range(given)) if isinstance(given, int) else [_plain(label) for label in given]
        for name, given in axes.items()
    }
    check(array, labels)
    return Named(array, labels)


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label


def check(array: np.ndarray, axes: Mapping[str, Sequence[Any]]) -> None:
    """ValueError unless the array has as many entries along each axis as there are labels, and no label twice."""
    lengths = {name: len(labels) for name, labels in axes.items()}
    if array.shape != tuple(lengths.values()):
        given = ", ".join(f"{name}={length}" for name, length in lengths.items())
        raise ValueError(f"axes: got {given or 'none'} for an array of shape {array.shape}; allowed: one for each axis")
    for name, labels in axes.items():
        if len(set(labels)) < len(labels):
            raise ValueError(f"{name}: got labels {labels}; allowed: each once")


def collect(arrays: Sequence[Mapping[str, Named]], **outer: int | Iterable[Any]) -> dict[str, Named]:
    """Arrays of parts, put together: those of one name stacked under the axes `outer`, over which the parts run.

    The parts come in the order of a nested loop over `outer`, the last axis fastest.
    """
    found, labels = {}, {axis: range(given) if isinstance(given, int) else list(given) for axis, given in outer.items()}
    lengths = [len(given) for given in labels.values()]
    for name in arrays[0]:
        each = [part[name] for part in arrays]
        stacked = np.stack([part.values for part in each])
        found[name] = named(stacked.reshape(*lengths, *stacked.shape[1:]), **labels, **each[0].axes)
    return found


def take(name: str, array: Named, wanted: Mapping[str, Any]) -> np.ndarray:
    """The part of an array at one label (the axis goes), a list of labels, or a slice of positions of each axis named.

    ValueError for an axis or a label that is not there, with those that are.
    """
    values = array.values
    for axis in wanted:
        if axis not in array.axes:
            raise ValueError(f"axis: got {axis!r} of {name!r}; allowed: {', '.join(array.axes) or 'none'}")
    for place, (axis, labels) in reversed(list(enumerate(array.axes.items()))):  # what goes shifts no axis before it
        if axis in wanted:
            values = values[(slice(None),) * place + (_positions(axis, labels, wanted[axis]),)]
    return values


def _positions(axis: str, labels: list[Any], wanted: Any) -> Any:
    if isinstance(wanted, slice):
        return wanted
    if isinstance(wanted, list | tuple | range | np.ndarray):
        return [_positions(axis, labels, each) for each in wanted]
    if wanted not in labels:
        allowed = f"0 to {len(labels) - 1}" if labels == list(range(len(labels))) else ", ".join(map(str, labels))
        raise ValueError(f"{axis}: got {wanted!r}; allowed: {allowed}")
    return labels.index(wanted)
