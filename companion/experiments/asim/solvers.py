"""Solvers on the same problems: L-BFGS image by image, L-BFGS on the joint tensor of a batch as published, and Adam."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import evaluate, priors, recover
from companion.energy import Energy, SquaredMisfit
from companion.experiments import Context, Named, Part, experiment, gather, named, problems, shared
from companion.measure.base import Operator

METHODS = ("lbfgs", "joint", "adam")
TRACES = ("psnr", "energy", "length")
INNER = 20  # iterations, and evaluations, of one step of the published scheme
EVERY = 10  # evaluations between two points of a stored path


@dataclass(frozen=True, kw_only=True)
class Settings(shared.OnImages):
    """Sizes of the comparison."""

    prior: str = "glow-photos32"
    measurements: tuple[int, ...]  # numbers m, with √E‖δ‖² = 0.1
    budget: int = 300  # evaluations for one image, the same for every solver
    batch: int = 6  # images in one joint tensor of the published scheme
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1)  # of Adam; the best on validation images is taken
    tuned_on: int = 3  # validation images
    tuned_at: int  # number of measurements at which Adam is tuned and the scheme's batches are mixed
    looks: tuple[int, ...] = (10, 25, 50, 100, 150, 200, 300)  # evaluations after which pictures are kept
    pictures: int = 3  # images of which pictures are kept


_TINY: dict[str, Any] = {
    "data": "photos",
    "images": 2,
    "budget": 20,
    "batch": 2,
    "learning_rates": (0.1,),
    "tuned_on": 1,
    "pictures": 1,
}


@experiment(
    "asim.solvers",
    paper="Asim et al. 2020",
    shows="Fig. 17, 18 right, 20",
    profiles={
        "quick": Settings(measurements=(307,), tuned_at=307, looks=(10,), **_TINY),
        "laptop": Settings(measurements=(307, 1229), tuned_at=307),
        "paper": Settings(
            **shared.FLOWERS,
            budget=600,
            measurements=shared.GRID,
            tuned_on=6,
            tuned_at=2500,
        ),
    },
    tolerances={"evaluations per iteration": 0.05},  # a line search may take one step more
)
def solvers(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Traces PSNR, energy and ‖z‖ of three solvers over the same number of evaluations, from z0 = 0 with γ = 0."""
    rates = settings.learning_rates
    scores = [outcome.metrics["psnr"] for outcome in context.map(_tune, rates, "learning rates")]
    rate = rates[int(np.argmax(scores))]
    arrays = gather(
        context.map(_compare, [(m, rate) for m in settings.measurements], "measurements"), m=settings.measurements
    )
    (mates,) = context.map(_mix_batches, [settings.tuned_at], "batch mates")
    (looks,) = context.map(_look, [rate], "pictures")
    tuned = {"learning rate": rate, "validation psnr of learning rates": [round(value, 3) for value in scores]}
    return tuned | mates.metrics, arrays | mates.named | looks.named


def joint_lbfgs(
    energy: Energy, truth: Tensor, steps: int = 30, learning_rate: float = 0.1, looks: Sequence[int] = ()
) -> dict[str, Tensor]:
    """The published scheme: torch's L-BFGS on the latents of a whole batch as one vector, from z0 = 0.

    The energy is averaged over the batch; curvature, step length and stopping are shared by its images. Twenty inner
    iterations a step, no line search, and the tolerances of the published code's version of torch.

    Returns psnr, energy and length, [evaluations, batch], of the point that each evaluation was spent on, and x, the
    images at `looks` evaluations, [looks, batch, C, H, W]; the last ones again where the scheme stopped before.
    """
    z = truth.new_zeros(len(energy), *energy.variable_shape).requires_grad_()
    options: dict[str, Any] = {"max_iter": INNER, "max_eval": 25, "tolerance_grad": 1e-5, "tolerance_change": 1e-9}
    optimiser = torch.optim.LBFGS([z], lr=learning_rate, history_size=100, **options)
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
    if missed := len(looks) - len(trace["x"]):
        trace["x"] += [energy.at(z.detach()).x.detach().cpu()] * missed
    return {name: torch.stack(values) for name, values in trace.items() if values}


def _problem(settings: Settings, part: Part, m: int, split: str, number: int) -> tuple[Operator, Tensor, Tensor]:
    """Operator, measurements and true images."""
    truth = settings.truth(part, split, number)
    problem, y = problems.compressed(part, truth, m, 0 if split == "test" else split)
    return problem.operator, y, truth


