"""BM3D, the classical denoising baseline, from the optional package ``bm3d``.

**That package's licence is NON-COMMERCIAL**: Tampere University allows its use for informational, non-commercial
purposes only. It is therefore not among this package's dependencies, and nothing else here needs it.
"""

from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from companion import _support
from companion.recover.linear import squared_norm
from companion.recover.run import Result, scaling

_SMALLEST_SIDE = 9  # with a single 8×8 block in the image, the package's library crashes the interpreter


def bm3d(y: Tensor, std: float, *, exact: bool = True) -> Result:
    """Denoise images by BM3D (Dabov et al. 2007), grey or colour, by the NON-COMMERCIAL package ``bm3d``.

    Both stages with the authors' default profile; colour images in the opponent colour space (CBM3D). Each image is
    denoised alone, on one thread, with which the package's result is always the same.

    Parameters
    ----------
    y
        Noisy images, [batch, 1 or 3, height, width]; pixels may lie outside [0, 1].
    std
        Standard deviation of the noise in each pixel, > 0, in units of the pixels.
    exact
        Whether coefficients are shrunk by their exact variances, which blocks that overlap change (Mäkinen et al. 2020,
        the package's default), or by those of blocks apart, as in 2007: on small images some fifty times faster.

    The result's x are the denoised images, not clipped, in the dtype and on the device of y; they are computed
    on the CPU. BM3D minimises nothing: the energy is the squared misfit ‖x − y‖², and an evaluation is one run of BM3D.
    Where BM3D fails (it does for colour images without a trace of noise in a colour difference), x is y and
    `converged` is False.

    Raises ImportError where the package is missing, and ValueError for y not floating-point or not finite, another
    number of channels, sides below 9 pixels, or std out of range.
    """
    if not isinstance(y, Tensor) or y.dim() != 4 or len(y) < 1 or y.shape[1] not in (1, 3):
        given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y: got {given}; allowed: images of shape [batch, 1 or 3, height, width]")
    if min(y.shape[2:]) < _SMALLEST_SIDE:
        raise ValueError(f"y: got images of {y.shape[2]}×{y.shape[3]} pixels; allowed: sides >= {_SMALLEST_SIDE}")
    _support.finite("y", y)
    _support.positive("std", std)
    package = _package()
    profile = package.BM3DProfile()
    profile.num_threads = 1
    if not exact:
        profile.nf = 0  # the size of the transforms by which the package finds the variances
    denoise = package.bm3d if y.shape[1] == 1 else package.bm3d_rgb
    noisy = y.detach()
    with np.errstate(divide="ignore", invalid="ignore"):
        arrays = noisy.double().cpu().movedim(1, -1).numpy()
        clean = np.stack([np.reshape(denoise(image, std, profile), image.shape) for image in arrays])
    x = torch.from_numpy(clean).movedim(-1, 1).contiguous().to(y)
    sound = torch.isfinite(x).flatten(1).all(1)
    x = torch.where(scaling(sound, x), x, noisy)
    reason = ["denoised" if fine else "BM3D returned values that are not finite" for fine in sound.tolist()]
    return Result.of_one_step(x, None, squared_norm(x - noisy), 1, sound, reason)


def _package() -> ModuleType:
    try:
        import bm3d as package  # here and not at the top: the rest of companion must import without it
    except ImportError as error:
        message = "bm3d: the package is not installed; pip install bm3d==4.0.3 (its licence is non-commercial)"
        raise ImportError(message) from error
    return package
