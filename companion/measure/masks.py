"""Masks for inpainting, for :class:`companion.measure.Mask`: boolean [C, H, W], True where a value is measured."""

from collections.abc import Sequence

import torch
from torch import Tensor

from companion import _support

SIDES = ("left", "right", "top", "bottom")


def centre(shape: Sequence[int], missing: float = 0.3) -> Tensor:
    """All but a central rectangle whose sides are `missing` times the image's (Asim et al. 2020, sec. 3.3).

    Rows and columns from ⌊(½ − missing/2) · side⌋ to ⌊(½ + missing/2) · side⌋ are hidden.
    """
    channels, height, width = _support.image_shape(shape)
    missing = _fraction(missing)
    mask = torch.ones(channels, height, width, dtype=torch.bool, device="cpu")
    rows, columns = (slice(int(s * (0.5 - missing / 2)), int(s * (0.5 + missing / 2))) for s in (height, width))
    mask[:, rows, columns] = False
    return _not_empty(mask, missing)


def side(shape: Sequence[int], hidden: str, missing: float = 0.5) -> Tensor:
    """All but a band along one side; `hidden` is "left", "right", "top" or "bottom", the side that is not seen."""
    channels, height, width = _support.image_shape(shape)
    missing = _fraction(missing)
    _support.one_of("hidden", hidden, SIDES)
    mask = torch.ones(channels, height, width, dtype=torch.bool, device="cpu")
    across = -1 if hidden in ("left", "right") else -2
    band = round(missing * mask.shape[across])
    start = 0 if hidden in ("left", "top") else mask.shape[across] - band
    mask.narrow(across, start, band).fill_(False)
    return _not_empty(mask, missing)


def random_pixels(shape: Sequence[int], missing: float = 0.5, seed: int | torch.Generator = 0) -> Tensor:
    """All but round(missing · H · W) pixels chosen at random, hidden in all channels."""
    channels, height, width = _support.image_shape(shape)
    return _scattered((1, height, width), missing, seed).expand(channels, -1, -1).clone()


def random_subpixels(shape: Sequence[int], missing: float = 0.25, seed: int | torch.Generator = 0) -> Tensor:
    """All but round(missing · C · H · W) values at random, each channel for itself (Whang et al. 2020, sec. 5.4.5)."""
    return _scattered(_support.image_shape(shape), missing, seed)


def text(shape: Sequence[int], words: str = "inverse problem", size: float | None = None) -> Tensor:
    """All but the strokes of `words`, repeated all over; `size` is the height of a line in pixels (default H / 4).

    ValueError for a size below 1 or above H, and where the strokes are too fine to hide a pixel.
    """
    from PIL import Image, ImageDraw, ImageFont

    channels, height, width = _support.image_shape(shape)
    if not isinstance(words, str) or not words.strip():
        raise ValueError(f"words: got {words!r}; allowed: text with at least one visible character")
    allowed = f"a number of pixels from 1 to the image's height, {height}"
    line = _support.number("size", height / 4 if size is None else size, allowed, lambda v: 1 <= v <= height)
    picture = Image.new("L", (width, height), 0)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=line)
    rows = int(height // line) + 1
    letters = (words.strip() + " ") * (3 * rows + width)
    for row in range(rows):
        # each line starts where a reader would expect it to go on, so that no two lines hide the same columns
        draw.text((0, row * line), letters[3 * row : 3 * row + width], fill=255, font=font)
    hidden = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(height, width) > 127
    if not hidden.any():
        raise ValueError(f"size: got {line!r}, at which the strokes are too fine to hide a pixel; allowed: more")
    return _not_empty((~hidden).expand(channels, -1, -1).clone(), float(hidden.float().mean()))


def _scattered(shape: tuple[int, int, int], missing: float, seed: int | torch.Generator) -> Tensor:
    missing, total = _fraction(missing), torch.Size(shape).numel()
    order = torch.randperm(total, generator=_support.generator(seed, "mask"), device="cpu")
    return _not_empty((order >= round(missing * total)).view(shape), missing)


def _fraction(missing: float) -> float:
    return _support.number("missing", missing, "a number from 0 up to, not including, 1", lambda v: 0 <= v < 1)


def _not_empty(mask: Tensor, missing: float) -> Tensor:
    if not mask.any():
        raise ValueError(f"missing: got {missing!r}, which hides every pixel of {tuple(mask.shape)}; allowed: less")
    return mask
