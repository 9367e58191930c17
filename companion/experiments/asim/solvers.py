"""Solvers on the same problems: L-BFGS image by image, L-BFGS on the joint tensor of a batch as published, and Adam."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import data, evaluate, measure, priors, recover
from companion.energy import Energy, SquaredMisfit
from companion.experiments.asim.initialisation import along, as_bytes
from companion.experiments.context import Context
from companion.experiments.registry import experiment

METHODS = ("lbfgs", "joint", "adam")
INNER = 20  # iterations, and evaluations, of one step of the published scheme
EVERY = 10  # evaluations between two points of a stored path


@dataclass(frozen=True)
class Settings:
    """Sizes of the comparison.

    Attributes:
        prior, data, size: checkpoint, data set and side of its images.
        images: held-out images reported on.
        measurements: numbers of measurements m, with √E‖δ‖² = 0.1.
        budget: evaluations for one image, the same for every solver.
        batch: images in one joint tensor of the published scheme.
        learning_rates: of Adam; the best on validation images is taken.
        tuned_on: validation images.
        tuned_at: number of measurements at which Adam is tuned and the scheme's batches are mixed.
        looks: evaluations after which pictures are kept.
        pictures: images of which pictures are kept.
    """

    prior: str
    data: str
    size: int
    images: int
    measurements: tuple[int, ...]
    budget: int
    batch: int
    learning_rates: tuple[float, ...]
    tuned_on: int
    tuned_at: int
    looks: tuple[int, ...]
    pictures: int


@experiment(
    "asim.solvers",
    paper="Asim et al. 2020",
    shows="Fig. 17, 18 right, 20",
    profiles={
        "quick": Settings("glow-photos32", "photos", 32, 2, (307,), 20, 2, (0.1,), 1, 307, (10,), 1),
        "laptop": Settings(
            "glow-photos32",
            "photos",
            32,
            12,
            (307, 614, 1229),
            600,
            6,
            (0.01, 0.03, 0.1),
            3,
            614,
            (10, 25, 50, 100, 150, 200, 300),
            3,
        ),
        "paper": Settings(
            "glow-flowers64",
            "flowers",
            64,
            12,
            (20, 30, 50, 100, 200, 300, 400, 500, 750, 1000, 2500, 5000, 7500, 10000, 12288),
            600,
            6,
            (0.01, 0.03, 0.1),
            6,
            2500,
            (10, 25, 50, 100, 150, 200, 300),
            3,
        ),
    },
)
def solvers(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Traces PSNR, energy and ‖z‖ of three solvers over the same number of evaluations, from z0 = 0 with γ = 0."""
    prior = priors.load(settings.prior, context.device)
    compare = partial(_compare, settings, context, prior)
    rates = context.part("learning rates", partial(_tune, settings, context, prior)).metrics["psnr"]
    rate = settings.learning_rates[int(np.argmax(rates))]
    arrays: dict[str, np.ndarray] = {}
    metrics: dict[str, Any] = {
        "methods": list(METHODS),
        "m": list(settings.measurements),
        "n": prior.latent_dim,
        "evaluations": list(range(EVERY, settings.budget + 1, EVERY)),
        "learning rate": rate,
        "validation psnr of learning rates": [round(value, 3) for value in rates],
        "psnr at the end": {method: [] for method in METHODS},
        "evaluations to the joint scheme's psnr": {method: [] for method in METHODS},
        "evaluations per iteration": [],
    }
    for m in context.progress(settings.measurements, "measurements"):
        outcome = context.part(f"m={m}", partial(compare, m, rate))
        for name, values in outcome.arrays.items():
            arrays[f"m={m}/{name}"] = values
        for key in ("psnr at the end", "evaluations to the joint scheme's psnr"):
            for method in METHODS:
                metrics[key][method].append(outcome.metrics[key][method])
        metrics["evaluations per iteration"].append(outcome.metrics["evaluations per iteration"])
    mates = context.part("batch mates", partial(_mix_batches, settings, context, prior))
    looks = context.part("pictures", partial(_look, settings, context, prior, rate))
    return metrics | mates.metrics, arrays | mates.arrays | looks.arrays


