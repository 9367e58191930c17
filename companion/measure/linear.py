"""Linear operators: identity, masks, dense Gaussian matrices, Fourier transforms, blur and downsampling."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from companion import _support
from companion.measure.base import Index, LinearOperator, replaced


def _plain(make: Callable[[], Tensor]) -> Tensor:
    """A tensor made in a thread of its own, where no mode of this one holds, neither inference nor torch.func's.

    So what an operator keeps serves gradients later, whoever asks first.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


class Identity(LinearOperator):
    """A = I: every pixel is measured (denoising)."""

    def __init__(self, shape: Sequence[int], domain: str = "image") -> None:
        super().__init__(shape, shape, domain)

    def apply(self, x: Tensor) -> Tensor:
        return x.clone()

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return y.clone()


class Scaling(LinearOperator):
    """A = diag(factor): every pixel is measured, brighter or darker (Whang et al. 2020, sec. 5.4.1: 0.5).

    `factor` is a number, or a tensor that broadcasts to one image, cast to the images' dtype.
    """

    def __init__(self, shape: Sequence[int], factor: float | Tensor, domain: str = "image") -> None:
        super().__init__(shape, shape, domain)
        given = factor if isinstance(factor, Tensor) else torch.tensor(_support.number("factor", factor), device="cpu")
        if given.is_complex():  # whose cast would drop the imaginary part
            raise ValueError(f"factor: got {given.dtype} tensor; allowed: real numbers")
        try:
            self.factor = _plain(lambda: _support.finite("factor", given.double()).detach().expand(self.shape).clone())
        except RuntimeError:
            raise ValueError(f"factor: got shape {tuple(given.shape)}; allowed: broadcasts to {self.shape}") from None

    def apply(self, x: Tensor) -> Tensor:
        return self.factor.to(x.dtype).to(x.device) * x

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return self.apply(y)


class Mask(LinearOperator):
    """Inpainting: the pixels under the mask, and only those, as one vector [batch, m].

    The vector holds no zeros for what was not measured, so that noise and misfit count measured values only;
    ``A.adjoint(y)`` puts them back into an image that is black elsewhere. The mask (see :mod:`companion.measure.masks`)
    is boolean, True where a value is measured: [C, H, W], or [H, W] for all of so many `channels` (by default 1) alike,
    or [batch, C, H, W], one for each image, all of as many values.
    """

    def __init__(self, mask: Tensor, channels: int | None = None, domain: str = "image") -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() not in (2, 3, 4) or 0 in mask.shape:
            given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            allowed = "a boolean tensor (mask > 0.5) of shape [H, W], [C, H, W] or [batch, C, H, W]"
            raise ValueError(f"mask: got {given}; allowed: {allowed}")
        if mask.dim() == 2:
            mask = mask.expand(_support.count("channels", 1 if channels is None else channels), *mask.shape)
        if channels not in (None, mask.shape[-3]):
            raise ValueError(f"channels: got {channels}; allowed: the mask's own number, {mask.shape[-3]}")
        self.mask = _plain(mask.detach().clone)
        images = self.mask.cpu().flatten(-3).view(-1, mask.shape[-3:].numel())
        numbers = sorted(set(images.sum(1).tolist()))
        if len(numbers) != 1 or 0 in numbers:
            raise ValueError(f"mask: got {numbers} measured values; allowed: at least 1, and as many for each image")
        self._places = _plain(lambda: images.nonzero()[:, 1].view(len(images), -1))  # [1 or batch, m]
        self.batch = len(images) if mask.dim() == 4 else None
        super().__init__(mask.shape[-3:], numbers, domain)

    def apply(self, x: Tensor) -> Tensor:
        """The measured values, [batch, m], in the order of the flattened image."""
        return x.flatten(1).gather(1, self._places.to(x.device).expand(len(x), -1))

    def apply_adjoint(self, y: Tensor) -> Tensor:
        empty = y.new_zeros(len(y), math.prod(self.shape))
        return empty.scatter(1, self._places.to(y.device).expand(len(y), -1), y).unflatten(1, self.shape)

    def select(self, index: Index) -> Self:
        if self.batch is None:
            return self
        rows = torch.as_tensor(index, device="cpu")
        places = self._places[rows]
        return replaced(self, mask=self.mask[rows], _places=places, batch=len(places))


