"""What the experiments share: images and priors, seeds, and arrays as they are stored."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from companion import _reads, data, priors
from companion._support import generator
from companion.experiments.arrays import Named, named
from companion.experiments.parts import Part

FLOWERS: dict[str, Any] = {"prior": "glow-flowers64", "data": "flowers", "size": 64}  # Asim et al. 2020's own set
# The numbers of measurements in the figures of Asim et al. 2020.
GRID = (20, 30, 50, 100, 200, 300, 400, 500, 750, 1000, 2500, 5000, 7500, 10000, 12288)


@dataclass(frozen=True, kw_only=True)
class OnImages:
    """Settings of an experiment on images of one data set."""

    data: str = "photographs"
    size: int = 32  # side of the images
    images: int = 12  # held-out images reported on

    def truth(self, part: Part, split: str = "test", number: int | None = None, *, spread: bool = False) -> Tensor:
        """The images reported on, or so many of another split, as :func:`images` gives them; validation ones spread."""
        spread = spread or split == "validation"
        return images(part, self.data, split, number or self.images, self.size, spread=spread)


def images(part: Part, name: str, split: str, number: int, size: int | None = None, *, spread: bool = False) -> Tensor:
    """The first images of a split, at most `number`, [number, C, H, W], on the run's device.

    With `spread`, images at equal distances from the whole split: neighbours may be of one class or one photograph.
    """
    every = data_set(name, split, size) if split == "train" else _held_out(name, split, size)
    number = min(number, len(every))
    chosen = torch.arange(number)
    # indexed, hence a copy: whoever asks may change what it gets
    return every[chosen * len(every) // number if spread else chosen].to(part.device)


def data_set(name: str, split: str, size: int | None = None) -> data.Images | Tensor:
    """All images of a split; 8×8 digits, where larger ones are wanted, fill 20 of 28 pixels, as MNIST's do."""
    if name != "digits" or size in (None, 8):
        return data.load(name, split, size)
    border = (size - 20) // 2
    return pad(interpolate(data.load(name, split)[:], size=(20, 20), mode="bilinear").clamp(0, 1), [border] * 4)


@lru_cache(maxsize=4)
def _held_out(name: str, split: str, size: int | None) -> data.Images | Tensor:
    """Read once a process: every part of a run asks for the same images. Of training images there may be gigabytes."""
    return data_set(name, split, size)


def prior(part: Part, name: str) -> Any:
    """A stored prior on the run's device, loaded once a process: not for those who change it."""
    loaded, read = _prior(name, part.device)
    for path in read:
        _reads.note(path)
    return loaded


def stored_gaussian(part: Part, name: str) -> tuple[Tensor, Tensor]:
    """Factor, [n, k], in float64, and mean, [C, H, W], of a Gaussian among the checkpoints; see :func:`prior`."""
    prior(part, name)  # which notes what it read
    return _wide_gaussian(name, part.device)


@lru_cache(maxsize=1)
def _wide_gaussian(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    exact, _ = _prior(name, device)
    return exact.weight.double(), exact.mean.view(exact.shape)


@lru_cache(maxsize=4)
def _prior(name: str, device: torch.device) -> tuple[Any, frozenset]:
    with _reads.recording() as read:
        loaded = priors.load(name, device)
    return loaded, frozenset(read)


def seed_of(part: Part, *stream: str | int) -> int:
    """A seed of its own for what `stream` names, as ("draw", 3): to be handed on unchanged, never added to."""
    return generator(part.seed, *stream).initial_seed()


def reader(part: Part, name: str, number: int) -> Callable[[Tensor], Tensor]:
    """Which digit an image of 28×28 is: that of its nearest neighbour among `number` labelled training digits."""
    known = images(part, name, "train", number, 28).flatten(1)
    labels = data.load(name, "train").labels
    assert labels is not None  # digits have them
    return lambda x: labels[torch.cdist(x.flatten(1), known).argmin(1).cpu()]


def as_bytes(x: Tensor) -> np.ndarray:
    """Images, clipped to [0, 1], as 8-bit values."""
    return (x.detach().clamp(0, 1) * 255).round().byte().cpu().numpy()


def pictures(x: Tensor, **outer: int | Iterable[Any]) -> Named:
    """Images as 8-bit values with named axes: `outer` (picture, if not given, of a batch), channel, row, column."""
    *batch, channels, height, width = x.shape
    outer = outer or dict.fromkeys(["picture"] * len(batch), len(x))
    return named(as_bytes(x), **outer, channel=channels, row=height, column=width)


def numpy(x: Tensor, digits: int | None = None) -> np.ndarray:
    """Numbers for a result, rounded to so many digits."""
    values = x.detach().cpu().numpy()
    return values if digits is None else values.round(digits)


def by_image(values: Mapping[str, Tensor], digits: int | None = None) -> dict[str, Named]:
    """Numbers of each image, [batch] each, for a result."""
    return {name: named(numpy(value, digits), image=len(value)) for name, value in values.items()}