def joint_lbfgs(
    energy: Energy, truth: Tensor, steps: int = 30, learning_rate: float = 0.1, looks: Sequence[int] = ()
) -> dict[str, Tensor]:
    """The published scheme: torch's L-BFGS on the latents of a whole batch as one vector, from z0 = 0.

    The energy is averaged over the batch; curvature, step length and stopping are shared by its images. Twenty inner
    iterations a step, no line search, and the tolerances of the published code's version of torch.

    Returns psnr, energy and length, [evaluations, batch], of the point that each evaluation was spent on, and x, the
    images at `looks` evaluations, [looks, batch, C, H, W].
    """
    z = truth.new_zeros(len(energy), *energy.variable_shape).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [z],
        lr=learning_rate,
        max_iter=INNER,
        max_eval=25,
        history_size=100,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
    )
    trace: dict[str, list[Tensor]] = {"psnr": [], "energy": [], "length": [], "x": []}

    def closure() -> Tensor:
        optimiser.zero_grad()
        point = energy.at(z)
        value = energy.of(point)
        value.mean().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            trace["psnr"].append(evaluate.psnr(torch.nan_to_num(point.x), truth).cpu())
            trace["energy"].append(value.detach().cpu())
            trace["length"].append(z.detach().norm(dim=1).cpu())
            if len(trace["psnr"]) in looks:
                trace["x"].append(point.x.detach().cpu())
        return value.mean().detach()

    for _ in range(steps):
        optimiser.step(closure)
    return {name: torch.stack(values) for name, values in trace.items() if values}


def _problem(
    settings: Settings, context: Context, m: int, split: str, number: int
) -> tuple[measure.Gaussian, Tensor, Tensor]:
    """Operator, measurements and true images."""
    truth = data.load(settings.data, split=split, size=settings.size)[:number].to(context.device)
    operator = measure.Gaussian(tuple(truth.shape[1:]), m, context.seed)
    problem = measure.Problem(operator, measure.GaussianNoise.of_norm(0.1, m))
    return operator, problem.observe(truth, context.seed + 1), truth


