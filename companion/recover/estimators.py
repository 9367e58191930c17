"""The papers' estimators: an energy, a start, and a minimiser."""

from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from companion import _support
from companion.energy import Energy, FlowLikelihood, Generator, ImagePoint, LatentNorm, NoiseMisfit, SquaredMisfit
from companion.measure.base import LinearOperator, Operator
from companion.measure.noise import IndependentNoise
from companion.measure.problem import Problem
from companion.recover.gaussian import gaussian_map
from companion.recover.run import Result, scaling
from companion.recover.search import minimise
from companion.recover.starts import start as initial


def flow_latent(
    prior: Generator,
    operator: Operator,
    y: Tensor,
    gamma: float | Tensor = 0.0,
    *,
    squared: bool = False,
    z0: Tensor | None = None,
    method: str = "lbfgs",
    **options: Any,
) -> Result:
    """Asim et al. 2020, eq. 2: min over z of ‖f(G(z)) − y‖² + γ‖z‖.

    With γ = 0 and z0 = 0, the paper's choice for compressed sensing and inpainting, all regularisation lies in where
    the search begins and how far it gets.

    Parameters
    ----------
    prior, operator, y
        Flow with images of the shape of the forward operator f; and measurements, [batch, *operator.output_shape].
    gamma, squared
        Weight of ‖z‖, or of ‖z‖² with `squared`, >= 0: a number, or [batch], one for each image.
    z0
        Initial latents, [batch, n]; zeros if not given (see :func:`companion.recover.start`).
    method, options
        Of :func:`companion.recover.minimise`.

    Raises ValueError for wrong shapes, NaN, or options out of range.
    """
    energy = Energy(
        prior, SquaredMisfit(operator, y), LatentNorm(gamma, squared) if isinstance(gamma, Tensor) or gamma else None
    )
    return minimise(energy, _checked_start(energy, initial(prior, y) if z0 is None else z0), method, **options)


def flow_image(
    prior: Generator,
    operator: Operator,
    y: Tensor,
    gamma: float | Tensor = 1.0,
    *,
    x0: Tensor | None = None,
    method: str = "lbfgs",
    **options: Any,
) -> Result:
    """Asim et al. 2020, eq. 1: min over x of ‖f(x) − y‖² − γ log p(x), in image space.

    Parameters are those of :func:`flow_latent`, but for the start `x0`, [batch, *shape]: G(0) if not given (appendix
    G.2).
    """
    energy = Energy(prior, SquaredMisfit(operator, y), FlowLikelihood(gamma), space="x")
    if x0 is None:
        with torch.no_grad():
            x0 = prior.decode(initial(prior, y))
    return minimise(energy, _checked_start(energy, x0), method, **options)


MAP_STARTS = ("gaussian", "zero", "y", "normal")


def flow_map(
    prior: Any,
    problem: Problem,
    y: Tensor,
    beta: float | Tensor = 1.0,
    *,
    space: str = "z",
    start: str | Tensor | None = None,
    gaussian: tuple[Tensor, Tensor] | None = None,
    restarts: int = 1,
    seed: int = 0,
    method: str = "lbfgs",
    **options: Any,
) -> Result:
    """Whang et al. 2020, eq. 12: the image x = G(z) that minimises −log p(y | f(x)) − β log p(x).

    β = 1 is the mode of the posterior density of x; it is sought over z by default, where the search is well
    conditioned, or over x: the same function, not the same path. For white noise N(0, σ²) it is Asim et al. 2020, eq.
    1, with γ = 2σ²β; for a flow that preserves volume, Bora et al. 2017, eq. 4, with γ = σ²β.

    Parameters
    ----------
    prior, problem, y
        Flow with images of the shape of the problem's operator; and measurements, [batch, *operator.output_shape].
    beta
        Weight of −log p(x), >= 0, a number or [batch]; less than 1 weakens a prior that is surer than it should be.
    space
        "z" or "x": the variable of the search.
    start
        Latents [batch, n] (images for "x"), or one of: "gaussian", the exact estimate for the `gaussian` prior, of
        linear measurements with independent normal noise; "zero", z = 0; "y", z = G⁻¹(y), for noisy images; "normal",
        z ~ N(0, I). Default: "gaussian" where there is such an estimate, else "zero".
    gaussian
        Factor and mean of a Gaussian prior, from :func:`companion.priors.gaussian_of` of training images. Without a
        linear operator and an independent normal noise, the same for all images, it is left out, as `reason` says: give
        a `start` of your own.
    restarts, seed
        Number of starts z ~ N(0, I) of "normal", of which the best in energy is kept, as in :func:`gan_latent`.
    method, options
        Of :func:`minimise`.

    The density of a flow of bare drawings has spikes where pixels are exactly black, and its mode is no image: for
    digits load "glow-mnist-smooth", which was trained on noisy ones, not "glow-mnist".

    Raises ValueError for wrong shapes, NaN, or options out of range.
    """
    energy = Energy(prior, NoiseMisfit(problem, y), FlowLikelihood(beta), space)
    if isinstance(start, Tensor):
        return minimise(energy, _checked_start(energy, start), method, **options)
    exact = _gaussian_estimate(problem, y, gaussian) if start in (None, "gaussian") else None
    how = str(_support.one_of("start", start or ("zero" if exact is None else "gaussian"), MAP_STARTS))
    if how == "gaussian" and exact is None:
        allowed = "with a Gaussian prior, linear operator and normal noise that all images share"
        raise ValueError(f"start: got 'gaussian'; allowed: {allowed}")

    def latents(restart: int) -> Tensor:
        if exact is not None:
            return ImagePoint(prior, exact).z
        if how == "y":
            return ImagePoint(prior, _support.batch_of("y", y, prior.shape)).z
        return initial(prior, y, how, seed=seed, restart=restart)

    tries = _support.count("restarts", restarts) if how == "normal" else 1
    with torch.no_grad():
        starts = [z if space == "z" else prior.decode(z) for z in map(latents, range(tries))]
    found = reduce(_better, (minimise(energy, variable, method, **options) for variable in starts))
    if start is None and gaussian is not None and exact is None:
        reason = [f"{why}; started from zero, as there is no Gaussian estimate" for why in found.reason]
        return replace(found, reason=reason)
    return found


