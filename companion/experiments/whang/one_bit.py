"""One bit a measurement, with noise after the sign as in the paper or before it: PSNR against m.

All methods but back-projection begin at the exact Gaussian estimate of the linearised problem, and have as many
evaluations; their weights are chosen on validation images, with another matrix and noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from companion import evaluate, measure, recover
from companion.energy import (
    Energy,
    FlowLikelihood,
    LatentNorm,
    Misfit,
    NoiseMisfit,
    Penalty,
    PerceptronMisfit,
    ProbitMisfit,
    linearised,
)
from companion.experiments import Context, Part, experiment, gather, named, problems, shared
from companion.experiments.whang import sets


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    data: str = "mnist"
    flow: str = "glow-mnist-smooth"
    vae: str = "vae-mnist"
    measurements: tuple[int, ...] = (500, 1000, 3000)
    noises: tuple[tuple[float, float], ...] = ((1.0, 0.3), (3.0, 0.9))  # scale and mean after the sign
    before: float = 0.5  # standard deviation of white noise before the sign, in units of a measurement's typical size
    # what validation images choose from: β of the flow's methods, the weight of ‖z‖² for "asim…" and "vae linearised"
    weights: Mapping[str, tuple[float, ...]]
    images: int = 100
    tuned_on: int = 8
    budget: int = 150  # evaluations for one image
    learning_rate: float = 0.1  # of Adam, which follows what is no gradient
    labelled: int = 10_000  # training digits among which the nearest names an estimate's digit
    shown: int = 4

    @property
    def methods(self) -> list[str]:
        """Closed forms, and those with weights."""
        return ["back-projection", "gaussian", *self.weights]


@dataclass(frozen=True)
class Search:
    """One method on one problem; a scale of 0 stands for noise before the sign."""

    m: int
    scale: float
    mean: float
    method: str
    weight: float = 0.0


_ASIM = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_WEIGHTS: dict[str, tuple[float, ...]] = {
    "straight-through": (0.2, 0.5, 1.0, 2.0, 4.0, 8.0),
    "perceptron": (0.2, 0.5, 1.0, 2.0, 4.0, 8.0),
    "linearised": (0.1, 0.2, 0.5, 1.0, 2.0),
    "asim": _ASIM,
    "asim adam": _ASIM,
    "vae linearised": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
}
_LAPTOP = Settings(weights=_WEIGHTS)


@experiment(
    "whang.one-bit",
    paper="Whang et al. 2021",
    shows="Fig. 4, 10b, 11 in kind, on digits",
    profiles={
        "quick": replace(
            _LAPTOP,
            data="digits",
            measurements=(300,),
            noises=((1.0, 0.3),),
            weights={"straight-through": (1.0,), "perceptron": (1.0,), "linearised": (0.5, 1.0)},
            images=2,
            tuned_on=1,
            labelled=200,
            budget=12,
            shown=2,
        ),
        "laptop": _LAPTOP,
    },
    tolerances={"*psnr*": 0.03, "*recovered": 0.05},
)
def one_bit(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers digits from the noisy signs of Gaussian measurements, by what stands in for the sign.

    Arrays "after" the sign by m, noise (scale/mean), method and image, and "before" by m, method and image, where
    "straight-through" and "perceptron" are replaced by the likelihood, "probit". "label" is 1 where the training digits
    nearest to an estimate and to its truth bear the same label.
    """
    arrays, chosen = dict[str, Any](), dict[str, Any]()
    before = [name.replace("perceptron", "probit") for name in settings.methods if name != "straight-through"]
    labels = [f"{scale:g}/{mean:g}" for scale, mean in settings.noises]
    for kind, noises, methods in (("after", settings.noises, settings.methods), ("before", [(0.0, 0.0)], before)):
        points = [Search(m, *noise, name) for m in settings.measurements for noise in noises for name in methods]
        choices = context.map(_choose, points, f"{kind}: weights")
        searches = [replace(p, weight=c.metrics["weight"]) for p, c in zip(points, choices, strict=True)]
        outer = {"m": settings.measurements, "noise": labels if kind == "after" else ["white"], "method": methods}
        found = gather(context.map(_solve, searches, f"{kind}: searches"), **outer)
        arrays |= {f"{kind} {name}": array for name, array in found.items()}
        chosen[kind] = [vars(search) for search in searches]
    return {"chosen": chosen}, arrays | {
        "truth": shared.pictures(sets.images(context, settings.data, "test", settings.shown, 28))
    }


