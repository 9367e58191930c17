"""The Laplace mixture, and what it tells a model of where to look: few directions of many learn from data."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from companion import _support
from companion.bayes.divergence import weighted
from companion.bayes.moved import moved
from companion.bayes.problems import FieldProblem, maximise
from companion.priors.fields import GaussianField
from companion.priors.msign import DirectedAffine, Mirrored, MsIGN


@dataclass(frozen=True)
class Laplace:
    """The Gaussian that fits a posterior at one of its modes, in the prior's latents z.

    Its covariance is I − Σ_i λ_i/(1 + λ_i) v_i v_iᵀ, where λ and v are the leading eigenvalues and eigenvectors of the
    Hessian of −log likelihood (likelihood-informed directions: Cui et al. 2014).

    Attributes
    ----------
    field : GaussianField
        The prior.
    mode : Tensor
        [d].
    curvatures, directions : Tensor
        λ [rank], largest first, and v [rank, d].
    symmetric : bool
        Whether the likelihood is its own mirror image at the mode and about a standard deviation away in all these
        directions; only then has the posterior a second mode, or the same one, at the mode's mirror image.
    """

    field: GaussianField
    mode: Tensor
    curvatures: Tensor
    directions: Tensor
    symmetric: bool

    def covariance(self, basis: Tensor) -> Tensor:
        """Of the coordinates along the orthonormal rows of basis [r, d], [r, r]."""
        inner = basis @ self.directions.T
        shrunk = inner * (self.curvatures / (1 + self.curvatures)) @ inner.T
        return basis @ basis.T - shrunk

    def towards(self, latents: Tensor) -> "Laplace":
        """This one or its mirror image, whichever has its mode nearer to latents [d]; this one if not `symmetric`."""
        if not self.symmetric:
            return self
        there = self._mirrored(self.mode[None])[0]
        if (there - latents).norm() >= (self.mode - latents).norm():
            return self
        return replace(self, mode=there, directions=self._mirrored(self.directions))

    def _mirrored(self, latents: Tensor) -> Tensor:
        return self.field.encode(self.field.mirror(self.field.decode(latents)))

    def model(self) -> MsIGN:
        """The Gaussian as a model."""
        basis = torch.linalg.qr(torch.cat([self.mode[None], self.directions]).T[:, : len(self.mode)])[0].T
        layer = DirectedAffine(self.field, len(basis))
        layer.aim(self.field, basis, _root(self.covariance(basis)), basis @ self.mode)
        return MsIGN(self.field, 1, flows=[layer])

    def mixture(self) -> Mirrored:
        """Equal parts of the Gaussian and its mirror image: the cheap method that a network has to beat.

        ValueError for a posterior that is not `symmetric`.
        """
        if not self.symmetric:
            given = "problem: got one whose likelihood is not that of the mirror image"
            raise ValueError(f"{given}; allowed: a mirror-symmetric one, or the Gaussian alone, model()")
        return Mirrored(self.model())


@torch.inference_mode(False)  # gradients are needed, whatever mode the caller is in
def laplace(problem: FieldProblem, rank: int = 40, starts: int = 3, seed: int = 0) -> Laplace:
    """The Laplace approximation at the highest mode that searches from draws of the prior find; it knows no others.

    Parameters
    ----------
    problem
        A posterior.
    rank
        Number of eigenvectors, found by one step of subspace iteration; exact where it is d or more. They cost two
        products with the Hessian each.
    starts, seed
        Number of searches, and the seed of their starts and of the subspace.
    """
    field, d = problem.field, problem.field.latent_dim
    rank = min(_support.count("rank", rank), d)
    draws = _support.normal((_support.count("starts", starts), d), seed, field.like, "laplace", "start")
    mode = field.encode(maximise(problem, draws)[0][None])[0].detach()
    basis = torch.eye(d, dtype=mode.dtype, device=mode.device)
    if rank < d:
        probes = _support.normal((rank, d), seed, mode, "laplace", "subspace")
        basis = torch.linalg.qr(_curved(problem, mode, probes).T)[0].T
    curvatures, vectors = torch.linalg.eigh(_symmetric(basis @ _curved(problem, mode, basis).T))
    curvatures, directions = curvatures.flip(0), (vectors.T @ basis).flip(0)
    aside = mode + (1 + curvatures.clamp_min(0)).rsqrt() @ directions
    symmetric = problem.symmetric_at(field.decode(torch.stack([mode, aside])))
    return Laplace(field, mode, curvatures, directions, symmetric)


@torch.inference_mode(False)  # gradients are needed, whatever mode the caller is in
def aim(
    problem: FieldProblem, model: Mirrored | MsIGN, samples: int, rounds: int = 2, moves: int = 0, seed: int = 0
) -> None:
    """Aim the affine layer of a model's finest scale at one mode of the posterior, before it is trained.

    Its directions are those along which the likelihood of this scale or of the one below curves most: samples of the
    proposal are sharp along the coarse ones, and shall be along the fine ones. It starts as the optimal transport
    between Gaussians from the proposal's moments to those of the Laplace approximation at the highest mode found, or,
    of a mirror-symmetric posterior, at that or its mirror image, whichever the proposal leans to; then up to `rounds`
    times to the moments of its own samples, weighted by the posterior, while these say more than their own noise; and
    last, with `moves`, to those of a quarter as many samples, moved.

    Parameters
    ----------
    problem, model
        A posterior, and a model of it whose layer is to be aimed; the rest of its finest scale is still the identity.
    samples
        For each estimate of moments.
    moves
        Of the last samples: see :func:`companion.bayes.moved.moved`.
    """
    layer, field = model.directed, problem.field
    if layer is None:
        raise ValueError("model: got none of rank 1 or more; allowed: a model with an affine layer")
    rank = len(layer.shift)
    if (-(-samples // 4) if moves else samples) <= rank:
        quarter = ", a quarter of them to be moved" if moves else ""
        raise ValueError(f"samples (pool): got {samples}{quarter}; allowed: more than the affine layer's rank, {rank}")
    eye = torch.eye(rank, field.latent_dim, device="cpu").to(field.like)
    layer.aim(field, eye, eye[:, :rank], 0 * layer.shift)
    draws = _support.generator(seed, "aim", model.scales)
    half_model = model.half_model if isinstance(model, Mirrored) else model
    with torch.no_grad():
        x = half_model.sample(samples, seed=draws)
    # of two modes the one that the proposal leans to: curvatures and directions of the other are the mirror image's
    fine = laplace(problem, max(40, rank), seed=seed).towards(field.encode(x).mean(0))
    rows = [fine.curvatures.abs().sqrt()[:, None] * fine.directions]
    if model.scales > 1:
        coarse = laplace(problem.coarsen(), seed=seed)
        side = coarse.field.side
        pooled = x.view(-1, side, 2, side, 2).mean((2, 4)).flatten(1)
        coarse = coarse.towards(coarse.field.encode(pooled).mean(0))
        # along coarse latents, c = vᵀ E⁻¹ A x with A = 2 × 2 averages; in the finer latents a row is Eᵀ Aᵀ E⁻ᵀ v
        functionals = coarse.field.precision(coarse.field.decode(coarse.directions)) / 4
        repeated = functionals.view(-1, side, 1, side, 1).expand(-1, side, 2, side, 2).reshape(len(functionals), -1)
        pulled = field.std * field.modes.project(repeated)
        rows.append(coarse.curvatures.abs().sqrt()[:, None] * pulled)
    directions = torch.linalg.svd(torch.cat(rows), full_matrices=False)[2][:rank]
    before = field.encode(x) @ directions.T
    _transport(layer, field, directions, before, directions @ fine.mode, fine.covariance(directions))
    with torch.no_grad():
        for _ in range(rounds):
            x = half_model.sample(samples, seed=draws)
            # tempered where few samples would carry the weight: a step towards the posterior in place of a leap
            found = weighted(x, problem.log_density(x), model.log_prob(x), samples / 10)
            if samples - found.ess < layer.shift.numel() * (layer.shift.numel() + 3) / 2:
                break  # D_J, some samples / ESS − 1, is below what estimating so many moments would cost
            c = layer.coordinates(x)
            mean = found.weights @ c
            covariance = (c - mean).T @ (found.weights[:, None] * (c - mean))
            _transport(layer, field, directions, before, mean, covariance)
        if moves:
            x = half_model.sample(-(-samples // 4), seed=draws)
    if moves:
        c = layer.coordinates(moved(problem, model, x, moves, seed, ("aim", model.scales)))
        _transport(layer, field, directions, before, c.mean(0), c.T.cov(correction=0).view(rank, rank))


def _transport(
    layer: DirectedAffine, field: GaussianField, directions: Tensor, c: Tensor, mean: Tensor, covariance: Tensor
) -> None:
    """Aim at the Gaussian optimal map from the moments of c [n, rank] to a mean and a covariance."""
    root = _root(_symmetric(c.T.cov(correction=0)).view(len(mean), len(mean)))
    inverse = torch.linalg.inv(root)
    matrix = inverse @ _root(_symmetric(root @ covariance @ root)) @ inverse
    layer.aim(field, directions, matrix, mean - matrix @ c.mean(0))


def _curved(problem: FieldProblem, mode: Tensor, vectors: Tensor) -> Tensor:
    """Products of vectors [n, d] with the Hessian of −log likelihood at latents `mode`, [n, d]."""
    z = mode.expand(len(vectors), -1).clone().requires_grad_()
    value = -problem.log_likelihood(problem.field.decode(z))
    (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    return torch.autograd.grad((gradient * vectors).sum(), z)[0]


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
