"""The linear theory of flow priors: a two-sided bound by Monte Carlo, and minimisers against a closed form."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import _support, measure, priors, recover
from companion.energy import Energy, LatentNorm, NoiseMisfit
from companion.experiments.context import Context
from companion.experiments.registry import experiment
from companion.recover.gaussian import gaussian_map


@dataclass(frozen=True)
class Settings:
    """Sizes of the study.

    Attributes:
        n: dimension of the linear flows.
        spectra: of their singular values; see `spectrum`.
        counts: numbers of measurements for them, 4 <= m < n.
        draws: of A for each spectrum and m.
        samples: of x for each A.
        solved: problems for each spectrum that the minimisers solve too, at m = n / 4.
    """

    n: int
    spectra: tuple[str, ...]
    counts: tuple[int, ...]
    draws: int
    samples: int
    solved: int


def linear_flow(sigma: Tensor, seed: int) -> priors.Linear:
    """x = U diag(σ) Vᵀ z with random orthogonal U and V."""
    source = _support.generator(seed, "flow")
    square = torch.randn(2, len(sigma), len(sigma), generator=source, dtype=sigma.dtype)
    left, right = torch.linalg.qr(square)[0]
    return priors.Linear(left * sigma @ right.mT)


def spectrum(name: str, n: int) -> Tensor:
    """Singular values σ₁ >= … >= σ_n, float64, scaled to Σ σᵢ² = 1.

    "power a": σᵢ ∝ i^−a. "exponential a": σᵢ ∝ exp(−a i / n). "step a": the first quarter is 1, the others are a.
    """
    kind, rate = name.split()[0], float(name.split()[1])
    i = torch.arange(1, n + 1, dtype=torch.float64)
    if kind == "power":
        sigma = i**-rate
    elif kind == "exponential":
        sigma = torch.exp(-rate * i / n)
    elif kind == "step":
        sigma = torch.where(i <= n / 4, torch.ones_like(i), rate)
    else:
        raise ValueError(f"name: got {name!r}; allowed: power, exponential or step, and a number")
    return sigma / sigma.norm()


def lower_bound(sigma: Tensor, m: int) -> float:
    """Σ_{i>m} σᵢ²: what the best m measurements, chosen for G, would leave."""
    return float(sigma[m:].square().sum())


def upper_bound(sigma: Tensor, m: int) -> float:
    """m Σ_{i>m−2} σᵢ² (Hand, lecture notes), for 4 <= m < n."""
    return m * float(sigma[m - 2 :].square().sum())


def sharper_bound(sigma: Tensor, m: int) -> float:
    """The least of (1 + k / (m − k − 1)) Σ_{i>k} σᵢ² over 0 <= k <= m − 2 (square of Halko et al. 2011, thm 10.5)."""
    return min((1 + k / (m - k - 1)) * float(sigma[k:].square().sum()) for k in range(m - 1))


def predicted_error(sigma: Tensor, m: int) -> float:
    """Λ m, where Σ σᵢ² / (σᵢ² + λ) = m: what the mean error tends to in high dimension (Dereziński et al. 2020)."""
    low, high = -60.0, 20.0  # of log λ
    for _ in range(200):
        middle = (low + high) / 2
        kept = float((sigma.square() / (sigma.square() + math.exp(middle))).sum())
        low, high = (middle, high) if kept > m else (low, middle)
    return math.exp(low) * m


@experiment(
    "asim.linear-theory",
    paper="Hand, lecture notes; Asim et al. 2020",
    shows="Theorem for linear invertible priors",
    profiles={
        "quick": Settings(
            n=24,
            spectra=("power 0", "power 1", "exponential 4", "step 0.1"),
            counts=(4, 12, 23),
            draws=20,
            samples=8,
            solved=2,
        ),
        "laptop": Settings(
            n=64,
            spectra=("power 0", "power 0.5", "power 1", "power 1.5", "power 2", "exponential 6", "step 0.05"),
            counts=(4, 6, 8, 12, 16, 24, 32, 40, 48, 56, 60, 63),
            draws=200,
            samples=8,
            solved=8,
        ),
        "paper": Settings(
            n=1024,
            spectra=("power 0", "power 0.5", "power 1", "power 1.5", "power 2", "exponential 6", "step 0.05"),
            counts=(4, 8, 16, 32, 64, 128, 256, 512, 768, 1000, 1020),
            draws=100,
            samples=8,
            solved=8,
        ),
    },
)
def linear_theory(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Checks the two-sided error bound for linear flows, and the minimisers against the closed form."""
    sigmas = [spectrum(name, settings.n) for name in settings.spectra]
    bounds = {
        name: np.array([[bound(sigma, m) for m in settings.counts] for sigma in sigmas])
        for name, bound in {
            "lower": lower_bound,
            "upper": upper_bound,
            "sharper": sharper_bound,
            "predicted": predicted_error,
        }.items()
    }
    metrics: dict[str, Any] = {
        "spectra": list(settings.spectra),
        "counts": list(settings.counts),
        "n": settings.n,
        "largest difference": {},
    }
    errors: dict[str, list[np.ndarray]] = {"expected": [], "sampled": []}
    for name, sigma in zip(context.progress(settings.spectra, "spectra"), sigmas, strict=True):

        def part(sigma: Tensor = sigma) -> tuple[dict, dict]:
            flow = linear_flow(sigma, context.seed)
            return _solved(settings, context, flow), _monte_carlo(settings, context, flow)

        outcome = context.part(f"spectrum={name}", part)
        metrics["largest difference"][name] = outcome.metrics
        for kind, values in errors.items():
            values.append(outcome.arrays[kind])
    # [spectra, m, draws]
    arrays = {kind: np.stack(values) for kind, values in errors.items()}
    mean = arrays["expected"].mean(2)
    metrics["cases"] = int(mean.size)
    # The lower bound holds for every A, with equality for a flat spectrum: rounding is allowed for.
    metrics["lower holds"] = int((arrays["expected"] >= bounds["lower"][:, :, None] * (1 - 1e-9)).all(2).sum())
    metrics["upper holds"] = int((mean <= bounds["upper"]).sum())
    metrics["sharper holds"] = int((mean <= bounds["sharper"] * (1 + 1e-9)).sum())
    return metrics, arrays | bounds | {"sigma": torch.stack(sigmas).numpy()}


