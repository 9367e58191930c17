"""Whang et al. 2021, theorem 4.2: the error of compressed sensing beside the Gaussian-width bound, both known exactly.

Under a linear-Gaussian generator, x = c + F z with z ~ N(0, I), the images at least as likely as x* = c + F z* are an
ellipsoid, {c + F u : ‖u‖ ≤ ‖z*‖}, whose width is an integral, and the most likely image that explains measurements to
within ε is the shortest such latent.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

from companion import _support
from companion.experiments import Context, Part, experiment, gather, named
from companion.experiments.whang import sets


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the test."""

    data: str = "mnist"  # whose mean and principal components are the generator
    ranks: tuple[int, ...] = (3, 30, 300)  # components it keeps
    measurements: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)
    epsilon: float = 0.5  # norm of the noise
    images: int = 20  # drawn from the generator
    draws: int = 10  # of the matrix


@experiment(
    "whang.mean-width",
    paper="Whang et al. 2021",
    shows="Theorem 4.2",
    profiles={
        "quick": Settings(data="digits", ranks=(3, 30), measurements=(10, 100, 1000), images=4, draws=3),
        "laptop": Settings(),
    },
    tolerances={"*": 0.02},
)
def mean_width(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers draws of a linear-Gaussian generator from m measurements, and compares error and bound.

    Arrays: "error", ‖x̂ − x*‖, by rank, m, draw and image; by rank, m and image the theorem's "bound"; and by rank and
    image what is known without measurements, "centre", ‖c − x*‖, and "diameter" of the ellipsoid.
    """
    items = [(rank, m) for rank in settings.ranks for m in settings.measurements]
    found = gather(context.map(_recover, items, "sizes"), rank=settings.ranks, m=settings.measurements)
    known = gather(context.map(_known, settings.ranks, "ranks"), rank=settings.ranks)
    return {}, found | known


def _images(settings: Settings, part: Part, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The generator's factor F, [n, rank], and latents of images, [images, rank]."""
    factor, _ = sets.gaussian(settings.data, 28, part.device)
    z = _support.normal((settings.images, rank), part.seed, factor, "latents", rank)
    return factor[:, :rank].cpu().numpy(), z.cpu().numpy()


def _recover(settings: Settings, part: Part, item: tuple[int, int]) -> tuple[dict, dict]:
    rank, m = item
    factor, latents = _images(settings, part, rank)
    errors = np.empty((settings.draws, len(latents)))
    for draw in range(settings.draws):
        source = _support.generator(part.seed, "measurement", m, draw)
        sizes = (m, len(factor)), (len(latents), m)
        matrix, noise = (torch.randn(size, generator=source, dtype=torch.float64).numpy() for size in sizes)
        forward = matrix / math.sqrt(m) @ factor
        noise *= settings.epsilon / np.linalg.norm(noise, axis=1, keepdims=True)
        found = shortest(forward, latents @ forward.T + noise, settings.epsilon)
        errors[draw] = np.linalg.norm((found - latents) @ factor.T, axis=1)
    scales = np.linalg.norm(factor, axis=0)  # the factor's columns are orthogonal
    widths = [width(np.linalg.norm(z) * scales) for z in latents]
    return {}, {
        "error": named(errors, draw=settings.draws, image=settings.images),
        "bound": named(bound(np.array(widths), m, settings.epsilon), image=settings.images),
    }


def _known(settings: Settings, part: Part, rank: int) -> tuple[dict, dict]:
    factor, latents = _images(settings, part, rank)
    largest = np.linalg.norm(factor, axis=0).max()
    return {}, {
        "centre": named(np.linalg.norm(latents @ factor.T, axis=1), image=settings.images),
        "diameter": named(2 * largest * np.linalg.norm(latents, axis=1), image=settings.images),
    }


def width(axes: np.ndarray) -> float:
    """Gaussian mean width of an ellipsoid with these half-axes a: E sup |⟨g, x − y⟩| = 2 E √(Σ aᵢ² gᵢ²).

    By √q = ∫ (1 − exp(−t q)) t^(−3/2) dt / 2√π over t > 0, and E exp(−t Σ aᵢ² gᵢ²) = Π (1 + 2 t aᵢ²)^(−1/2).
    """
    squares = np.asarray(axes, dtype=float) ** 2
    shares = squares / squares.sum()

    def integrand(log_t: float) -> float:
        t = math.exp(log_t)
        return -math.expm1(-0.5 * float(np.log1p(2 * t * shares).sum())) / math.sqrt(t)

    mean = quad(integrand, -60, 60, points=[-5, 0, 5], limit=200)[0] / (2 * math.sqrt(math.pi))
    return 2 * math.sqrt(squares.sum()) * mean


def bound(width: float | np.ndarray, m: int, epsilon: float) -> float | np.ndarray:
    """√8π (w / √m + ε) for m measurements with entries N(0, 1/m) and noise of norm ε."""
    return math.sqrt(8 * math.pi) * (width / math.sqrt(m) + epsilon)


def shortest(forward: np.ndarray, y: np.ndarray, epsilon: float) -> np.ndarray:
    """The shortest latents z, [batch, k], with ‖forward z − y‖ ≤ ε, for y [batch, m] that some latents explain so well.

    They are Tikhonov's with the weight λ at which the misfit is ε: in the basis of singular vectors, a root in λ.
    """
    left, values, right = np.linalg.svd(forward, full_matrices=False)

    def solve(row: np.ndarray) -> np.ndarray:
        if np.linalg.norm(row) <= epsilon:
            return np.zeros(forward.shape[1])
        seen = left.T @ row
        beyond = float(row @ row - seen @ seen)  # out of reach of every latent

        def excess(log_weight: float) -> float:
            shrink = 1 / (1 + values**2 * math.exp(-log_weight))
            return float(np.square(shrink * seen).sum()) + beyond - epsilon**2

        middle = 2 * math.log(values[0])
        weight = math.exp(brentq(excess, middle - 60, middle + 60, xtol=1e-10))
        return right.T @ (values / (values**2 + weight) * seen)

    return np.stack([solve(row) for row in y])
