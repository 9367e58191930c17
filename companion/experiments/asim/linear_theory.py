"""The linear theory of flow priors: a two-sided bound by Monte Carlo, and minimisers against a closed form."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion import _support, measure, priors, recover
from companion.energy import Energy, LatentNorm, NoiseMisfit
from companion.experiments import Context, Named, Part, experiment, gather, named, shared
from companion.recover.gaussian import gaussian_map


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the study."""

    n: int  # dimension of the linear flows
    # of the flows' singular values; see `spectrum`
    spectra: tuple[str, ...] = ("power 0", "power 0.5", "power 1", "power 1.5", "power 2", "exponential 6", "step 0.05")
    counts: tuple[int, ...]  # numbers of measurements, 4 <= m < n
    draws: int  # of A for each spectrum and m
    samples: int = 8  # of x for each A
    solved: int = 8  # problems for each spectrum that the minimisers solve too, at m = n / 4


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


BOUNDS = {"lower": lower_bound, "upper": upper_bound, "sharper": sharper_bound, "predicted": predicted_error}


@experiment(
    "asim.linear-theory",
    paper="Hand, lecture notes; Asim et al. 2020",
    shows="Theorem for linear invertible priors",
    profiles={
        "quick": Settings(
            n=24, spectra=("power 0", "power 1", "exponential 4", "step 0.1"), counts=(4, 12, 23), draws=20, solved=2
        ),
        "laptop": Settings(n=64, counts=(4, 6, 8, 12, 16, 24, 32, 40, 48, 56, 60, 63), draws=200),
        "paper": Settings(n=1024, counts=(4, 8, 16, 32, 64, 128, 256, 512, 768, 1000, 1020), draws=100),
    },
    tolerances={"difference": None},
)
def linear_theory(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Checks the two-sided error bound for linear flows, and the minimisers against the closed form."""
    arrays = gather(context.map(_study, settings.spectra, "spectra"), spectrum=settings.spectra)
    expected, bound = arrays["expected"].values, {name: arrays[name].values for name in BOUNDS}
    mean = expected.mean(2)
    return {
        "cases": mean.size,
        # It holds for every A, with equality for a flat spectrum: rounding is allowed for.
        "lower holds": int((expected >= bound["lower"][:, :, None] * (1 - 1e-9)).all(2).sum()),
        "upper holds": int((mean <= bound["upper"]).sum()),
        "sharper holds": int((mean <= bound["sharper"] * (1 + 1e-9)).sum()),
    }, arrays


def _study(settings: Settings, part: Part, name: str) -> tuple[dict, dict]:
    """One spectrum: bounds, ‖x̂ − x‖² for each m and A, and how far minimisers end from the closed form.

    Of the error, its expectation over x and its mean over sampled x; of the minimisers, the largest difference of a
    pixel relative to the largest pixel of x.
    """
    sigma = spectrum(name, settings.n)
    flow = linear_flow(sigma, part.seed)
    expected, sampled = [], []
    for m in settings.counts:
        for draw in range(settings.draws):
            operator = measure.Gaussian(flow.shape, m, shared.seed_of(part, "draw", draw), domain="real")
            # E‖x̂ − x‖² = ‖G (I − P)‖², P the projection onto the rows of A G.
            rows = torch.linalg.qr(operator(flow.weight.mT))[0]
            expected.append((flow.weight - flow.weight @ rows @ rows.mT).square().sum())
            x = _images(part, flow, settings.samples, draw)
            sampled.append((gaussian_map(operator, operator(x), flow.weight).x - x).square().sum(1).mean())
    errors = {"expected": torch.stack(expected), "sampled": torch.stack(sampled)}
    bounds = {name: [bound(sigma, m) for m in settings.counts] for name, bound in BOUNDS.items()}
    return {}, {
        **{
            name: named(value.view(-1, settings.draws).numpy(), m=settings.counts, draw=settings.draws)
            for name, value in errors.items()
        },
        **{name: named(value, m=settings.counts) for name, value in bounds.items()},
        "sigma": named(sigma.numpy(), component=range(1, settings.n + 1)),
        "difference": _solved(settings, part, flow),
    }


def _images(part: Part, flow: priors.Linear, number: int, draw: str | int) -> Tensor:
    source = _support.generator(part.seed, "images", draw)
    return flow.decode(torch.randn(number, flow.latent_dim, generator=source, dtype=torch.float64))


def _solved(settings: Settings, part: Part, flow: priors.Linear) -> Named:
    operator = measure.Gaussian(flow.shape, settings.n // 4, shared.seed_of(part, "draw", "solved"), domain="real")
    x = _images(part, flow, settings.solved, "solved")
    exact = operator(x)
    std = 0.01 * float(exact.square().mean().sqrt())
    problem = measure.Problem(operator, measure.GaussianNoise(std))
    noisy = problem.observe(x, shared.seed_of(part, "draw", "solved"))
    posterior = Energy(flow, NoiseMisfit(problem, noisy), LatentNorm(0.5, squared=True))
    options: dict[str, Any] = {"max_iterations": 5000, "tolerance_gradient": 1e-9}
    found = {
        "from zero": recover.flow_latent(flow, operator, exact, **options),
        "posterior": recover.minimise(posterior, x.new_zeros(len(x), flow.latent_dim), **options),
    }
    closed = [gaussian_map(operator, exact, flow.weight), gaussian_map(operator, noisy, flow.weight, noise_std=std)]
    apart = [(part.count(each).x - best.x).abs().max() for each, best in zip(found.values(), closed, strict=True)]
    return named([float(each / x.abs().max()) for each in apart], search=list(found))
