"""Samplers by name: each is a kernel, run by the one loop."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import _support
from companion.energy import Energy, Objective
from companion.sample.chains import Chains
from companion.sample.kernels import CrankNicolson, Hamiltonian, Langevin
from companion.sample.loop import run
from companion.sample.metric import Metric, of_prior

Target = Objective | Callable[[Tensor], Tensor]


def langevin(energy: Target, z0: Tensor, *, step: float | Tensor, temperature: float = 1.0, **options: Any) -> Chains:
    """Unadjusted Langevin, z ← z − h²/2 ∇E + h √T ξ with h = `step` (Roberts & Tweedie 1996).

    Nothing adapts the step, as nothing is refused: h <= 1/√λ with λ the largest curvature of the energy, which is
    ``1 / sample.gauss_newton(energy, z).widths[:, 0] ** 2``; with that metric 0.5 serves. The other options are those
    of :func:`~companion.sample.loop.run`.
    """
    return run(Langevin(float(_support.positive("temperature", temperature))), energy, z0, step=step, **options)


def mala(energy: Target, z0: Tensor, *, step: float | Tensor = 0.1, **options: Any) -> Chains:
    """Metropolis-adjusted Langevin (Roberts & Tweedie 1996); see :func:`~companion.sample.loop.run`."""
    return run(Hamiltonian(), energy, z0, step=step, **options)


def hmc(energy: Target, z0: Tensor, *, leapfrogs: int = 5, step: float | Tensor = 0.1, **options: Any) -> Chains:
    """Hamiltonian Monte Carlo (Neal 2011), steps by dual averaging; see :func:`~companion.sample.loop.run`.

    With a metric, a path (steps × leapfrogs) beyond about 2 swings back: 2 to 5 leapfrogs serve.
    """
    return run(Hamiltonian(_support.count("leapfrogs", leapfrogs)), energy, z0, step=step, **options)


def adapted(
    energy: Target,
    z0: Tensor,
    metric: Metric,
    *,
    windows: Sequence[int] = (40, 80, 160),
    leapfrogs: int = 3,
    step: float | Tensor = 0.5,
    seed: int = 0,
) -> tuple[Metric, Tensor]:
    """A metric learned by chains of :func:`hmc`, and where they ended, [images, chains, *variable shape].

    Laplace's approximation is wrong where a posterior is wider, or turned, away from its mode. In each window chains
    make so many steps; the draws of its second half give the metric of the next, by :meth:`Metric.learned` (the windows
    of Stan's warm-up, Carpenter et al. 2017). Chains that are to be kept start anew with the last metric, whose
    `evaluations` include what all this cost.
    """
    spent = metric.evaluations
    for number, steps in enumerate(windows):
        half = _support.count("windows", steps, least=2) // 2
        options: dict[str, Any] = {"warmup": steps - half, "draws": half, "stream": ("window", number)}
        chains = hmc(energy, z0, leapfrogs=leapfrogs, step=step, metric=metric, seed=seed, **options)
        metric, z0 = metric.learned(chains.samples.flatten(3)), chains.last
        spent += int(chains.evaluations.sum(1)[0])
    return replace(metric, evaluations=spent), z0


def pcn(energy: Target, z0: Tensor, *, step: float | Tensor = 0.2, **options: Any) -> Chains:
    """Preconditioned Crank–Nicolson (Cotter et al. 2013), for a prior N(0, I) of the variable; no gradients.

    See :func:`~companion.sample.loop.run`.
    """
    return run(CrankNicolson(), energy, z0, step=step, **options)


def annealed_langevin(
    energy: Energy,
    z0: Tensor,
    *,
    step: float | Tensor,
    levels: int = 10,
    ratio: float = 4.0,
    steps: int = 200,
    draws: int = 200,
    seed: int = 0,
    checkpoint: Path | str | None = None,
    **options: Any,
) -> Chains:
    """Annealed Langevin (Jalal et al. 2021, Algorithm 1): noise levels of the likelihood from `ratio` times to once.

    Level l has its misfit divided by r_l², steps r_l · `step`, with r geometric, and `steps` steps; the last one's are
    followed by `draws` more, which are recorded. The published code has 10 levels, a ratio of 4 and 200 steps. Each
    level has a `checkpoint` of its own. The other options are those of :func:`~companion.sample.loop.run`.
    """
    levels, ratio = _support.count("levels", levels), _support.positive("ratio", ratio)
    spent = torch.zeros((), dtype=torch.long, device="cpu")
    for level in range(levels):
        last = level == levels - 1
        r = 1.0 if last else ratio ** (1 - level / (levels - 1))
        found = langevin(
            of_prior(energy).tempered(r**-2),
            z0,
            step=r * step,
            warmup=steps if last else steps - 1,
            draws=draws if last else 1,
            seed=seed,
            stream=("level", level),
            checkpoint=None if checkpoint is None else Path(f"{checkpoint}.{level}"),
            **options,
        )
        z0, spent = found.last, spent + found.evaluations
    return replace(found, evaluations=spent)
