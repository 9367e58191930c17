"""What the score ∇ log p of a density of noisy images gives: the mean of the clean ones, by Tweedie's formula."""

from collections.abc import Sequence
from itertools import permutations, product

import torch
from torch import Tensor

from companion import _support
from companion.energy import Generator

SYMMETRIES = ("flip", "turn", "colours")  # as those of companion.training.augment, all of them and not one by chance


def orbit(x: Tensor, symmetries: Sequence[str]) -> list[Tensor]:
    """The images x, [batch, channels, height, width], changed in every combination of `symmetries`, themselves first.

    "flip": as they are and mirrored left to right. "turn": by 0, 90, 180 and 270 degrees (square images). "colours":
    channels in every order. So 2 · 4 · 6 lists of images with all three and three channels; without any, x alone.

    Raises ValueError for another name, and for x that is not of such images.
    """
    if isinstance(symmetries, str):
        raise ValueError(f"symmetries: got {symmetries!r}; allowed: a tuple of names, such as ('flip',)")
    for name in symmetries:
        _support.one_of("symmetries", name, SYMMETRIES)
    if not symmetries:
        return [x]
    if x.dim() != 4 or ("turn" in symmetries and x.shape[2] != x.shape[3]):
        square = ", square ones for 'turn'" if "turn" in symmetries else ""
        raise ValueError(
            f"x: got shape {tuple(x.shape)}; allowed: images [batch, channels, height, width]{square}, for "
            f"{', '.join(symmetries)}"
        )
    mirrored = [x, x.flip(-1)] if "flip" in symmetries else [x]
    quarters = range(4) if "turn" in symmetries else range(1)
    channels = range(x.shape[1])
    orders = permutations(channels) if "colours" in symmetries else [tuple(channels)]
    return [
        image.rot90(quarter, (-2, -1))[:, list(order)] for image, quarter, order in product(mirrored, quarters, orders)
    ]


@torch.inference_mode(False)  # gradients are needed, whatever mode the caller is in
def tweedie(flow: Generator, x: Tensor, std: float, symmetries: Sequence[str] = ()) -> Tensor:
    """E[clean | x] = x + std² ∇ log p(x), [batch, *shape] (Robbins 1956; Efron 2011, eq. 1.5).

    p must be the density of clean images plus N(0, std²) noise, as a flow trained on noisy images has it; `std` is that
    noise, not a step size.

    Where a change of the images, such as a turn, leaves their density as it is, the true score turns with them, and
    that of a flow need not. `symmetries` are the names of such changes (see :func:`orbit`): the score is averaged over
    all their combinations g, as ∇ mean log p(g x), which is one gradient of the flow for each. That projects it onto
    the scores that have these symmetries, and its expected squared error can only fall.

    Raises ValueError for a prior without density, for std <= 0, and for symmetries that images of this shape lack.
    """
    std = _support.positive("std", std)
    if not hasattr(flow, "log_prob"):
        given = f"{type(flow).__name__}, which has no density: no log_prob"
        raise ValueError(f"flow: got {given}; allowed: a flow or priors.Linear")
    x = x.detach().clone().requires_grad_()
    changed, score = orbit(x, symmetries), torch.zeros_like(x)
    for images in changed:  # one after the other, so that memory is that of one
        (part,) = torch.autograd.grad(flow.log_prob(images).sum(), x)  # type: ignore[attr-defined]
        score += part / len(changed)
    return (x + std**2 * score).detach()
