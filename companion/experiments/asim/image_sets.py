"""Images unlike the training images: data sets of other things, and what a program draws."""

import string
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage import data as skimage_data
from torch import Tensor

from companion import _support, data

DATA_SETS = {"satellite": "eurosat"} | {
    name: name for name in ("photos", "photographs", "flowers", "mnist", "fashion-mnist")
}
RENDERED = ("textures", "text", "checkerboards", "constant", "noise", "letters")
TINTS = {"brick": (1.0, 0.65, 0.55), "grass": (0.7, 1.0, 0.5), "gravel": (1.0, 0.95, 0.8)}
FACES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold")
WORDS = "few linear sums of pixels hide a picture until some prior tells which one we should believe in"


def image_set(name: str, number: int, shape: tuple[int, ...], split: str = "test") -> Tensor:
    """Images [number, *shape] of a set, 8-bit values in [0, 1], the same on every call; the first do not depend on how
    many follow.

    "satellite" is EuroSAT; "textures" are scikit-image's brick, grass and gravel, tinted; "text" and "letters" are set
    in DejaVu, letters as MNIST is: in a box of 20 pixels about the centre. "checkerboards" have squares of 1, 2, 4 and
    8 pixels in two colours. `split` matters for data sets only, which need their files. Greyscale shapes take the mean
    over channels and the centre of photographs. ValueError for an unknown name or too many images of a data set.
    """
    _support.one_of("name", name, (*DATA_SETS, *RENDERED))
    _support.count("number", number)
    channels, height, width = shape
    draws = _support.generator(0, "image set", name)
    if name in DATA_SETS:
        x = _from_data(name, number, split, height)
    elif name == "textures":
        x = torch.cat([_texture(k, height) for k in range(number)])
    elif name == "text":
        x = torch.stack([_text(k, height, width) for k in range(number)])
    elif name == "letters":
        x = torch.stack([_letter(k, height, width) for k in range(number)])
    elif name == "constant":
        x = torch.rand(number, channels, 1, 1, generator=draws).expand(-1, -1, height, width)
    elif name == "noise":
        x = torch.rand(number, channels, height, width, generator=draws)
    else:
        x = torch.stack([_checkerboard(k, channels, height, width, draws) for k in range(number)])
    if x.shape[1] != channels:
        x = x.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return (x[:, :, top : top + height, left : left + width].clamp(0, 1) * 255).round() / 255


def _from_data(name: str, number: int, split: str, side: int) -> Tensor:
    images = data.load(DATA_SETS[name], split=split, size=side if "mnist" in name or side == 64 else 32)
    if number > len(images):
        raise ValueError(f"number: got {number}; allowed: at most {len(images)}, the {split} images of {name}")
    # EuroSAT and flowers come class by class
    if name in ("satellite", "flowers"):
        return images[torch.randperm(len(images), generator=_support.generator(0, "image set", name))[:number]]
    return images[:number]


def _texture(k: int, side: int) -> Tensor:
    """Window k of the three textures in turn, shrunk by 2, [1, 3, side, side]."""
    name = list(TINTS)[k % 3]
    picture = torch.from_numpy(getattr(skimage_data, name)()).float() / 255
    windows = picture.unfold(0, 2 * side, 2 * side).unfold(1, 2 * side, 2 * side).flatten(0, 1)
    window = torch.nn.functional.avg_pool2d(windows[(k // 3 * 29) % len(windows)][None, None], 2)
    return window * torch.tensor(TINTS[name]).view(1, 3, 1, 1)


def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf", size)


def _text(k: int, height: int, width: int) -> Tensor:
    """A page of small words: ink and paper are dark and light in turn, and tinted, [3, height, width]."""
    draws = _support.generator(0, "text", k)
    dark, light = 0.25 * torch.rand(3, generator=draws), 1 - 0.25 * torch.rand(3, generator=draws)
    size = (8, 10, 13)[k % 3]
    page = Image.new("L", (width, height))
    pen, font = ImageDraw.Draw(page), _font(FACES[k % len(FACES)], size)
    for row in range(height // size + 1):
        pen.text((1 - k % 3, row * (size + 1)), WORDS[(7 * k + 11 * row) % 60 :], fill=255, font=font)
    strokes = torch.from_numpy(np.array(page)).float() / 255
    ink, paper = (dark, light) if k % 2 == 0 else (light, dark)
    return paper.view(3, 1, 1) + strokes * (ink - paper).view(3, 1, 1)


def _letter(k: int, height: int, width: int) -> Tensor:
    """White letter on black, scaled into a box of 20 pixels and centred, [1, height, width]."""
    letter = string.ascii_letters[(k * 11) % 52]
    canvas = Image.new("L", (200, 200))
    ImageDraw.Draw(canvas).text((40, 40), letter, fill=255, font=_font(FACES[k % len(FACES)], 96))
    drawing = canvas.crop(canvas.getbbox())
    scale = 20 / max(drawing.size)
    small = drawing.resize([max(1, round(side * scale)) for side in drawing.size], Image.Resampling.BOX)
    page = Image.new("L", (width, height))
    page.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return torch.from_numpy(np.array(page)).float()[None] / 255


def _checkerboard(k: int, channels: int, height: int, width: int, draws: torch.Generator) -> Tensor:
    period = (1, 2, 4, 8)[k % 4]
    colours = torch.rand(2, channels, generator=draws)
    odd = (torch.arange(height)[:, None] // period + torch.arange(width) // period) % 2
    return colours[odd].permute(2, 0, 1)
