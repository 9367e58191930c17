"""Measurements that are not linear: magnitudes without phases, and a camera that saturates."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from companion import evaluate, measure, recover
from companion.energy import Energy, LatentNorm, NoiseMisfit
from companion.experiments import Context, Part, experiment, gather, problems, shared
from companion.experiments.whang import sets
from companion.priors import Linear

POWER_STEPS = 30  # of the spectral start
METHODS = (
    "map from zero",
    "map from start",
    "map from gaussian",
    "gaussian from zero",
    "gaussian from start",
    "no prior",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    data: str = "mnist"
    flow: str = "glow-mnist-smooth"
    measurements: tuple[int, ...] = (200, 400, 800, 1600, 3200)  # of magnitudes
    exposures: tuple[float, ...] = (2.0, 5.0, 10.0)  # of the camera
    std: float = 0.05  # of the noise on the camera's signal; of |A x|², as a share of its typical size
    betas: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)  # chosen from on validation images
    images: int = 50
    tuned_on: int = 8
    budget: int = 150  # evaluations for one image
    shown: int = 4


@dataclass(frozen=True)
class Search:
    """One method for one operator: "phase" with m magnitudes, or "camera" with an exposure."""

    kind: str
    value: float
    method: str
    beta: float = 0.0


_LAPTOP = Settings()


@experiment(
    "whang.nonlinear",
    paper="Whang et al. 2021; Candès et al. 2015",
    shows="eq. 12 with operators that the paper does not try",
    profiles={
        "quick": replace(
            _LAPTOP,
            data="digits",
            measurements=(800,),
            exposures=(5.0,),
            betas=(0.3,),
            images=2,
            tuned_on=1,
            budget=12,
            shown=2,
        ),
        "laptop": _LAPTOP,
    },
    tolerances={"*psnr*": 0.05, "*recovered": 0.05},
)
def nonlinear(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers digits from magnitudes and from a saturating camera, by MAP and by descent without a prior.

    "map" is that of the flow, "gaussian" that of the Gaussian with the training digits' mean and covariance. "from
    zero" begins at z = 0; "map from gaussian" at the estimate of "gaussian from zero", each with half of the
    evaluations; "from start" and "no prior" at the spectral estimate of the magnitudes (so that "no prior" is Wirtinger
    flow, with L-BFGS for its steps), or at the camera's inverse. PSNR of magnitudes is that of the better of x and −x.
    """
    arrays, chosen = dict[str, Any](), dict[str, Any]()
    for kind, values in (("phase", settings.measurements), ("camera", settings.exposures)):
        points = [Search(kind, float(value), method) for value in values for method in METHODS]
        choices = context.map(_choose, points, f"{kind}: weights")
        searches = [replace(p, beta=c.metrics["beta"]) for p, c in zip(points, choices, strict=True)]
        found = gather(context.map(_solve, searches, f"{kind}: searches"), value=values, method=METHODS)
        arrays |= {f"{kind} {name}": array for name, array in found.items()}
        chosen[kind] = [vars(search) for search in searches]
    truth = sets.images(context, settings.data, "test", settings.shown, 28)
    return {"chosen": chosen}, arrays | {"truth": shared.pictures(truth)}


def _problem(
    settings: Settings, part: Part, split: str, number: int, search: Search
) -> tuple[Tensor, measure.Problem, Tensor]:
    """Truth, problem, and measurements."""
    truth = sets.images(part, settings.data, split, number, 28)
    shape, seed = tuple(truth.shape[1:]), shared.seed_of(part, "draw", split)
    if search.kind == "camera":
        problem = measure.Problem(measure.SaturatingCamera(shape, search.value), measure.GaussianNoise(settings.std))
        return truth, problem, problem.observe(truth, seed)
    operator = measure.PhaseRetrieval(measure.Gaussian(shape, int(search.value), seed))
    typical = float(sets.images(part, settings.data, "validation", 200, 28).square().flatten(1).sum(1).mean())
    problem = measure.Problem(operator, measure.GaussianNoise(settings.std * typical / search.value))
    return truth, problem, problem.observe(truth, seed)


