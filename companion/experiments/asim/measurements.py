"""From almost no measurements to as many as pixels, and from exact ones to noise that drowns them: every method."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import data, evaluate, measure, recover
from companion.experiments import Context, Part, experiment, gather, named, problems, shared

CLASSICAL: Mapping[str, Callable[..., recover.Result]] = {
    "tv": recover.tv,
    "lasso-wavelet": partial(recover.lasso, basis="wavelet"),
    "lasso-dct": partial(recover.lasso, basis="dct"),
}
FLOORED = 0.01  # √E‖δ‖² that methods with a noise model assume where there is no noise, under which none has a density


@dataclass(frozen=True, kw_only=True)
class Settings(shared.OnImages):
    """Sizes of the comparison: one case for every m and every noise norm."""

    images: int = 8  # crops of as many photographs
    measurements: tuple[int, ...]
    noise_norms: tuple[float, ...] = (problems.NOISE_NORM,)  # √E‖δ‖²
    betas: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of −log p(x), for "glow-map" to choose from
    linear: tuple[int, ...] = ()  # numbers of measurements at which PCA alone is run
    budget: int = 80  # evaluations of a search, restarts together
    iterations: int = 5000  # of methods without a network
    restarts: int = 2  # of GAN and VAE
    flow: str = "glow-photos32"
    gaussian: str = "gaussian-photos32"
    generators: tuple[str, ...] = ("gan", "vae")  # with the checkpoints NAME-photos32
    # from which validation images choose, for every case: γ of the generators, weights of the classical methods; "pca"
    # chooses a number of components, a power of two
    gammas: tuple[float, ...] = (0.0, 0.001, 0.01, 0.1)
    weights: tuple[float, ...] = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
    tuned_on: int = 2  # validation images
    range_restarts: int = 2  # searches, of the whole budget each, for a generator's image nearest to the truth

    @property
    def methods(self) -> list[str]:
        """All methods, those of the flow first."""
        return ["glow", "glow-map", "gaussian", "pca", *self.generators, *CLASSICAL]

    def options(self, method: str, m: int) -> tuple[float, ...]:
        """What a method may choose from."""
        if method == "glow-map":
            return self.betas
        if method == "pca":
            return tuple(2**power for power in range(m.bit_length()))
        if method in CLASSICAL:
            return self.weights
        return self.gammas if method in self.generators else (0.0,)


_FEW: dict[str, Any] = {"data": "photos", "images": 1, "tuned_on": 1, "budget": 4, "iterations": 50}
_FEW |= {"weights": (0.003,), "gammas": (0.01,), "betas": (3.0,), "range_restarts": 1}


@experiment(
    "asim.measurements",
    paper="Asim et al. 2020; Bora et al. 2017",
    shows="Asim et al. Fig. 4 left and Bora et al. Fig. 1 in kind, from 0.5 % to 100 % of n",
    profiles={
        "quick": Settings(measurements=(61, 614), linear=(154,), **_FEW),
        "laptop": Settings(measurements=(15, 61, 3072), linear=(154, 307, 614, 1229)),  # ends of compressed sensing's
    },
    tolerances={"*seconds": None, "*psnr": 0.03},
)
def measurements(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers crops of photographs from fewer measurements than asim.compressed-sensing, and from as many as pixels.

    Arrays as :func:`_compare` has them; "linear psnr" and the like of PCA at other m; and "nearest", the distance of a
    generator's image nearest to the truth.
    """
    metrics, arrays = _compare(settings, context)
    arrays |= gather(context.map(_nearest, settings.generators, "ranges"), method=settings.generators)
    linear = gather(context.map(_linear, settings.linear, "linear"), m=settings.linear)
    return metrics, arrays | {f"linear {name}": array for name, array in linear.items()}