def _joint(settings: Settings, part: Part, operator: Operator, y: Tensor, truth: Tensor) -> dict[str, np.ndarray]:
    """The published scheme on batches in the order given: psnr, energy and length, [budget, images]."""
    prior = shared.prior(part, settings.prior)
    runs = [
        joint_lbfgs(Energy(prior, SquaredMisfit(operator, rows)), images, settings.budget // INNER)
        for rows, images in zip(y.split(settings.batch), truth.split(settings.batch), strict=True)
    ]
    part.count_evaluations(settings.budget * len(truth))
    # a batch may stop early; then its last values stay
    padded = {
        name: [np.pad(run[name], ((0, settings.budget - len(run[name])), (0, 0)), "edge") for run in runs]
        for name in TRACES
    }
    return {name: np.concatenate(values, 1) for name, values in padded.items()}


def _search(
    settings: Settings, part: Part, operator: Operator, y: Tensor, budget: int, **options: Any
) -> recover.Result:
    """Our solvers, image by image, to the end of the budget."""
    prior = shared.prior(part, settings.prior)
    return part.count(recover.flow_latent(prior, operator, y, max_iterations=10**6, max_evaluations=budget, **options))


def _tune(settings: Settings, part: Part, rate: float) -> tuple[dict, dict]:
    """Mean PSNR of Adam's best iterates on validation images, for a learning rate."""
    operator, y, truth = _problem(settings, part, settings.tuned_at, "validation", settings.tuned_on)
    found = _search(settings, part, operator, y, settings.budget, method="adam", learning_rate=rate)
    return {"psnr": float(evaluate.psnr(found.x, truth).mean())}, {}


def _compare(settings: Settings, part: Part, item: tuple[int, float]) -> tuple[dict, dict]:
    """All solvers on the test images: paths of psnr, energy and length, and what image by image costs.

    "first" are the evaluations to the PSNR that the joint scheme ends with for that image; -1 for never.
    """
    m, rate = item
    operator, y, truth = _problem(settings, part, m, "test", settings.images)
    watch = problems.watch_psnr(truth) | {"length": lambda x, z: z.norm(dim=1)}
    joint = _joint(settings, part, operator, y, truth)
    lbfgs = _search(settings, part, operator, y, settings.budget, watch=watch)
    adam = _search(settings, part, operator, y, settings.budget, watch=watch, method="adam", learning_rate=rate)
    every = range(1, settings.budget + 1)
    met = lbfgs.at("psnr", every).numpy() >= joint["psnr"][-1]
    iterations = (lbfgs.trace["evaluations"].diff(dim=0) > 0).sum(0)
    arrays = {
        "first": named(np.where(met.any(0), met.argmax(0) + 1, -1), image=len(truth)),
        **shared.by_image({"spent": lbfgs.evaluations, "converged": lbfgs.converged}),
        "evaluations per iteration": named(round(float((lbfgs.evaluations.cpu() / iterations).mean()), 3)),
    }
    for name in TRACES:
        each = np.stack([lbfgs.at(name, every), joint[name], adam.at(name, every)])
        arrays[name] = _path(each, method=METHODS, image=len(truth))
    return {}, arrays


def _path(values: np.ndarray, **axes: Any) -> Named:
    """Every tenth evaluation of a path, [..., evaluations, images]."""
    kept = values[..., EVERY - 1 :: EVERY, :].astype(np.float32)
    evaluation = range(EVERY, values.shape[-2] + 1, EVERY)
    image = axes.pop("image")
    return named(kept, **axes, evaluation=evaluation, image=image)


def _mix_batches(settings: Settings, part: Part, m: int) -> tuple[dict, dict]:
    """The same images with other batch mates: PSNR under the published scheme, and by how much ours changes.

    Ours in double precision: in single precision, rounding depends on the batch, and a long search amplifies it.
    """
    operator, y, truth = _problem(settings, part, m, "test", settings.images)
    order = torch.arange(len(truth)).view(-1, 2).T.flatten()  # 0, 2, 4, …, 1, 3, 5, …
    back = order.argsort()
    mixed = _joint(settings, part, operator, y[order], truth[order])["psnr"][:, back]
    prior, limit = priors.load(settings.prior, part.device).double(), min(settings.budget, 60)
    ours, other = (
        part.count(recover.flow_latent(prior, operator, rows.double(), max_evaluations=limit)).x
        for rows in (y, y[order])
    )
    change = float((evaluate.psnr(ours, truth) - evaluate.psnr(other[back], truth)).abs().max())
    return {"change by other mates, image by image": round(change, 3)}, {"mixed psnr": _path(mixed, image=len(truth))}


def _look(settings: Settings, part: Part, rate: float) -> tuple[dict, dict]:
    """Pictures and their PSNR on the way; budgets cut the same path short."""
    operator, y, truth = _problem(settings, part, settings.tuned_at, "test", settings.batch)
    looks, keep = settings.looks, slice(settings.pictures)
    energy = Energy(shared.prior(part, settings.prior), SquaredMisfit(operator, y))
    joint = joint_lbfgs(energy, truth, -(-max(looks) // INNER), looks=looks)["x"][:, keep]
    part.count_evaluations(max(looks) * len(truth))
    adam = {"method": "adam", "learning_rate": rate}
    lbfgs_x, adam_x = (
        torch.stack([_search(settings, part, operator, y[keep], look, **options).x.cpu() for look in looks])
        for options in ({}, adam)
    )
    x, true = torch.stack([lbfgs_x, joint, adam_x]), truth[keep].cpu()
    psnr = evaluate.psnr(x.flatten(0, 2), true.repeat(len(METHODS) * len(looks), 1, 1, 1)).view(x.shape[:3])
    seen = shared.pictures(true)
    outer: dict[str, Any] = {"method": METHODS, "evaluation": looks}
    return {}, {
        "pictures": named(shared.as_bytes(x), **outer, **seen.axes),
        "pictures psnr": named(psnr, **outer, picture=len(true)),
        "truth": seen,
    }
