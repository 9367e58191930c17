"""Where chains begin (Ang 2021, sec. 3.1)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from companion import _support
from companion.energy import Energy, Misfit
from companion.measure.base import LinearOperator
from companion.measure.linear import Mask
from companion.recover.search import minimise
from companion.sample.metric import of_prior

HOW = ("random", "posterior", "adjoint", "map", "map-posterior", "best", "typical")


def initialise(
    energy: Energy, how: str = "random", *, chains: int = 4, budget: int = 100, noise: float = 0.1, seed: int = 0
) -> Tensor:
    """Starts of chains in latent space, [images, chains, n].

    Parameters
    ----------
    how
        "random": z ~ N(0, I). "posterior": the latents of a first guess, :func:`first_guess`, by the prior's encoder or
        the flow's inverse; one for all chains. "adjoint": those of A* y as it is, hidden pixels black. "map": a minimum
        of the energy for each chain, from its random start, by L-BFGS. "map-posterior": the encoded image of that
        (Ang's "MAP"). "best": the lowest of the minima from the posterior start and from chains − 1 random ones, for
        all chains: they agree, and R-hat does not see other modes. "typical": for a flow, whose MAP has an atypically
        small norm: "best", its image with N(0, noise²) added for each chain, encoded.
    chains
        For each image.
    budget
        Evaluations that a search may take, for each image and chain; 0 searches elsewhere.
    noise
        Standard deviation for "typical": that with which the flow was smoothed.
    seed
        A chain's start does not depend on the number of images or chains.

    Raises ValueError for a prior without ``encode`` where it is needed.
    """
    _support.one_of("how", how, HOW)
    chains, n = _support.count("chains", chains), of_prior(energy).prior.latent_dim
    like = next(term for _, term in energy.terms if isinstance(term, Misfit)).y

    def draws(name: str, shape: tuple[int, ...]) -> Tensor:
        rows = [[_support.normal(shape, seed, like, name, k, c) for c in range(chains)] for k in range(len(like))]
        return torch.stack([torch.stack(row) for row in rows])

    if how in ("posterior", "adjoint"):
        guess = first_guess(energy, fill=how == "posterior")
        return _encode(energy, guess)[:, None].expand(-1, chains, -1).clone()
    z = draws("start", (n,))
    if how == "random":
        return z
    if how in ("best", "typical") and hasattr(energy.prior, "encode"):
        z[:, 0] = _encode(energy, first_guess(energy))
    z, values = improve(energy, z, budget)
    if how in ("best", "typical"):
        best = values.argmin(1)
        z = z[torch.arange(len(z), device=z.device), best][:, None].expand(-1, chains, -1).clone()
    if how in ("map", "best"):
        return z
    with torch.no_grad():
        x = energy.prior.decode(z.flatten(0, 1))
    if how == "typical":
        x = x + _support.positive("noise", noise) * draws("typical", tuple(x.shape[1:])).flatten(0, 1)
    return _encode(energy, x).view_as(z)


def improve(energy: Energy, z: Tensor, budget: int = 100) -> tuple[Tensor, Tensor]:
    """Minima by L-BFGS from starts z, [images, chains, n], and their energies, [images, chains]."""
    index = torch.arange(len(z), device=z.device).repeat_interleave(z.shape[1])
    found = minimise(energy.select(index), z.flatten(0, 1), max_evaluations=_support.count("budget", budget))
    return found.z.view_as(z), found.energy.view(z.shape[:2])


def first_guess(energy: Energy, fill: bool = True) -> Tensor:
    """Images to begin with, [images, *shape]: A* y within [0, 1]; `fill` gives a mask's gaps means of 5×5 neighbours.

    The image of z = 0 where the operator is not linear.
    """
    misfit = next(term for _, term in energy.terms if isinstance(term, Misfit))
    operator, y = misfit.operator, misfit.y
    if not isinstance(operator, LinearOperator):
        with torch.no_grad():
            return energy.prior.decode(y.new_zeros(len(y), energy.prior.latent_dim))
    x = operator.transpose(y)
    if fill and isinstance(operator, Mask):
        seen = operator.transpose(torch.ones_like(y))
        near, number = (F.avg_pool2d(values, 5, 1, 2) for values in (x, seen))
        mean = x.flatten(1).sum(1) / y.shape[1]
        filled = torch.where(number > 0, near / number.clamp(min=1e-6), mean.view(-1, 1, 1, 1))
        x = torch.where(seen > 0, x, filled)
    return x.clamp(0, 1) if operator.domain == "image" else x


@torch.no_grad()
def _encode(energy: Energy, x: Tensor) -> Tensor:
    """Latents of images, moved into what the prior can represent."""
    prior: Any = energy.prior
    if not hasattr(prior, "encode"):
        raise ValueError(f"prior: got {type(prior).__name__}, which encodes nothing; allowed: a VAE or a flow")
    low, high = getattr(prior, "domain", None) or (-torch.inf, torch.inf)
    margin = 1e-3 * (high - low) if high < torch.inf else 0.0
    return prior.encode(x.clamp(low + margin, high - margin))
