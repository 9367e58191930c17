"""How good an estimate is: scores of images against the truth, one value per image, and their means with intervals.

Scores are computed on the CPU in float64, whatever the estimate's dtype and device, so that they depend on neither.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from companion import _support

_SMALLEST_SIDE = 7  # side of the window of skimage's structural similarity


class Interval(NamedTuple):
    """A mean with half the width of its 95 % interval over `groups` independent observations.

    A single one is written as ``f"{interval:+.1f}"``, which gives "+1.4 ± 0.6".
    """

    mean: Tensor
    half: Tensor
    groups: int

    def __format__(self, form: str) -> str:
        """Mean in the format given ± half width in the same one, without a sign."""
        return f"{float(self.mean):{form}} ± {float(self.half):{form.lstrip('+')}}"


class Saving(NamedTuple):
    """A ratio of numbers of measurements and its 95 % interval; ``f"{saving:.2f}"`` writes "1.42 (1.31 to 1.55)"."""

    ratio: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """The ratio and the ends of its interval."""
        return f"{self.ratio:{form}} ({self.low:{form}} to {self.high:{form}})"


def mse(x: Tensor, reference: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean squared error over the pixels of each image, [batch]: the "reconstruction error" of Asim et al. 2020.

    The estimates x, [batch, channels, height, width], are clipped to [0, 1] first, as in the published scores; the true
    images have the same shape; `where` are booleans that broadcast to it: only these pixels count, e.g. the hidden ones
    of inpainting. ValueError for other shapes, for NaN or infinite values, for a reference outside [0, 1], and for a
    `where` that chooses no pixel of an image.
    """
    estimates, truths = _checked(x, reference)
    errors = (estimates - truths).square()
    if where is None:
        return errors.mean((1, 2, 3))
    try:
        chosen = torch.as_tensor(where, device="cpu").expand(errors.shape)
    except RuntimeError:
        chosen = torch.zeros(1, device="cpu")
    if chosen.dtype != torch.bool or not chosen.flatten(1).any(1).all():
        given = f"{torch.as_tensor(where).dtype} {tuple(torch.as_tensor(where).shape)}"
        allowed = f"booleans that broadcast to {tuple(errors.shape)} and choose a pixel of every image"
        raise ValueError(f"where: got {given}; allowed: {allowed}")
    return (errors * chosen).sum((1, 2, 3)) / chosen.sum((1, 2, 3))