def first_guess(problem: measure.Problem, y: Tensor) -> Tensor:
    """Where a search without a prior begins: the camera's inverse, or the spectral estimate of the magnitudes.

    The latter is the leading eigenvector of Σ_j y_j a_j a_jᵀ, as long as the measurements say, by power iteration
    (Candès et al. 2015, algorithm 1), of the sign that makes it bright.
    """
    operator = problem.operator
    if isinstance(operator, measure.SaturatingCamera):
        return -torch.log1p(-y.clamp(max=1 - 1e-3)) / operator.exposure
    assert isinstance(operator, measure.PhaseRetrieval)
    x = operator.linear.adjoint(y)
    for _ in range(POWER_STEPS):
        x = operator.linear.adjoint(y.clamp(min=0) * operator.linear(x))
        x = x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x = x * y.clamp(min=0).sum(1).sqrt().view(-1, 1, 1, 1)  # E |a_j x|² = ‖x‖² / m
    return x * x.flatten(1).sum(1).sign().view(-1, 1, 1, 1)


def _solver(
    settings: Settings, part: Part, problem: measure.Problem, y: Tensor, method: str
) -> Callable[[float], recover.Result]:
    """The method, as a function of β."""
    misfit = NoiseMisfit(problem, y)
    limits: list[dict[str, Any]] = [{"max_evaluations": number} for number in (settings.budget, settings.budget // 2)]
    budget, half = limits
    if method == "no prior":
        return lambda _: recover.minimise(misfit, first_guess(problem, y), **budget)
    factor, mean = sets.gaussian(settings.data, 28, part.device)
    gaussian = Linear(factor.to(y), mean.to(y), tuple(mean.shape))
    flow = shared.prior(part, settings.flow)

    def by_gaussian(beta: float, z0: Tensor, **limit: Any) -> recover.Result:
        # β ‖z‖² / 2 is −β log p(x), but for a constant
        return recover.minimise(Energy(gaussian, misfit, LatentNorm(beta / 2, squared=True)), z0, **limit)

    if method == "map from gaussian":
        before = by_gaussian(1.0, recover.start(gaussian, y), **half)

        def go_on(beta: float) -> recover.Result:
            found = recover.flow_map(flow, problem, y, beta, start=flow.encode(before.x), **half)
            return replace(found, evaluations=before.evaluations + found.evaluations)

        return go_on
    prior: Any = gaussian if method.startswith("gaussian") else flow
    z0 = recover.start(prior, y) if method.endswith("zero") else prior.encode(first_guess(problem, y))
    if prior is gaussian:
        return lambda beta: by_gaussian(beta, z0, **budget)
    return lambda beta: recover.flow_map(flow, problem, y, beta, start=z0, **budget)


def _score(problem: measure.Problem) -> Callable[[Tensor, Tensor], Tensor]:
    """PSNR; without phases, of the better sign."""
    if isinstance(problem.operator, measure.PhaseRetrieval):
        return lambda x, truth: torch.maximum(evaluate.psnr(x, truth), evaluate.psnr(-x, truth))
    return evaluate.psnr


def _choose(settings: Settings, part: Part, search: Search) -> tuple[dict, dict]:
    """β on validation images."""
    betas = (0.0,) if search.method == "no prior" else settings.betas
    if len(betas) == 1:
        return {"beta": betas[0]}, {}
    truth, problem, y = _problem(settings, part, "validation", settings.tuned_on, search)
    best, _ = problems.choose(part, betas, _solver(settings, part, problem, y, search.method), truth, _score(problem))
    return {"beta": betas[best]}, {}


def _solve(settings: Settings, part: Part, search: Search) -> tuple[dict, dict]:
    truth, problem, y = _problem(settings, part, "test", settings.images, search)
    found = part.count(_solver(settings, part, problem, y, search.method)(search.beta))
    scores = {"psnr": _score(problem)(found.x, truth).float(), "evaluations": found.evaluations}
    return {}, shared.by_image(scores) | {"recovered": shared.pictures(found.x[: settings.shown])}
