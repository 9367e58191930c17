"""Colour photographs cut to crops: train, validation and test come from different photographs.

Three sources, none of which needs a network: photographs inside the wheels of scikit-image and scikit-learn; the 24
Kodak photographs in ``data/images``, stored at half size (averages of 2 x 2 pixels); a zip of the user's with 938
photographs of ImageNet. Before it is cut by a sliding window, a photograph is shrunk by averaging f x f pixels.

============ ========== ========================================== ================================================
set          split      photographs                                windows
============ ========== ========================================== ================================================
photos       train      astronaut, rocket, motorcycle (left),      f = 1 to 4, stride a quarter of the size (the
                        flower; Hubble deep field, retina, tissue  size for the last three)
photos       validation chelsea (a cat)                            f = 1 to 4, no overlap at one f
china-coffee test       china (a temple), coffee (a cup)           no overlap: tiles of 64 x 64 original pixels
kodak        test       the 24 Kodak photographs, 250 x 250        three of each: centres of the thirds of its middle
                                                                   row (column, if it is higher than wide)
photographs  train      892 of ImageNet, and those of photos       f = 1 and 2, strides 3/4 and 1/2 of the size
photographs  validation 46 of ImageNet                             as train
============ ========== ========================================== ================================================

A china-coffee crop of size 32 is the 2 x 2 average of the crop of size 64 at the same index. But for Kodak's, crops
whose pixels have a standard deviation under `FLAT` (in [0, 1], over all channels, each about its own mean) are left
out: empty sky tells methods apart as little as a blank page. Kodak's middle thirds come first, so that 24 crops are one
of each photograph; nothing is left out there, so that nobody's choice is in the test set.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from companion import _support
from companion.data import _decode
from companion.data._sources import SOURCES, locate

SIZES = (32, 64)
FLAT = 0.03
FACTORS = (1, 2, 3, 4)
TILE = 64

_VARIED = ("astronaut.png", "rocket.jpg", "motorcycle_left.png", "flower.jpg")
_UNIFORM = ("hubble_deep_field.jpg", "retina.jpg", "ihc.png")
_VALIDATION = ("chelsea.png",)
_TEST = ("china.jpg", "coffee.png")
_FOLDERS = {"china.jpg": ("sklearn", "datasets/images"), "flower.jpg": ("sklearn", "datasets/images")}


def crops(name: str, split: str, size: int) -> tuple[Tensor, Tensor]:
    """Crops of one split, uint8 [N, 3, size, size], and the number of each one's photograph, int64 [N]."""
    if name == "kodak" or (split == "test" and name != "china-coffee"):
        return _kodak(size)
    if name == "china-coffee":
        return interleave([_decode.shrink(_cut(_read(file), TILE, TILE), TILE // size) for file in _TEST])
    if name == "photographs":
        photographs = _decode.read_photographs(locate(name, *SOURCES[name].files), split)
        windows_of = [windows(each, size) for each in photographs]
        return interleave(windows_of + (_embedded(split, size) if split == "train" else []))
    parts = _embedded(split, size)
    return torch.cat(parts), torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))


def windows(picture: Tensor, size: int, file: Path | None = None, flush: bool = False) -> Tensor:
    """Windows of a photograph [3, height, width] at two scales, [N, 3, size, size].

    At the largest scale that leaves its shorter side at least five times `size` with strides of 3/4 of the size, and at
    half of it with strides of 1/2; with `flush`, where the strides leave a margin, a last window lies at the far edge.
    Without, the crops of "photographs", which stored priors were trained on, stay what they were. ValueError naming
    `file` for a photograph smaller than `size`.
    """
    shorter = min(picture.shape[1:])
    if shorter < size:
        given = "{1}x{0}".format(*picture.shape[1:])
        raise ValueError(f"{file}: got a picture of {given} pixels; allowed: at least {size}x{size}")
    factor = max(1, shorter // (5 * size))
    return _pyramid(picture, size, (factor, 2 * factor), (max(1, 3 * size // 4), max(1, size // 2)), flush)


def interleave(photographs: list[Tensor], numbers: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """Crops [N, 3, size, size] of photographs in turn, and the number of each one's photograph (default: its place).

    The first crops are one of each photograph, then another of each. Within a photograph the k-th of its n crops is
    the one at rank k of the fractional parts of k times the golden ratio: any first few are spread evenly over the
    reading order.
    """
    numbers = list(range(len(photographs))) if numbers is None else numbers
    lengths = torch.tensor([len(each) for each in photographs])
    golden = [(torch.arange(n, dtype=torch.float64) * 0.6180339887498949 % 1).argsort().argsort() for n in lengths]
    jumped = torch.cat(golden) + (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    order = torch.cat([torch.arange(n) for n in lengths]).argsort(stable=True)
    return torch.cat(photographs)[jumped[order]], torch.tensor(numbers).repeat_interleave(lengths)[order]


def _kodak(size: int) -> tuple[Tensor, Tensor]:
    files = sorted((_support.store() / "images").glob("kodim*.webp"))
    if not files:
        raise FileNotFoundError(f"kodak: no photographs in {_support.store() / 'images'}; install the package again")
    pictures = [_decode.picture(file) for file in files]
    cut = []
    for sixth in (3, 1, 5):  # of the longer side: the centre of the middle third, the first and the last
        for picture in pictures:
            height, width = picture.shape[1:]
            centre = (height // 2, sixth * width // 6) if width >= height else (sixth * height // 6, width // 2)
            top, left = (middle - size // 2 for middle in centre)
            cut.append(picture[:, top : top + size, left : left + size])
    return torch.stack(cut), torch.arange(len(files)).repeat(3)


def _embedded(split: str, size: int) -> list[Tensor]:
    """Windows of each photograph of a split of photos."""
    strides = dict.fromkeys(_VALIDATION, size)
    if split == "train":
        strides = {**dict.fromkeys(_VARIED, size // 4), **dict.fromkeys(_UNIFORM, size)}
    return [_pyramid(_read(file), size, FACTORS, (stride,) * 4) for file, stride in strides.items()]


def _read(name: str) -> Tensor:
    """One photograph as uint8 [3, height, width], from the installed wheel that carries it."""
    package, folder = _FOLDERS.get(name, ("skimage", "data"))
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{name}: the package {package}, which carries this photograph, is not installed")
    return _decode.picture(Path(spec.origin).parent / folder / name)


def _cut(picture: Tensor, size: int, stride: int, flush: bool = False) -> Tensor:
    """Windows of a picture in reading order, [N, 3, size, size], without the nearly constant ones."""
    if min(picture.shape[1:]) < size:
        return picture.new_empty(0, 3, size, size)
    lasts = [side - size for side in picture.shape[1:]]
    starts = [sorted({*range(0, last + 1, stride), last} if flush else range(0, last + 1, stride)) for last in lasts]
    rows, columns = map(torch.tensor, starts)
    cut = picture.unfold(1, size, 1).unfold(2, size, 1)[:, rows[:, None], columns]
    cut = cut.permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size)
    deviation = cut.float().var((2, 3), correction=0).mean(1).sqrt() / 255
    return cut[deviation >= FLAT]


def _pyramid(
    picture: Tensor, size: int, factors: tuple[int, ...], strides: tuple[int, ...], flush: bool = False
) -> Tensor:
    """Windows of one photograph at every factor, with its stride."""
    cut = [_cut(_decode.shrink(picture, f), size, stride, flush) for f, stride in zip(factors, strides, strict=True)]
    return torch.cat(cut)
