"""Stein variational gradient descent: particles that repel each other; and the same in the informed directions."""

from collections.abc import Callable

import torch
from torch import Tensor

from companion import _support
from companion.energy import Objective
from companion.sample.metric import Metric
from companion.sample.state import Rows, State, chains_of

Target = Objective | Callable[[Tensor], Tensor]


@torch.inference_mode(False)
def svgd(
    energy: Target, z0: Tensor, *, iterations: int = 500, step: float = 0.1, metric: Metric | None = None
) -> Tensor:
    """Particles of exp(−energy), [images, particles, *variable shape], from z0 of that shape (Liu & Wang 2016, eq. 8).

    The kernel is Gaussian with the median heuristic, h² = median ‖zᵢ − zⱼ‖² / log(particles + 1) for each image, and
    the steps are Adagrad's with a decay of 0.9, as in the published code. One evaluation for each particle and
    iteration. Particles whose energy is not finite stay where they are and repel nobody.

    With few particles in many dimensions the variance comes out too small: compare with a Markov chain.
    """
    z0 = chains_of(energy, z0)
    rows = Rows(energy, z0, metric)
    iterations, start = _support.count("iterations", iterations), rows.at(rows.coordinates(z0))
    found = _descend(rows, start, None, iterations, step)
    return rows.variable(found).view_as(z0)


@torch.inference_mode(False)
def projected_svgd(
    energy: Target,
    z0: Tensor,
    *,
    iterations: int = 500,
    step: float = 0.1,
    dimensions: int | None = None,
    tolerance: float = 0.1,
    rounds: int = 5,
) -> Tensor:
    """Projected SVGD (Chen & Ghattas 2020, Algorithm 2), for a prior N(0, I) of the variable; as :func:`svgd`.

    The informed directions are the leading eigenvectors of the mean of ∇misfit ∇misfitᵀ over an image's particles,
    found anew in each of `rounds`: those with an eigenvalue >= `tolerance`, at most `dimensions` of them. The particles
    descend in these coordinates, and keep what z0, draws of the prior, gave them in all others.
    """
    z0 = chains_of(energy, z0)
    rows, rounds = Rows(energy, z0), _support.count("rounds", rounds)
    tolerance, iterations = _support.positive("tolerance", tolerance), _support.count("iterations", iterations)
    z, most = rows.coordinates(z0), z0[0, 0].numel() if dimensions is None else _support.count("dimensions", dimensions)
    parts = [iterations * (k + 1) // rounds - iterations * k // rounds for k in range(rounds)]
    for part in filter(None, parts):  # fewer iterations than rounds make fewer rounds
        state = rows.at(z)
        misfit = (state.gradient - z).nan_to_num(0.0, 0.0, 0.0).view(rows.images, rows.chains, -1)
        _, values, vectors = torch.linalg.svd(misfit / rows.chains**0.5, full_matrices=False)
        basis = vectors[:, :most].mT * (values.square() >= tolerance)[:, None, :most]  # [images, n, dimensions]
        z = _descend(rows, state, basis, part, step)
    return rows.variable(z).view_as(z0)


def _descend(rows: Rows, state: State, basis: Tensor | None, iterations: int, step: float) -> Tensor:
    """Coordinates after so many iterations, in the span of `basis`, [images, n, dimensions], where there is one."""
    step, mean_square, u = _support.positive("step", step), None, state.z
    for iteration in range(iterations):
        state = rows.at(u) if iteration else state
        fine = state.finite
        place = state.z.view(rows.images, rows.chains, -1)
        score = -state.gradient.view_as(place)
        if basis is not None:
            place, score = place @ basis, score @ basis
        move = direction(place, score, fine.view(rows.images, rows.chains))
        mean_square = move.square() if mean_square is None else 0.9 * mean_square + 0.1 * move.square()
        move = step * move / (1e-6 + mean_square.sqrt())
        moved = u + (move if basis is None else move @ basis.mT).flatten(0, 1)
        u = torch.where(fine[:, None], moved, u)
    return u


def direction(z: Tensor, score: Tensor, fine: Tensor) -> Tensor:
    """φ(zᵢ) = mean over j of k(zⱼ, zᵢ) scoreⱼ + ∇ⱼ k(zⱼ, zᵢ), [images, particles, n]; of `fine` particles j alone."""
    # φ does not depend on the origin, but rounding does: particles may be far closer to each other than to 0
    z = z - z.mean(1, keepdim=True)
    squared = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()
    width = squared.flatten(1).median(1).values / torch.log(torch.tensor(z.shape[1] + 1.0, device="cpu")) + 1e-12
    kernel = torch.exp(-squared / width[:, None, None]) * fine[:, None, :]  # [images, i, j]
    score = torch.where(fine[:, :, None], score, 0.0)
    repulsion = 2 / width[:, None, None] * (z * kernel.sum(2, keepdim=True) - kernel @ z)
    return (kernel @ score + repulsion) / fine.sum(1).clamp(min=1)[:, None, None]
