"""How many times fewer pixels one design needs than another for the same error."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from companion import _support


class Saving(NamedTuple):
    """A ratio of numbers of pixels with its 95 % interval; written as ``f"{saving:.2f}"``: "1.42 (1.31 to 1.55)"."""

    ratio: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """The ratio and the ends of its interval."""
        return f"{self.ratio:{form}} ({self.low:{form}} to {self.high:{form}})"


def saving(
    one: np.ndarray, other: np.ndarray, measured: Sequence[int], after: int, *, resamples: int = 2000, seed: int = 0
) -> Saving:
    """`after` pixels of the design `other`, divided by those with which `one` has the same mean error.

    Parameters
    ----------
    one, other
        Squared errors of the two designs on the same images, [measured, images]; `measured` are the numbers of pixels.
    after
        One of `measured`. Between them the error is interpolated linearly. Where `one` does not come down to that
        error, the ratio is after / the most pixels measured, and the true one is smaller.
    resamples
        Of the images, with replacement, for both designs alike: the interval is the bootstrap's (Efron 1979).

    Raises ValueError for arrays of other shapes, and for an `after` that was not measured.
    """
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.ndim != 2 or one.shape != other.shape or len(one) != len(measured):
        given = f"{one.shape}, {other.shape} and {len(measured)} numbers"
        raise ValueError(f"one, other, measured: got {given}; allowed: [measured, images] twice, and measured")
    _support.one_of("after", after, measured)
    row = list(measured).index(after)
    source = _support.generator(seed, "bootstrap")
    images = torch.arange(one.shape[1])[None]
    again = torch.randint(one.shape[1], (resamples, one.shape[1]), generator=source, device="cpu")
    ratios = []
    for chosen in torch.cat([images, again]).numpy():
        curve = np.minimum.accumulate(one[:, chosen].mean(1))
        ratios.append(after / np.interp(-other[row, chosen].mean(), -curve, measured))
    low, high = np.quantile(ratios[1:], (0.025, 0.975))
    return Saving(ratios[0], float(low), float(high))
