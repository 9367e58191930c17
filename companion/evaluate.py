"""How good an estimate is: scores of images against the truth, one value per image.

Scores are computed on the CPU in float64, whatever the estimate's dtype and device, so that they depend on neither.
"""

from collections.abc import Callable

import numpy as np
import torch
from skimage import metrics
from torch import Tensor

from companion import _support

_SMALLEST_SIDE = 7  # side of the window of skimage's structural similarity


def mse(x: Tensor, reference: Tensor) -> Tensor:
    """Mean squared error over the pixels of each image, [batch]: the "reconstruction error" of Asim et al. 2020.

    Parameters
    ----------
    x
        Estimates, [batch, channels, height, width]; clipped to [0, 1] first, as in the published scores.
    reference
        True images of the same shape, in [0, 1].

    Raises ValueError for other shapes, for NaN or infinite values, and for a reference outside [0, 1].
    """
    return _scores(metrics.mean_squared_error, x, reference)


def psnr(x: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, [batch], by scikit-image: −10 log₁₀ of :func:`mse`, inf for 0.

    A mean over images is the mean of these, not the PSNR of the mean error. See :func:`mse` for arguments and errors.
    """
    with np.errstate(divide="ignore"):
        return _scores(lambda a, b: metrics.peak_signal_noise_ratio(b, a, data_range=1.0), x, reference)


def ssim(x: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each image, [batch], at most 1, by scikit-image: its 7×7 window, mean over the channels.

    See :func:`mse` for arguments and errors; also ValueError for images with a side below 7 pixels.
    """
    if isinstance(reference, Tensor) and reference.dim() == 4 and min(reference.shape[2:]) < _SMALLEST_SIDE:
        given = f"{reference.shape[2]}×{reference.shape[3]}"
        raise ValueError(f"reference: got images of {given} pixels; allowed: sides >= {_SMALLEST_SIDE}")
    return _scores(lambda a, b: metrics.structural_similarity(a, b, data_range=1.0, channel_axis=0), x, reference)


def _scores(score: Callable[[np.ndarray, np.ndarray], float], x: Tensor, reference: Tensor) -> Tensor:
    """`score` of every clipped image and its reference, [batch], float64 on the CPU."""
    _support.images("reference", reference)
    _support.finite("x", _support.batch_of("x", x, reference.shape[1:]))
    if len(x) != len(reference):
        raise ValueError(f"x: got {len(x)} images for {len(reference)} references; allowed: as many as references")
    estimates = x.detach().double().clamp(0, 1).cpu().numpy()
    truths = reference.detach().double().cpu().numpy()
    values = [float(score(a, b)) for a, b in zip(estimates, truths, strict=True)]
    return torch.tensor(values, dtype=torch.float64)