def _joint(settings: Settings, prior: priors.Flow, operator: measure.Gaussian, y: Tensor, truth: Tensor) -> Any:
    """The published scheme on batches in the order given: psnr, energy and length, [budget, images]."""
    runs = [
        joint_lbfgs(Energy(prior, SquaredMisfit(operator, part)), images, settings.budget // INNER)
        for part, images in zip(y.split(settings.batch), truth.split(settings.batch), strict=True)
    ]
    # a batch may stop early; then its last values stay
    return {
        name: np.concatenate(
            [np.pad(run[name], ((0, settings.budget - len(run[name])), (0, 0)), "edge") for run in runs], 1
        )
        for name in ("psnr", "energy", "length")
    }


def _tune(settings: Settings, context: Context, prior: priors.Flow) -> tuple[dict, dict]:
    """Mean PSNR of Adam's best iterates on validation images, for each learning rate."""
    operator, y, truth = _problem(settings, context, settings.tuned_at, "validation", settings.tuned_on)
    scores = []
    for rate in settings.learning_rates:
        found = recover.flow_latent(
            prior, operator, y, method="adam", learning_rate=rate, max_iterations=10**6, max_evaluations=settings.budget
        )
        context.count_evaluations(int(found.evaluations.sum()))
        scores.append(float(evaluate.psnr(found.x, truth).mean()))
    return {"psnr": scores}, {}


def _compare(
    settings: Settings, context: Context, prior: priors.Flow, m: int, learning_rate: float
) -> tuple[dict, dict]:
    """All solvers on the test images: paths of psnr, energy and length, [methods, evaluations, images]."""
    operator, y, truth = _problem(settings, context, m, "test", settings.images)
    watch = {"psnr": lambda x, z: evaluate.psnr(torch.nan_to_num(x), truth), "length": lambda x, z: z.norm(dim=1)}
    every = np.arange(1, settings.budget + 1)
    paths = {"joint": _joint(settings, prior, operator, y, truth)}
    options: dict[str, Any] = {"max_evaluations": settings.budget, "max_iterations": 10**6, "watch": watch}
    found = {
        "lbfgs": recover.flow_latent(prior, operator, y, **options),
        "adam": recover.flow_latent(prior, operator, y, method="adam", learning_rate=learning_rate, **options),
    }
    for method, result in found.items():
        paths[method] = {name: along(result, name, every) for name in ("psnr", "energy", "length")}
        context.count_evaluations(int(result.evaluations.sum()))
    context.count_evaluations(settings.budget * len(truth))
    target = float(paths["joint"]["psnr"][-1].mean())
    lbfgs = found["lbfgs"]
    iterations = (lbfgs.trace["evaluations"].diff(dim=0) > 0).sum(0)
    met = paths["lbfgs"]["psnr"] >= paths["joint"]["psnr"][-1]
    firsts = [_first(reached) or -1 for reached in met.T]
    return {
        "psnr at the end": {method: round(float(paths[method]["psnr"][-1].mean()), 3) for method in METHODS},
        "evaluations to the joint scheme's psnr": {
            method: _first(paths[method]["psnr"].mean(1) >= target) for method in METHODS
        },
        "evaluations per iteration": round(float((lbfgs.evaluations.cpu() / iterations).mean()), 3),
    }, {
        name: np.stack([paths[method][name] for method in METHODS])[:, EVERY - 1 :: EVERY].astype(np.float32)
        for name in ("psnr", "energy", "length")
    } | {
        "first": np.array(firsts),  # evaluations to the psnr that the joint scheme gives that image; -1 for never
        "spent": lbfgs.evaluations.cpu().numpy(),
        "converged": lbfgs.converged.cpu().numpy(),
    }


def _first(met: np.ndarray) -> int | None:
    """The first evaluation, counted from 1, after which a condition holds; None for never."""
    return int(met.argmax()) + 1 if met.any() else None


def _mix_batches(settings: Settings, context: Context, prior: priors.Flow) -> tuple[dict, dict]:
    """The same images with other batch mates: PSNR under the published scheme, and whether ours changes by one bit."""
    operator, y, truth = _problem(settings, context, settings.tuned_at, "test", settings.images)
    order = torch.arange(len(truth)).view(-1, 2).T.flatten()  # 0, 2, 4, …, 1, 3, 5, …
    back = order.argsort()
    mixed = {
        name: values[:, back] for name, values in _joint(settings, prior, operator, y[order], truth[order]).items()
    }
    context.count_evaluations(settings.budget * len(truth))
    short = min(settings.budget, 60)
    ours = [recover.flow_latent(prior, operator, part, max_evaluations=short) for part in (y, y[order])]
    context.count_evaluations(2 * short * len(truth))
    return {"per image, other mates change nothing": bool(torch.equal(ours[0].z, ours[1].z[back]))}, {
        "mixed psnr": mixed["psnr"][EVERY - 1 :: EVERY].astype(np.float32)  # [evaluations, images], as in m=tuned_at
    }


def _look(settings: Settings, context: Context, prior: priors.Flow, learning_rate: float) -> tuple[dict, dict]:
    """Pictures and their PSNR on the way, [methods, looks, pictures, …]; budgets cut the same path short."""
    operator, y, truth = _problem(settings, context, settings.tuned_at, "test", settings.batch)
    keep = slice(settings.pictures)
    joint = joint_lbfgs(
        Energy(prior, SquaredMisfit(operator, y)), truth, -(-max(settings.looks) // INNER), looks=settings.looks
    )["x"][:, keep]
    context.count_evaluations(max(settings.looks) * len(truth))
    paths = {"joint": joint}
    for method in ("lbfgs", "adam"):
        cut = []
        for budget in settings.looks:
            found = recover.flow_latent(
                prior, operator, y[keep], method=method, learning_rate=learning_rate, max_evaluations=budget
            )
            context.count_evaluations(int(found.evaluations.sum()))
            cut.append(found.x.cpu())
        paths[method] = torch.stack(cut)
    x = torch.stack([paths[method] for method in METHODS])
    same = truth[keep].cpu().expand(*x.shape[:2], *truth[keep].shape)
    psnr = evaluate.psnr(x.flatten(0, 2), same.flatten(0, 2)).unflatten(0, x.shape[:3])
    return {}, {"pictures": as_bytes(x), "pictures psnr": psnr.numpy(), "truth": as_bytes(truth[keep])}
