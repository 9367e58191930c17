"""Embedded colour photographs, cut to crops: train, validation and test come from different photographs.

The files are inside the wheels of scikit-image and scikit-learn, so nothing is downloaded. Every photograph is
shrunk by averaging blocks of f x f pixels, f = 1, 2, 3, 4, and cut by a sliding window.

=========== ========================================== ==================================== =====================
split       photographs                                window                               purpose
=========== ========================================== ==================================== =====================
train       astronaut, rocket, motorcycle (left),      f = 1 to 4, stride a quarter of the  maximum likelihood
            flower, and at a wider stride the Hubble   size (the size for the last three)
            deep field, a retina, a stained tissue
validation  chelsea (a cat)                            f = 1 to 4, no overlap at one f      choice of a checkpoint
test        china (a temple), coffee (a cup)           no overlap: tiles of 64 x 64         all reported numbers
                                                       original pixels
=========== ========================================== ==================================== =====================

A test crop of size 32 is the 2 x 2 average of the test crop of size 64 at the same index. Crops whose pixels have a
standard deviation under `FLAT` (in [0, 1], over all channels, each about its own mean) are left out: empty sky tells
methods apart as little as a blank page.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion.data._decode import shrink

SIZES = (32, 64)
FLAT = 0.03
FACTORS = (1, 2, 3, 4)
TILE = 64

_VARIED = ("astronaut.png", "rocket.jpg", "motorcycle_left.png", "flower.jpg")
_UNIFORM = ("hubble_deep_field.jpg", "retina.jpg", "ihc.png")
_VALIDATION = ("chelsea.png",)
_TEST = ("china.jpg", "coffee.png")
_FOLDERS = {"china.jpg": ("sklearn", "datasets/images"), "flower.jpg": ("sklearn", "datasets/images")}


def crops(split: str, size: int) -> Tensor:
    """Crops of the photographs of `split`: uint8 [N, 3, size, size], the same on every call."""
    if split == "test":
        return _spread([shrink(_cut(_read(name), TILE, TILE), TILE // size) for name in _TEST])
    if split == "validation":
        return torch.cat([_pyramid(name, size, size) for name in _VALIDATION])
    parts = [(name, size // 4) for name in _VARIED] + [(name, size) for name in _UNIFORM]
    return torch.cat([_pyramid(name, size, stride) for name, stride in parts])


def _read(name: str) -> Tensor:
    """One photograph as uint8 [3, height, width], from the installed wheel that carries it."""
    from PIL import Image

    package, folder = _FOLDERS.get(name, ("skimage", "data"))
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{name}: the package {package}, which carries this photograph, is not installed")
    with Image.open(Path(spec.origin).parent / folder / name) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def _cut(picture: Tensor, size: int, stride: int) -> Tensor:
    """Windows of a picture in reading order, [N, 3, size, size], without the nearly constant ones."""
    windows = picture.unfold(1, size, stride).unfold(2, size, stride).permute(1, 2, 0, 3, 4)
    windows = windows.reshape(-1, 3, size, size)
    deviation = windows.float().var((2, 3), correction=0).mean(1).sqrt() / 255
    return windows[deviation >= FLAT]


def _pyramid(name: str, size: int, stride: int) -> Tensor:
    """Windows of one photograph at every factor."""
    picture = _read(name)
    return torch.cat([_cut(shrink(picture, factor), size, stride) for factor in FACTORS])


def _spread(photographs: list[Tensor]) -> Tensor:
    """Alternate between the photographs, and within each jump about it, so that the first few crops show all of it.

    The k-th crop of a photograph with n crops is the one at rank k of the fractional parts of k times the golden ratio:
    any first few are spread evenly over the reading order.
    """
    jumped = []
    for windows in photographs:
        golden = (torch.arange(len(windows), dtype=torch.float64) * 0.6180339887498949) % 1
        jumped.append(windows[golden.argsort().argsort()])
    shared = min(map(len, jumped))
    mixed = torch.stack([windows[:shared] for windows in jumped], dim=1).flatten(0, 1)
    return torch.cat([mixed, *(windows[shared:] for windows in jumped)])