class Gaussian(LinearOperator):
    """Compressed sensing: A of shape [m, n] with independent entries N(0, 1/m) (Asim et al. 2020, sec. 3.2).

    n is the product of `shape`. The entries are drawn on the CPU in float64, row by row: A depends on nothing but
    `shape`, `m` and `seed` (a whole number), and the rows for a larger m begin with the same draws. One copy is kept
    for each dtype and device in use; pickles and deep copies draw their own.
    """

    def __init__(self, shape: Sequence[int], m: int, seed: int = 0, domain: str = "image") -> None:
        self.m, self.seed = _support.count("m", m), _support.count("seed", seed, least=0)
        super().__init__(shape, (self.m,), domain)
        self.n = math.prod(self.shape)
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copies": {}}

    def matrix(self, like: Tensor) -> Tensor:
        """A copy of the matrix A, [m, n], in the dtype and on the device of `like`."""
        return self._matrix(like).clone()

    def _matrix(self, like: Tensor) -> Tensor:
        key = (like.dtype, like.device)
        if key not in self._copies:
            self._copies[key] = _plain(lambda: self._draw(*key))
        return self._copies[key]

    def _draw(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        source = _support.generator(self.seed, "matrix")
        matrix = torch.empty(self.m, self.n, dtype=dtype, device="cpu")
        for row in matrix:
            row.copy_(torch.randn(self.n, generator=source, dtype=torch.float64, device="cpu") / math.sqrt(self.m))
        return matrix.to(device)

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self._matrix(x).T

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return (y @ self._matrix(y)).unflatten(1, self.shape)


class Fourier(LinearOperator):
    """Some frequencies of an image's Fourier transform (magnetic resonance, one coil): real pairs, [batch, C, m, 2].

    ``torch.view_as_complex(y)`` are the m complex measurements of a channel, of the orthonormal transform. The mask is
    boolean, [H, W], True where a frequency is measured, alike in all `channels`; frequency zero lies in its middle, at
    [H // 2, W // 2]. A noise's standard deviation is that of the real and of the imaginary part each. Numbers of 16
    bits are transformed in 32.
    """

    pairs = True

    def __init__(self, mask: Tensor, channels: int = 1, domain: str = "image") -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 2 or not mask.any():
            given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask: got {given}; allowed: a boolean tensor of shape [H, W], True at least once")
        self._places = _plain(lambda: mask.detach().cpu().flatten().nonzero()[:, 0])
        channels = _support.count("channels", channels)
        super().__init__((channels, *mask.shape), (channels, len(self._places), 2), domain)

    def apply(self, x: Tensor) -> Tensor:
        wide = x.float() if x.element_size() == 2 else x
        spectrum = torch.fft.fftshift(torch.fft.fft2(wide, norm="ortho"), (-2, -1)).flatten(2)
        pairs = torch.view_as_real(spectrum[:, :, self._places.to(x.device)])
        return pairs if wide is x else pairs.to(x.dtype)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        wide = y.float() if y.element_size() == 2 else y
        measured = torch.view_as_complex(wide.contiguous())
        empty = measured.new_zeros(*y.shape[:2], math.prod(self.shape[1:]))
        spectrum = empty.index_copy(2, self._places.to(y.device), measured).unflatten(2, self.shape[1:])
        return torch.fft.ifft2(torch.fft.ifftshift(spectrum, (-2, -1)), norm="ortho").real.contiguous().to(y.dtype)


class PerImage(LinearOperator):
    """One linear operator for each image of a batch, all of the same shapes, such as matrices drawn for each."""

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        self.operators, self.batch = tuple(operators), len(operators)
        kinds: set[tuple] = {
            (a.shape, a.output_shape, a.domain, a.pairs) if isinstance(a, LinearOperator) and not a.batch else ()
            for a in self.operators
        }
        if len(kinds) != 1 or () in kinds:
            given = ", ".join(f"{type(a).__name__}{getattr(a, 'output_shape', '')}" for a in self.operators) or "none"
            raise ValueError(f"operators: got {given}; allowed: LinearOperators of the same shapes and domain")
        *sizes, self.pairs = kinds.pop()
        super().__init__(*sizes)

    def apply(self, x: Tensor) -> Tensor:
        return torch.cat([a.forward(one) for a, one in zip(self.operators, x.split(1), strict=True)])

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([a.transpose(one) for a, one in zip(self.operators, y.split(1), strict=True)])

    def select(self, index: Index) -> Self:
        rows = torch.arange(len(self.operators), device="cpu")[torch.as_tensor(index, device="cpu")].tolist()
        return replaced(self, operators=tuple(self.operators[k] for k in rows), batch=len(rows))


class Blur(LinearOperator):
    """Convolution of every channel with one kernel, where the kernel lies wholly inside the image ("valid").

    A camera sees no pixels beyond its edge either: with a k×k kernel, k − 1 rows and columns are lost, and no rule
    about what lies outside the image has to be made up. The kernel, [k, l], at most as large as the image, is cast to
    the dtype of the images.
    """

    def __init__(self, shape: Sequence[int], kernel: Tensor, domain: str = "image") -> None:
        shape = _support.image_shape(shape)
        sizes = tuple(_support.finite("kernel", kernel).shape)
        if len(sizes) != 2 or 0 in sizes or sizes[0] > shape[1] or sizes[1] > shape[2]:
            allowed = f"[rows, columns], from 1 × 1 to {shape[1]} × {shape[2]}"
            raise ValueError(f"kernel: got shape {sizes}; allowed: {allowed}")
        self.kernel = _plain(lambda: kernel.detach().clone())
        super().__init__(shape, (shape[0], shape[1] - sizes[0] + 1, shape[2] - sizes[1] + 1), domain)

    @classmethod
    def gaussian(cls, shape: Sequence[int], std: float, size: int | None = None) -> "Blur":
        """Blur by a normal density of `std` pixels, cut off to `size` × `size` (default 2⌈3 std⌉ + 1)."""
        std = _support.positive("std", std)
        widest = max(_support.shape("shape", shape))
        name, given = ("std", std) if size is None else ("size", size)
        size = _support.count("size", 2 * math.ceil(min(3 * std, widest)) + 1 if size is None else size)
        if size > widest:  # refused before it is built
            raise ValueError(f"{name}: got {given!r}; allowed: a kernel no larger than an image of {tuple(shape)}")
        place = torch.arange(size, dtype=torch.float64, device="cpu") - (size - 1) / 2
        profile = torch.exp(-0.5 * (place / std) ** 2)
        return cls(shape, torch.outer(profile, profile) / profile.sum() ** 2)

    def _weight(self, like: Tensor) -> Tensor:
        return self.kernel.to(like).flip(0, 1).expand(self.shape[0], 1, *self.kernel.shape)

    def apply(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self._weight(x), groups=self.shape[0])

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return F.conv_transpose2d(y, self._weight(y), groups=self.shape[0])


class Downsample(LinearOperator):
    """Super-resolution: the mean of every `factor` × `factor` block of pixels."""

    def __init__(self, shape: Sequence[int], factor: int, domain: str = "image") -> None:
        channels, height, width = _support.image_shape(shape)
        self.factor = factor = _support.count("factor", factor)
        if height % factor or width % factor:
            raise ValueError(f"shape: got {tuple(shape)} with factor {factor}; allowed: H and W divisible by it")
        super().__init__(shape, (channels, height // factor, width // factor), domain)

    def apply(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.factor)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3) / self.factor**2
