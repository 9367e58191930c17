"""Linear operators: identity, masks, dense Gaussian matrices, blur and downsampling."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from companion import _support
from companion.measure.base import LinearOperator, checked_shape


class Identity(LinearOperator):
    """A = I: every pixel is measured (denoising)."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape, shape)

    def apply(self, x: Tensor) -> Tensor:
        """X itself."""
        return x

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """Y itself."""
        return y


class Mask(LinearOperator):
    """Inpainting: the pixels under the mask, and only those, as one vector [batch, m].

    The vector holds no zeros for what was not measured, so that noise and misfit count measured values only;
    ``A.adjoint(y)`` puts them back into an image that is black elsewhere.

    Parameters
    ----------
    mask
        Boolean; True where a value is measured. [C, H, W], or [H, W] for all channels alike (see
        :mod:`companion.measure.masks`).
    channels
        Number of channels for an [H, W] mask; 1 if not given.
    """

    def __init__(self, mask: Tensor, channels: int | None = None) -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() not in (2, 3):
            given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask: got {given}; allowed: a boolean tensor [H, W] or [C, H, W]")
        if mask.dim() == 2:
            mask = mask.expand(_support.count("channels", 1 if channels is None else channels), *mask.shape)
        elif channels is not None and channels != mask.shape[0]:
            raise ValueError(
                f"channels: got {channels} with a mask of {mask.shape[0]} channels; allowed: the mask's own number"
            )
        if not mask.any():
            raise ValueError("mask: got False everywhere; allowed: at least one measured value")
        with torch.inference_mode(False):  # gradients must pass through it later, wherever it was made
            self.mask = mask.detach().clone()
            self._places = mask.flatten().nonzero()[:, 0].cpu()
        super().__init__(tuple(mask.shape), (len(self._places),))

    def apply(self, x: Tensor) -> Tensor:
        """The measured values, [batch, m], in the order of the flattened image."""
        return x.flatten(1).index_select(1, self._places.to(x.device))

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """The image with the values in their places and 0 elsewhere."""
        empty = y.new_zeros(y.shape[0], math.prod(self.shape))
        return empty.index_copy(1, self._places.to(y.device), y).unflatten(1, self.shape)


class Gaussian(LinearOperator):
    """Compressed sensing: A of shape [m, n] with independent entries N(0, 1/m) (Asim et al. 2020, sec. 3.2).

    The entries are drawn on the CPU in float64, row by row: A depends on nothing but `shape`, `m` and `seed`, and the
    rows for a larger m begin with the same draws. One copy is kept for each dtype and device in use.

    Parameters
    ----------
    shape
        Shape of an image; n is the product.
    m
        Number of measurements.
    seed
        Seed of the draws, a whole number.
    """

    def __init__(self, shape: Sequence[int], m: int, seed: int = 0) -> None:
        super().__init__(shape, (_support.count("m", m),))
        _support.generator(_support.count("seed", seed, least=0))  # refused here, not when the matrix is first needed
        self.m, self.n, self.seed = m, math.prod(self.shape), seed
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def matrix(self, like: Tensor) -> Tensor:
        """The matrix A, [m, n], in the dtype and on the device of `like`."""
        key = (like.dtype, like.device)
        if key not in self._copies:
            source = _support.generator(self.seed)
            with torch.inference_mode(False), torch.no_grad():  # it must serve gradients later, whoever asks first
                matrix = torch.empty(self.m, self.n, dtype=like.dtype)
                for row in matrix:
                    row.copy_(torch.randn(self.n, generator=source, dtype=torch.float64) / math.sqrt(self.m))
                self._copies[key] = matrix.to(like.device)
        return self._copies[key]

    def apply(self, x: Tensor) -> Tensor:
        """A x, [batch, m]."""
        return _rows_times(x.flatten(1), self.matrix(x).T)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y, [batch, *shape]."""
        return _rows_times(y, self.matrix(y)).unflatten(1, self.shape)


def _rows_times(rows: Tensor, matrix: Tensor, block: int = 8) -> Tensor:
    """Each row of `rows` times `matrix`, always `block` rows at a time.

    A matrix product rounds differently for different numbers of rows; with products of one size only, no image's result
    depends on how many others are in its batch.
    """
    padded = F.pad(rows, (0, 0, 0, -len(rows) % block))
    return torch.cat([part @ matrix for part in padded.split(block)])[: len(rows)]


class Blur(LinearOperator):
    """Convolution of every channel with one kernel, where the kernel lies wholly inside the image ("valid").

    A camera sees no pixels beyond its edge either: with a k×k kernel, k − 1 rows and columns are lost, and no rule
    about what lies outside the image has to be made up.

    Parameters
    ----------
    shape
        (channels, height, width).
    kernel
        [k, l], at most as large as the image. Cast to the dtype of the images.
    """

    def __init__(self, shape: Sequence[int], kernel: Tensor) -> None:
        if len(checked_shape("shape", shape)) != 3:
            raise ValueError(f"shape: got {tuple(shape)}; allowed: (channels, height, width)")
        sizes = tuple(_support.finite("kernel", kernel).shape)
        if len(sizes) != 2 or 0 in sizes or sizes[0] > shape[1] or sizes[1] > shape[2]:
            raise ValueError(
                f"kernel: got shape {sizes}; allowed: [rows, columns], from 1 × 1 to {shape[1]} × {shape[2]}"
            )
        self.kernel = kernel.detach().clone()
        super().__init__(shape, (shape[0], shape[1] - kernel.shape[0] + 1, shape[2] - kernel.shape[1] + 1))

    @classmethod
    def gaussian(cls, shape: Sequence[int], std: float, size: int | None = None) -> "Blur":
        """Blur by a normal density of `std` pixels, cut off to `size` × `size` (default 2⌈3 std⌉ + 1)."""
        _support.positive("std", std)
        widest = max(checked_shape("shape", shape))
        name, given = ("std", std) if size is None else ("size", size)
        size = _support.count("size", 2 * math.ceil(min(3 * std, widest)) + 1 if size is None else size)
        if size > widest:  # refused before it is built
            raise ValueError(f"{name}: got {given!r}; allowed: a kernel no larger than an image of {tuple(shape)}")
        place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        profile = torch.exp(-0.5 * (place / std) ** 2)
        return cls(shape, torch.outer(profile, profile) / profile.sum() ** 2)

    def _weight(self, like: Tensor) -> Tensor:
        return self.kernel.to(like).flip(0, 1).expand(self.shape[0], 1, *self.kernel.shape)

    def apply(self, x: Tensor) -> Tensor:
        """The blurred images, [batch, channels, H − k + 1, W − l + 1]."""
        return F.conv2d(x, self._weight(x), groups=self.shape[0])

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """Each value spread over the pixels that it was gathered from."""
        return F.conv_transpose2d(y, self._weight(y), groups=self.shape[0])


class Downsample(LinearOperator):
    """Super-resolution: the mean of every `factor` × `factor` block of pixels."""

    def __init__(self, shape: Sequence[int], factor: int) -> None:
        checked = checked_shape("shape", shape)
        _support.count("factor", factor)
        if len(checked) != 3 or checked[1] % factor or checked[2] % factor:
            raise ValueError(
                f"shape: got {checked} with factor {factor}; allowed: (channels, H, W), H and W divisible by it"
            )
        self.factor = factor
        super().__init__(checked, (checked[0], checked[1] // factor, checked[2] // factor))

    def apply(self, x: Tensor) -> Tensor:
        """The block means, [batch, channels, H / factor, W / factor]."""
        return F.avg_pool2d(x, self.factor)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """Each mean spread evenly over its block."""
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3) / self.factor**2