def psnr(x: Tensor, reference: Tensor, where: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, [batch]: −10 log₁₀ of :func:`mse`, inf for 0.

    A mean over images is the mean of these, not the PSNR of the mean error: see :func:`psnr_of_mean`. Arguments and
    errors are those of :func:`mse`.
    """
    return -10 * mse(x, reference, where).log10()


def psnr_of_mean(psnr: Tensor | np.ndarray) -> Tensor:
    """PSNR in dB of the mean squared error, from the PSNR [images, ...] of images; [...]: the worst count most."""
    return -10 * torch.pow(10, torch.as_tensor(psnr, device="cpu").double() / -10).mean(0).log10()


def ssim(x: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each image, [batch], at most 1, by scikit-image: its 7×7 window, mean over the channels.

    See :func:`mse` for arguments and errors; also ValueError for images with a side below 7 pixels.
    """
    from skimage.metrics import structural_similarity

    if isinstance(reference, Tensor) and reference.dim() == 4 and min(reference.shape[2:]) < _SMALLEST_SIDE:
        given = f"{reference.shape[2]}×{reference.shape[3]}"
        raise ValueError(f"reference: got images of {given} pixels; allowed: sides >= {_SMALLEST_SIDE}")
    pairs = zip(*(images.numpy() for images in _checked(x, reference)), strict=True)
    scores = [float(structural_similarity(a, b, data_range=1.0, channel_axis=0)) for a, b in pairs]
    return torch.tensor(scores, dtype=torch.float64, device="cpu")


def interval(values: Tensor | np.ndarray, groups: Tensor | Sequence[int] | None = None) -> Interval:
    """Mean over independent images, and half of its 95 % interval (Student's t).

    `values`: [images, ...]. `groups`: [images], the number of each image's photograph (`Images.photo`): crops of one
    photograph are one observation, their mean; by default every image is one. ValueError for groups of another length,
    and for fewer than two observations.
    """
    given = torch.as_tensor(values, device="cpu").double()
    if groups is not None:
        labels, shape = torch.as_tensor(groups, device="cpu"), tuple(given.shape)
        if not shape or labels.shape != shape[:1]:
            raise ValueError(f"groups: got {tuple(labels.shape)} for values {shape}; allowed: one an image")
        given = torch.stack([given[labels == label].mean(0) for label in labels.unique()])
    if given.dim() < 1 or len(given) < 2:
        allowed = "at least two independent images on the first axis"
        raise ValueError(f"values: got {tuple(given.shape)}; allowed: {allowed}")
    error = given.std(0) / len(given) ** 0.5
    return Interval(given.mean(0), error * stdtrit(len(given) - 1, 0.975), len(given))


def paired(
    one: Tensor | np.ndarray, other: Tensor | np.ndarray, groups: Tensor | Sequence[int] | None = None
) -> Interval:
    """:func:`interval` of the differences one − other [images, ...] of two methods on the same images."""
    a, b = (torch.as_tensor(values, device="cpu").double() for values in (one, other))
    if a.shape != b.shape:
        raise ValueError(f"other: got {tuple(b.shape)}; allowed: {tuple(a.shape)}, a value for each of the first")
    return interval(a - b, groups)


def saving(
    one: np.ndarray, other: np.ndarray, measured: Sequence[int], after: int, *, resamples: int = 2000, seed: int = 0
) -> Saving:
    """How many times fewer measurements one method needs than another for the same error.

    That is `after` measurements of `other`, divided by those with which `one` has the same mean error.

    Parameters
    ----------
    one, other
        Squared errors of the two methods on the same images, [measured, images]; `measured` are the numbers of
        measurements, in any order.
    after
        One of `measured`. Between them the error is interpolated linearly. Where `one` does not come down to that
        error, the ratio is after / the most measurements, and the true one is smaller; where `one` has less error with
        the fewest, it is after / the fewest, and the true one larger.
    resamples
        Of the images, with replacement, for both methods alike: the interval is the bootstrap's (Efron 1979).

    Raises ValueError for arrays of other shapes, NaN, numbers that come twice, and an `after` that was not measured.
    """
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.ndim != 2 or one.shape != other.shape or len(one) != len(measured):
        given = f"{one.shape}, {other.shape} and {len(measured)} numbers"
        raise ValueError(f"one, other, measured: got {given}; allowed: [measured, images] twice, and measured")
    if not np.isfinite(one).all() or not np.isfinite(other).all():
        raise ValueError("one, other: got NaN or infinite errors; allowed: finite numbers")
    measured = np.asarray(measured).tolist()
    if len(set(measured)) < len(measured):
        raise ValueError(f"measured: got {measured}; allowed: each number once")
    _support.one_of("after", after, measured)
    order = np.argsort(measured)
    one, other, measured = one[order], other[order], [measured[k] for k in order]
    row = measured.index(after)

    def ratio(chosen: np.ndarray) -> float:
        curve = np.minimum.accumulate(one[:, chosen].mean(1))
        error = other[row, chosen].mean()
        needed = float(np.interp(-error, -curve, measured))
        # where several numbers give that very error, the interpolation takes the largest
        return after / min([needed, *np.asarray(measured)[curve == error]])

    return Saving(*bootstrap(ratio, one.shape[1], resamples=resamples, seed=seed))


def bootstrap(
    statistic: Callable[[np.ndarray], float], images: int, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic of independent images, and the ends of its 95 % interval by the percentile bootstrap (Efron 1979).

    It is given indices of images, [images]: all of them once, or drawn with replacement.
    """
    number, resamples = _support.count("images", images), _support.count("resamples", resamples)
    source = _support.generator(seed, "bootstrap")
    drawn = torch.randint(number, (resamples, number), generator=source, device="cpu").numpy()
    low, high = np.quantile([statistic(chosen) for chosen in drawn], (0.025, 0.975))
    return statistic(np.arange(number)), float(low), float(high)


def _checked(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Clipped estimates and their references, float64 on the CPU."""
    _support.images("reference", reference)
    _support.finite("x", _support.batch_of("x", x, reference.shape[1:]))
    if len(x) != len(reference):
        raise ValueError(f"x: got {len(x)} images for {len(reference)} references; allowed: as many as references")
    return x.detach().double().clamp(0, 1).cpu(), reference.detach().double().cpu()
