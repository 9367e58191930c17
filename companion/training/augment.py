"""Augmentations: random changes of training images that leave them images of the same kind."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def augment(images: Tensor, names: Sequence[str], draw: torch.Generator) -> Tensor:
    """Each of `images`, [batch, c, h, w] in [0, 1], changed at random in the ways that `names` lists, one by one.

    "flip": mirrored left to right with probability ½. "turn": turned by 0, 90, 180 or 270 degrees (square images).
    "colours": channels in random order. "brightness": multiplied by 0.75 to 1.25, and its contrast about its mean too;
    by less where a pixel would leave [0, 1].
    """
    device = images.device
    for name in names:
        images = AUGMENTATIONS[name](images, lambda *shape: torch.rand(*shape, generator=draw, device="cpu").to(device))
    return images


Uniform = Callable[..., Tensor]  # draws from U[0, 1) of a given shape


def _flip(images: Tensor, uniform: Uniform) -> Tensor:
    return torch.where(uniform(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)


def _turn(images: Tensor, uniform: Uniform) -> Tensor:
    turned = torch.stack([images.rot90(quarters, (-2, -1)) for quarters in range(4)])
    return turned[(4 * uniform(len(images))).long(), torch.arange(len(images), device=images.device)]


def _colours(images: Tensor, uniform: Uniform) -> Tensor:
    order = uniform(*images.shape[:2]).argsort(1)
    return images.gather(1, order[:, :, None, None].expand_as(images))


def _brightness(images: Tensor, uniform: Uniform) -> Tensor:
    gain, contrast = 0.75 + 0.5 * uniform(2, len(images), 1, 1, 1).to(images.dtype)
    pixels, least = (1, 2, 3), torch.finfo(images.dtype).tiny
    images = images * torch.minimum(gain, 1 / images.amax(pixels, keepdim=True).clamp_min(least))
    mean = images.mean(pixels, keepdim=True)
    below, above = mean - images.amin(pixels, keepdim=True), images.amax(pixels, keepdim=True) - mean
    room = torch.minimum(mean / below.clamp_min(least), (1 - mean) / above.clamp_min(least))
    return (mean + torch.minimum(contrast, room) * (images - mean)).clamp(0, 1)  # rounding can leave [0, 1]


AUGMENTATIONS = {"flip": _flip, "turn": _turn, "colours": _colours, "brightness": _brightness}