def _problem(
    settings: Settings, part: Part, split: str, number: int, search: Search
) -> tuple[Tensor, measure.Problem, measure.Problem, Tensor]:
    """Truth, the problem before the sign (noise before) or after it, the linearised one, and measurements."""
    truth = sets.images(part, settings.data, split, number, 28)
    typical = float(sets.images(part, settings.data, "validation", 200, 28).flatten(1).norm(dim=1).mean())
    linear = measure.Gaussian(tuple(truth.shape[1:]), search.m, shared.seed_of(part, "matrix", split))
    seed = shared.seed_of(part, "noise", split)
    sign = measure.SignOf(linear)
    if search.scale:
        problem = measure.Problem(sign, measure.SinusoidalNoise(search.scale, mean=search.mean))
        return truth, problem, linearised(problem, typical), problem.observe(truth, seed)
    size = typical / search.m**0.5
    problem = measure.Problem(linear, measure.GaussianNoise(settings.before * size))
    bits = torch.where(problem.observe(truth, seed) < 0, -1.0, 1.0).to(truth)
    # u = A x is a share of what the signs are of, u + δ, and the rest of it is noise to the linear fit
    more = 1 + settings.before**2
    after = measure.GaussianNoise((2 / torch.pi * (1 - 1 / more)) ** 0.5)
    return truth, problem, linearised(measure.Problem(sign, after), typical * more**0.5), bits


def _solver(
    settings: Settings, part: Part, search: Search, problem: measure.Problem, linear: Any, y: Tensor
) -> Callable[[float], recover.Result]:
    """The method, as a function of its weight."""
    std, known = linear.noise.std_map(linear.operator.output_shape).to(y), sets.gaussian(settings.data, 28, part.device)
    if search.method == "back-projection":  # known up to a factor only: it gets the mean image's length
        back = linear.operator.adjoint((y - linear.noise.mean) / std.square())
        back = back * (known[1].norm().to(y) / back.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
        return lambda _: problems.closed_form(back)
    wiener = recover.gaussian_map(linear.operator, y - linear.noise.mean, *known, std)
    if search.method == "gaussian":
        return lambda _: wiener
    exact = wiener.x
    vae = search.method.startswith("vae")
    prior = shared.prior(part, settings.vae if vae else settings.flow)
    z0 = prior.encode(exact.clamp(0, 1) if vae else exact)
    # The perceptron's loss has the gradient that is handed straight through the sign, so Adam's way is the same; but a
    # solver keeps its best iterate, and by the misfit, a staircase, that would hardly ever be the one that it came to.
    plain = measure.Problem(measure.SignOf(linear.operator), measure.GaussianNoise(0.5**0.5))
    misfits: dict[str, Callable[[], Misfit]] = {
        "perceptron": lambda: PerceptronMisfit(problem, y),
        "probit": lambda: ProbitMisfit(problem, y),
        "straight-through": lambda: PerceptronMisfit(problem, y),
        "asim": lambda: PerceptronMisfit(plain, y),  # whose gradient is that of the sum of squares
    }
    misfit = misfits.get(search.method.removesuffix(" adam"), lambda: NoiseMisfit(linear, y))()
    adam = search.method == "straight-through" or search.method.endswith("adam")
    options: dict[str, Any] = {"max_evaluations": settings.budget, "method": "adam" if adam else "lbfgs"}

    def solve(weight: float) -> recover.Result:
        squares = vae or search.method.startswith("asim")
        penalty: Penalty = LatentNorm(weight, squared=True) if squares else FlowLikelihood(weight)
        energy = Energy(prior, misfit, penalty)
        return recover.minimise(energy, z0, learning_rate=settings.learning_rate, **options)

    return solve


def _choose(settings: Settings, part: Part, search: Search) -> tuple[dict, dict]:
    """The weight of a method on validation images."""
    weights = settings.weights.get(search.method.replace("probit", "perceptron"), (0.0,))
    if len(weights) == 1:
        return {"weight": weights[0]}, {}
    truth, problem, linear, y = _problem(settings, part, "validation", settings.tuned_on, search)
    best, scores = problems.choose(part, weights, _solver(settings, part, search, problem, linear, y), truth)
    return {"weight": weights[best]}, {"psnr": named(scores.round(3), weight=weights, image=len(truth))}


def _solve(settings: Settings, part: Part, search: Search) -> tuple[dict, dict]:
    truth, problem, linear, y = _problem(settings, part, "test", settings.images, search)
    found = part.count(_solver(settings, part, search, problem, linear, y)(search.weight))
    flips = (y < 0) != (linear.operator(truth) < 0)
    digit = shared.reader(part, settings.data, settings.labelled)
    scores = {"psnr": evaluate.psnr(found.x, truth).float(), "evaluations": found.evaluations}
    scores |= {"flips": flips.float().mean(1), "label": (digit(found.x) == digit(truth)).float()}
    return {}, shared.by_image(scores) | {"recovered": shared.pictures(found.x[: settings.shown])}