def _monte_carlo(settings: Settings, context: Context, flow: priors.Linear) -> dict[str, np.ndarray]:
    """‖x̂ − x‖² for each m and A, [m, draws]: its expectation over x, and its mean over sampled x."""
    results: dict[str, list[list[float]]] = {"expected": [], "sampled": []}
    for m in settings.counts:
        rows: dict[str, list[float]] = {"expected": [], "sampled": []}
        for draw in range(settings.draws):
            seed = 100_000 * context.seed + draw
            operator = measure.Gaussian(flow.shape, m, seed)
            # E‖x̂ − x‖² = ‖G (I − P)‖², P the projection onto the rows of A G.
            rows_of_ag = torch.linalg.qr(operator(flow.weight.mT))[0]
            left = flow.weight - flow.weight @ rows_of_ag @ rows_of_ag.mT
            rows["expected"].append(float(left.square().sum()))
            # A seed of its own: that of A would draw x along a row of A.
            source = torch.Generator().manual_seed(8_000_000 + seed)
            z = torch.randn(settings.samples, flow.latent_dim, generator=source, dtype=torch.float64)
            x = flow.decode(z)
            error = (gaussian_map(operator, operator(x), flow.weight).x - x).square().sum(1)
            rows["sampled"].append(float(error.mean()))
        for kind, values in rows.items():
            results[kind].append(values)
    return {kind: np.array(values) for kind, values in results.items()}


def _solved(settings: Settings, context: Context, flow: priors.Linear) -> dict[str, Any]:
    """Largest difference of a pixel between minimiser and closed form, relative to the largest pixel of x."""
    operator = measure.Gaussian(flow.shape, settings.n // 4, 9_000_000 + context.seed)
    source = torch.Generator().manual_seed(9_500_000 + context.seed)
    x = flow.decode(torch.randn(settings.solved, flow.latent_dim, generator=source, dtype=torch.float64))
    noise = measure.GaussianNoise(0.01 * float(operator(x).square().mean().sqrt()))
    noisy = measure.Problem(operator, noise).observe(x, source)
    posterior = Energy(flow, NoiseMisfit(measure.Problem(operator, noise), noisy), LatentNorm(0.5, squared=True))
    options: dict[str, Any] = {"max_iterations": 5000, "tolerance_gradient": 1e-9}
    found = {
        "from zero": recover.flow_latent(flow, operator, operator(x), **options),
        "posterior": recover.minimise(posterior, x.new_zeros(len(x), flow.latent_dim), **options),
    }
    exact = {
        "from zero": gaussian_map(operator, operator(x), flow.weight),
        "posterior": gaussian_map(operator, noisy, flow.weight, noise_std=noise.std),
    }
    context.count_evaluations(sum(int(result.evaluations.sum()) for result in found.values()))
    return {name: float((found[name].x - exact[name].x).abs().max() / x.abs().max()) for name in found}
