"""A metric for each image: coordinates in which its posterior is about as wide in every direction."""

from dataclasses import dataclass

import torch
from torch import Tensor

from companion import _support
from companion.energy import Energy, Misfit, NoiseMisfit, SquaredMisfit
from companion.priors.linear import wide


@dataclass(frozen=True)
class Metric:
    """Coordinates u with z = centre + L u, an L for each image; L Lᵀ = C is the covariance that a sampler assumes.

    A sampler that works on u with one step size is the sampler on z that is preconditioned by C.
    """

    centre: Tensor  # [images, n]
    factor: Tensor  # L, [images, n, n]
    evaluations: int = 0  # that it cost, per image; one is an energy with its gradient

    def outward(self, u: Tensor) -> Tensor:
        """z of coordinates u, both [images, chains, n]."""
        return self.centre[:, None] + u @ self.factor.mT

    def inward(self, z: Tensor) -> Tensor:
        """u of latents z, both [images, chains, n]."""
        return torch.linalg.solve(self.factor, (z - self.centre[:, None]).mT).mT

    @property
    def widths(self) -> Tensor:
        """Standard deviations of N(centre, C) along its axes, [images, n], narrowest first."""
        return torch.linalg.svdvals(self.factor).flip(1)

    @property
    def log_volume(self) -> Tensor:
        """½ log det C, [images]: energy(centre) − log_volume compares the Laplace weights of two modes."""
        return torch.linalg.slogdet(self.factor)[1]

    def draw(self, chains: int, scale: float = 1.0, seed: int = 0) -> Tensor:
        """Draws of N(centre, scale² C), [images, chains, n]; `scale` > 1 makes the over-dispersed starts of R-hat."""
        chains, scale = _support.count("chains", chains), _support.positive("scale", scale)
        shape, like, images = self.centre.shape[1:], self.centre, range(len(self.centre))
        rows = [_support.normal(shape, seed, like, "laplace", k, c) for k in images for c in range(chains)]
        return self.outward(scale * torch.stack(rows).unflatten(0, (-1, chains)))

    def learned(self, samples: Tensor, prior_draws: float = 10.0) -> "Metric":
        """The metric whose C is the covariance of draws, [draws, images, chains, n], and whose centre is their mean.

        This metric's own covariance counts as so many draws more, since few draws say little of n directions (as in
        Stan's warm-up, Carpenter et al. 2017, where it is an identity that counts as five).
        """
        own = _support.positive("prior_draws", prior_draws)
        _support.finite("samples", samples)
        if samples.dim() != 4 or samples.shape[1] != len(self.centre) or samples.shape[3] != self.centre.shape[1]:
            images, n = self.centre.shape
            raise ValueError(f"samples: got {tuple(samples.shape)}; allowed: [draws, {images}, chains, {n}]")
        draws = wide(samples.transpose(0, 1).flatten(1, 2))
        mean = draws.mean(1)
        factor = wide(self.factor)
        u = torch.linalg.solve(factor, (draws - mean[:, None]).mT)  # [images, n, draws], of covariance I if C is right
        number = u.shape[2]
        covariance = (u @ u.mT + own * torch.eye(u.shape[1], device="cpu").to(u)) / (number + own)
        learned = factor @ torch.linalg.cholesky(covariance)
        return Metric(mean.to(self.centre), learned.to(self.factor), self.evaluations)

    def select(self, index: Tensor) -> "Metric":
        """The metric of some images, in the order of `index`."""
        return Metric(self.centre[index], self.factor[index], self.evaluations)


def of_prior(energy: object) -> Energy:
    """The energy, if it is one of a prior and not a plain function, which says nothing of latents and misfits."""
    if not isinstance(energy, Energy):
        raise ValueError(f"energy: got {type(energy).__name__}; allowed: an energy.Energy")
    return energy


def gauss_newton(energy: Energy, z: Tensor) -> Metric:
    """The Gauss–Newton metric C = (I + Jᵀ Λ J)⁻¹ at latents z, [images, n], of a prior z ~ N(0, I).

    J is the Jacobian of the exact measurements f(G(z)), by n forward-mode products, each of which costs about one
    evaluation. Λ is the precision of the measurements: their Fisher information, which is 1/std² for normal noise
    (:meth:`companion.measure.Noise.precision`), or 2 for a sum of squares; times the misfit's weight. z should be a
    mode: N(z, C) is then Laplace's approximation of the posterior.

    Raises ValueError for an energy in image space, and for a misfit that is none of these or whose noise has no
    precision.
    """
    if of_prior(energy).space != "z":
        raise ValueError(f"energy: got one in space {energy.space!r}; allowed: 'z'")
    z = _support.finite("z", _support.batch_of("z", z, energy.variable_shape)).detach()
    if len(z) != len(energy):
        raise ValueError(f"z: got {len(z)} rows; allowed: {len(energy)}, one for each image of the energy")
    n = z.shape[1]
    precision = torch.eye(n, dtype=z.dtype, device=z.device).repeat(len(z), 1, 1)
    for weight, term in energy.terms:
        if isinstance(term, Misfit):
            weights = _precision(energy, term, z).to(z)
            directions = torch.eye(n, dtype=z.dtype, device=z.device)
            columns = [_product(energy, term, z, direction) for direction in directions]
            jacobian = torch.stack(columns, -1)  # [images, m, n]
            precision = precision + weight * jacobian.mT @ (weights * jacobian)
    values, vectors = torch.linalg.eigh(precision)
    return Metric(z, vectors * values.rsqrt()[:, None], n)


def _product(energy: Energy, misfit: Misfit, z: Tensor, direction: Tensor) -> Tensor:
    """J times a direction, [images, m]."""
    measured = torch.func.jvp(
        lambda latents: misfit.operator.forward(energy.prior.decode(latents)), (z,), (direction.expand_as(z).clone(),)
    )
    return measured[1].flatten(1).detach()


@torch.no_grad()
def _precision(energy: Energy, misfit: Misfit, z: Tensor) -> Tensor:
    """Λ, [images, m, 1] or [1, 1]."""
    if isinstance(misfit, SquaredMisfit):
        return torch.full((1, 1), 2.0, device="cpu")
    if not isinstance(misfit, NoiseMisfit):
        raise ValueError(f"energy: got a {type(misfit).__name__}; allowed: SquaredMisfit or NoiseMisfit")
    return misfit.problem.noise.precision(misfit.operator.forward(energy.prior.decode(z))).flatten(1).unsqueeze(2)