@experiment(
    "asim.noise-tolerance",
    paper="Bora et al. 2017; Asim et al. 2020",
    shows="Bora et al., theorem 1.1, its term in the noise, and their noise tolerance, for every method",
    profiles={
        "quick": Settings(measurements=(614,), noise_norms=(0.0, 1.0), **_FEW | {"betas": (1.0, 3.0)}),
        "laptop": Settings(measurements=(614,), noise_norms=(1.0, 10.0)),
    },
    tolerances={"*seconds": None, "*psnr": 0.03},
)
def noise_tolerance(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers crops of photographs from a fifth of n measurements, exact ones to those that noise drowns.

    Arrays as :func:`_compare` has them.
    """
    return _compare(settings, context)


def _compare(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Every method in every case.

    Arrays, over m, norm and method: psnr, ssim, error ‖x̂ − x‖ (not clipped), misfit ‖A x̂ − y‖ and evaluations of each
    image; option, what was chosen; seconds of the processor per image; and photograph, the number of each crop's.
    """
    methods = settings.methods
    items = list(product(settings.measurements, settings.noise_norms, methods))
    chosen = [outcome.metrics["option"] for outcome in context.map(_choose, items, "options")]
    trials = [(*item, option) for item, option in zip(items, chosen, strict=True)]
    axes: dict[str, Any] = {"m": settings.measurements, "norm": settings.noise_norms, "method": methods}
    arrays = gather(context.map(_solve, trials, "searches"), **axes)
    photo = data.load(settings.data, "test", settings.size).photo
    arrays["photograph"] = named(np.asarray(photo)[: settings.images], image=settings.images)
    means = arrays["psnr"].values.mean(-1).reshape(-1, len(methods)).T.round(3).tolist()
    return {"n": 3 * settings.size**2, "mean psnr": dict(zip(methods, means, strict=True))}, arrays


def _choose(settings: Settings, part: Part, item: tuple[int, float, str]) -> tuple[dict, dict]:
    """The option of a method with the best mean PSNR on validation images, from other measurements."""
    m, norm, method = item
    options = settings.options(method, m)
    truth = settings.truth(part, "validation", settings.tuned_on)
    problem, y = _problem(part, truth, m, norm, "validation")

    def solve(option: float) -> recover.Result:
        return _estimate(settings, part, problem, y, method, option)

    best, _ = problems.choose(part, options, solve, truth)
    return {"option": options[best]}, {}


def _solve(settings: Settings, part: Part, trial: tuple[int, float, str, float]) -> tuple[dict, dict]:
    m, norm, method, option = trial
    truth = settings.truth(part)
    problem, y = _problem(part, truth, m, norm)
    start = time.process_time()
    found = part.count(_estimate(settings, part, problem, y, method, option))
    seconds = (time.process_time() - start) / len(truth)
    scores = {"psnr": evaluate.psnr(found.x, truth), "ssim": evaluate.ssim(found.x, truth)}
    scores |= {"error": _lengths(found.x - truth), "misfit": _lengths(problem.operator(found.x) - y)}
    scores["evaluations"] = found.evaluations
    return {}, shared.by_image(scores) | {"seconds": named(seconds), "option": named(float(option))}


def _linear(settings: Settings, part: Part, m: int) -> tuple[dict, dict]:
    option = _choose(settings, part, (m, problems.NOISE_NORM, "pca"))[0]["option"]
    return _solve(settings, part, (m, problems.NOISE_NORM, "pca", option))


def _problem(part: Part, truth: Tensor, m: int, norm: float, draw: str | int = 0) -> tuple[measure.Problem, Tensor]:
    """A case as the methods see it, whose noise is never none, and its measurements, whose noise may be."""
    exact, y = problems.compressed(part, truth, m, draw, norm)
    assumed = measure.GaussianNoise.of_norm(max(norm, FLOORED), m)
    return measure.Problem(exact.operator, assumed), y


def _lengths(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1).double(), dim=1)


def _estimate(settings: Settings, part: Part, problem: Any, y: Tensor, method: str, option: float) -> recover.Result:
    operator, budget = problem.operator, settings.budget
    if method in CLASSICAL:
        return CLASSICAL[method](operator, y, weight=option, max_iterations=settings.iterations)
    if method in settings.generators:
        prior = shared.prior(part, f"{method}-photos32")
        return problems.restarted(part, prior, operator, y, option, restarts=settings.restarts, budget=budget)
    if method == "glow":
        return recover.flow_latent(shared.prior(part, settings.flow), operator, y, option, max_evaluations=budget)
    gaussian = shared.stored_gaussian(part, settings.gaussian)
    if method == "pca":
        return problems.closed_form(least_squares(operator, y, *gaussian, int(option)))
    if method == "gaussian":
        return recover.gaussian_map(operator, y, *gaussian, problem.noise.std)
    flow = shared.prior(part, settings.flow)
    return recover.flow_map(flow, problem, y, option, gaussian=gaussian, max_evaluations=budget)


def least_squares(operator: Any, y: Tensor, factor: Tensor, mean: Tensor, components: int) -> Tensor:
    """The images mean + U c that fit y best, [batch, *shape], with U so many principal components, c free.

    `factor`: [n, k], its columns orthogonal, the principal components, largest first; `mean`: [*shape].
    """
    basis = (factor[:, :components] / torch.linalg.vector_norm(factor[:, :components], dim=0)).mT
    measured = operator.forward(basis.unflatten(1, mean.shape)).flatten(1).mT  # A U, [m, components]
    left = (y.to(factor) - operator.forward(mean[None])).flatten(1).mT
    fitted = torch.linalg.lstsq(measured, left).solution.mT @ basis
    return (mean + fitted.unflatten(1, mean.shape)).to(y)


def _nearest(settings: Settings, part: Part, name: str) -> tuple[dict, dict]:
    """Distance of a generator's image nearest to the truth, as far as searches find it."""
    truth = settings.truth(part)
    identity, prior = measure.Identity(tuple(truth.shape[1:])), shared.prior(part, f"{name}-photos32")
    total = settings.range_restarts * settings.budget
    found = problems.restarted(part, prior, identity, truth, restarts=settings.range_restarts, budget=total)
    return {}, shared.by_image({"nearest": _lengths(part.count(found).x - truth)})
