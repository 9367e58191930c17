"""Normalizing flows: exact densities and exact inverses on top of any bijection."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from companion import _support
from companion.priors.base import Prior, standard_normal_log_density
from companion.priors.bijections import Bijection
from companion.priors.pixels import PixelMap


@dataclass(frozen=True)
class Check:
    """Numerical health of a flow on a batch; every field [batch]."""

    round_trip: Tensor  # max |decode(encode(x)) − x|
    log_det: Tensor  # log|det dz/dx|, nats
    stretch: Tensor  # largest singular value of dz/dx, estimated by power iteration from below
    shrink: Tensor  # smallest one, from above

    @property
    def condition(self) -> Tensor:
        """Stretch / shrink; infinite where the flow saturates, and so is constant around the image."""
        return torch.where(self.shrink > 0, self.stretch / self.shrink, torch.inf)


class Flow(Prior, stored=False):
    """A density on images: x = G(z) with z ~ N(0, I) and G invertible.

    `pixels` maps images of shape `shape` to the flow's input (None where x is no image), and `bijection` that input,
    [batch, *shape], to the flat latent, [batch, n]. A flow computes in its own dtype, inside ``torch.autocast`` too:
    rounded to half precision, its inverse would not be one. (:class:`companion.training.Schedule` offers mixed
    precision that keeps flows invertible.)
    """

    initialised: Tensor

    def __init__(self, shape: tuple[int, ...], bijection: Bijection, pixels: PixelMap | None) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.latent_dim = int(torch.Size(shape).numel())
        self.bijection = bijection
        self.pixels = pixels
        self.register_buffer("initialised", torch.tensor(False))

    @property
    def domain(self) -> tuple[float, float] | None:
        """The open interval of pixels that the flow can represent; None where that is every real number."""
        return self.pixels.domain if self.pixels else None

    def encode_with_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents z = G⁻¹(x), [batch, n], and log|det dz/dx|, [batch]."""
        x = self._check_image(x)
        with _support.own_precision(x):
            h, outer = self.pixels.encode(x) if self.pixels else (x, 0.0)
            z, inner = self.bijection.encode(h)
            return z, inner + outer

    def decode_with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Images x = G(z), [batch, *shape], and log|det dx/dz|, [batch]."""
        z = self._check_latent(z)
        with _support.own_precision(z):
            h, inner = self.bijection.decode(z)
            x, outer = self.pixels.decode(h) if self.pixels else (h, 0.0)
            return x, inner + outer

    def encode(self, x: Tensor) -> Tensor:
        """Latents z = G⁻¹(x), [batch, n], of images x, [batch, *shape]."""
        return self.encode_with_log_det(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Images x = G(z), [batch, *shape], of latents z, [batch, n]; not clipped to [0, 1]."""
        return self.decode_with_log_det(z)[0]

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [batch]: log N(G⁻¹(x); 0, I) + log|det dG⁻¹/dx| (Asim et al. 2020, sec. 2).

        Pixels outside [0, 1] have a density too, unless the flow cannot represent them (logit pixels): then ValueError.
        """
        z, log_det = self.encode_with_log_det(x)
        return standard_normal_log_density(z) + log_det

    def log_prob_latent(self, z: Tensor) -> Tensor:
        """log p(G(z)) in nats, [batch]: the density of the image that z makes, without encoding it."""
        return standard_normal_log_density(z) - self.decode_with_log_det(z)[1]

    def bits_per_dim(self, x: Tensor, seed: int | torch.Generator = 0) -> Tensor:
        """Bits per dimension of 8-bit images x in [0, 1], [batch]: an upper bound through one uniform dequantisation.

        The discretisation is that of the flow (`bits`): L = 256 values per pixel for 8 bits, 32 for 5.
        """
        if self.pixels is None:
            raise ValueError("bits_per_dim: got a flow on points; allowed: a flow on images")
        log_density = self.log_prob(self.pixels.dequantise(_support.images("x", x, self.shape), seed))
        return self.pixels.bits_per_dim(log_density, self.latent_dim)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set the scale and shift of every ActNorm from a batch of training images (once, before training).

        A flow that was initialised, trained or loaded refuses a second initialisation, and a new one refuses
        NaN and constant images, of which it keeps no trace.
        """
        if bool(self.initialised):
            raise ValueError("initialise: got a flow that is initialised already; allowed: a new flow")
        before = {k: v.clone() for k, v in self.state_dict().items()}
        h = self.pixels.encode(self._check_image(x))[0] if self.pixels else self._check_image(x)
        try:
            self.bijection.initialise(h)
        except ValueError:
            self.load_state_dict(before)  # a refused batch leaves no trace
            raise
        self.initialised.fill_(True)

    @torch.no_grad()
    def check(self, x: Tensor, iterations: int = 10, tolerance: float | None = None) -> Check:
        """Round-trip error, log-determinant and conditioning of the flow at the images `x`.

        Warns where the round trip is off by more than `tolerance` (default 1e-4 in float32, 1e-9 in float64).
        """
        z, log_det = self.encode_with_log_det(x)
        back = self.decode(z)
        error = (back - x).flatten(1).abs().amax(1)
        if tolerance is None:
            tolerance = 1e-4 if x.dtype == torch.float32 else 1e-9
        if not bool((error <= tolerance).all()):
            warnings.warn(
                f"round trip off by up to {float(error.max()):.2g} (tolerance {tolerance:.0e}): "
                "the flow is ill-conditioned here",
                RuntimeWarning,
                stacklevel=2,
            )
        stretch = _largest_singular_value(self.encode, x, iterations)
        inverse_stretch = _largest_singular_value(self.decode, z, iterations)
        # where decode saturates its derivative is 0: all that is known of the smallest value then is this bound
        return Check(error, log_det, stretch, torch.minimum(1 / inverse_stretch, stretch))


def _largest_singular_value(function: Callable[[Tensor], Tensor], at: Tensor, iterations: int) -> Tensor:
    """Power iteration on JᵀJ of `function` at each row of `at`; [batch]."""
    direction = _support.normal(tuple(at.shape), 0, at, "direction")
    value = at.new_zeros(at.shape[0])
    for _ in range(iterations):
        norm = direction.flatten(1).norm(dim=1).clamp_min(torch.finfo(at.dtype).tiny)
        direction = direction / norm.view(-1, *[1] * (at.dim() - 1))
        pushed = torch.func.jvp(function, (at,), (direction,))[1]
        value = pushed.flatten(1).norm(dim=1)
        (direction,) = torch.func.vjp(function, at)[1](pushed)
    return value