def _gaussian_estimate(problem: Problem, y: Tensor, gaussian: tuple[Tensor, Tensor] | None) -> Tensor | None:
    """The most likely images under a Gaussian prior, [batch, *shape]; None where there is no closed form."""
    operator, noise = problem.operator, problem.noise
    if gaussian is None or not isinstance(operator, LinearOperator) or not isinstance(noise, IndependentNoise):
        return None
    factor, mean = gaussian
    std = noise.std_map(operator.output_shape)
    if operator.batch is not None or std.dim() > len(operator.output_shape):  # other ones for each image
        return None
    return gaussian_map(operator, y - noise.mean, factor, mean, std).x


def gan_latent(
    prior: Generator,
    operator: Operator,
    y: Tensor,
    gamma: float | Tensor = 0.0,
    *,
    restarts: int = 10,
    scale: float = 1.0,
    seed: int = 0,
    method: str = "lbfgs",
    **options: Any,
) -> Result:
    """Bora et al. 2017, eq. 4: min over z of ‖f(G(z)) − y‖² + γ‖z‖², the best of several random starts.

    Works for every generator: GAN, VAE or flow.

    Parameters
    ----------
    restarts
        Number of starts z0 ~ N(0, scale² I) for each image.
    seed
        Of the starts: the first images' do not depend on how many follow, nor the first restarts' on `restarts`.

    The other parameters are those of :func:`flow_latent`. In the result, `evaluations` counts all restarts together;
    traces, `converged` and `reason` are those of the restart that was kept.
    """
    restarts, seed = _support.count("restarts", restarts), _support.count("seed", seed, least=0)
    energy = Energy(prior, SquaredMisfit(operator, y), LatentNorm(gamma, squared=True))
    starts = (initial(prior, y, "normal", scale, seed, restart) for restart in range(restarts))
    return reduce(_better, (minimise(energy, z0, method, **options) for z0 in starts))


def _better(one: Result, other: Result) -> Result:
    """The result of lower energy for each image; their evaluations added up."""
    wins = other.energy < one.energy

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(scaling(wins.to(a.device), a), b, a)

    def choose_trace(a: Tensor, b: Tensor) -> Tensor:
        steps = max(len(a), len(b))
        a, b = (torch.cat([t, t[-1:].expand(steps - len(t), -1)]) for t in (a, b))
        return torch.where(wins.to(a.device), b, a)

    return Result(
        x=choose(one.x, other.x),
        z=None if one.z is None or other.z is None else choose(one.z, other.z),
        energy=choose(one.energy, other.energy),
        trace={name: choose_trace(one.trace[name], other.trace[name]) for name in one.trace},
        evaluations=one.evaluations + other.evaluations,
        converged=choose(one.converged, other.converged),
        reason=[b if won else a for a, b, won in zip(one.reason, other.reason, wins.tolist(), strict=True)],
    )


def _checked_start(energy: Energy, variable: Tensor) -> Tensor:
    name = f"{energy.space}0"
    _support.finite(name, _support.batch_of(name, variable, energy.variable_shape))
    if len(variable) != len(energy):
        raise ValueError(f"{name}: got {len(variable)} starts for {len(energy)} images; allowed: one for each")
    return variable
