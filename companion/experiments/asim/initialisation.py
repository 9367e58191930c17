"""Where the search begins: several starts against the weight of ‖z‖, and the length of the start."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import evaluate, priors, recover
from companion.experiments import Context, Part, experiment, gather, named, problems, shared


@dataclass(frozen=True, kw_only=True)
class Settings(shared.OnImages):
    """Sizes of the comparison."""

    prior: str = "glow-photos32"
    tuned_on: int  # validation images, measured by the same A, on which a weight is chosen for each start
    m: int = 1229  # number of measurements, with √E‖δ‖² = 0.1
    budget: int  # evaluations for one image, the same for every start and weight
    gammas: tuple[float, ...]  # weights γ of ‖z‖
    stds: tuple[float, ...] = (0.1, 0.7)  # of the normal starts z0 ~ N(0, std² I)
    lasso_weight: float = 0.01  # of the wavelet start; the paper's, and what asim.compressed-sensing chooses at this m
    perturbation: float = 2.5  # distance of the null-space neighbour from the true image
    norms: tuple[float, ...]  # ‖z0‖ of random starts, searched with γ = 0

    @property
    def starts(self) -> list[str]:
        """Names of the starts."""
        return ["zero", *(f"normal {std:g}" for std in self.stds), "lasso-wavelet", "pseudo-inverse", "null space"]


@experiment(
    "asim.initialisation",
    paper="Asim et al. 2020",
    shows="Fig. 4 right, 19, 20 left",
    profiles={
        "quick": Settings(
            data="photos", images=1, tuned_on=1, budget=3, gammas=(0.0, 0.25), stds=(0.7,), norms=(0.0, 40.0)
        ),
        "laptop": Settings(tuned_on=4, budget=100, gammas=(0.0, 0.01, 0.1, 1.0), norms=(0.0, 5.0, 20.0, 40.0, 60.0)),
        "paper": Settings(
            **shared.FLOWERS,
            tuned_on=4,
            m=5000,
            budget=600,
            gammas=(0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.25, 0.5, 0.75, 1.0),
            perturbation=5.0,
            norms=tuple(map(float, range(0, 121, 10))),
        ),
    },
)
def initialisation(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers held-out photographs from starts good and bad, for several weights γ and lengths of the start."""
    begun = gather(context.map(_start, settings.starts, "starts"), start=settings.starts)
    grid = context.map(_search, list(product(settings.starts, settings.gammas)), "searches")
    sweep = context.map(_search, [(f"sphere {norm:g}", 0.0) for norm in settings.norms], "lengths")
    found = gather(grid, start=settings.starts, gamma=settings.gammas)
    paths = ("length path", "energy path")
    arrays = {name: array for name, array in found.items() if name not in paths}
    lengths = gather(sweep, norm=settings.norms)
    arrays |= {f"norms {name}": lengths[name] for name in ("psnr", "length", *paths, "recovered")}
    scores = np.reshape([outcome.metrics["validation psnr"] for outcome in grid], (-1, len(settings.gammas)))
    truth = shared.pictures(_images(settings, context)[:2])
    chosen = [settings.gammas[k] for k in scores.argmax(1)]
    return {"gamma chosen on validation": chosen}, arrays | begun | {"truth": truth}


def starting_latents(
    settings: Settings,
    prior: priors.Flow,
    operator: Any,
    y: Tensor,
    truth: Tensor,
    name: str,
    seed: int = 0,
) -> Tensor:
    """Initial latents z0, [batch, n], by the name of the start (Asim et al. 2020, sec. 3.2 and fig. 4 right).

    "null space" is the latent of a neighbour of the true image that measures the same: no start for practice.
    """
    how, _, scale = name.partition(" ")
    if how in ("normal", "sphere"):
        return recover.start(prior, y, how, float(scale), seed)
    if name == "zero":
        return recover.start(prior, y)
    if name == "lasso-wavelet":
        return prior.encode(recover.lasso(operator, y, basis="wavelet", weight=settings.lasso_weight).x)
    if name == "pseudo-inverse":
        return prior.encode(recover.pseudo_inverse(operator, y).x)
    return prior.encode(recover.null_space_neighbour(operator, truth, settings.perturbation, seed))


def _images(settings: Settings, part: Part) -> Tensor:
    """Test images, then validation images."""
    return torch.cat([settings.truth(part), settings.truth(part, "validation", settings.tuned_on)])


def _problem(settings: Settings, part: Part, name: str) -> tuple[Any, Any, Tensor, Tensor, Tensor]:
    """Prior, operator, measurements and true images, and the latents of the start of that name."""
    prior, truth = shared.prior(part, settings.prior), _images(settings, part)
    problem, y = problems.compressed(part, truth, settings.m)
    with torch.no_grad():
        z0 = starting_latents(settings, prior, problem.operator, y, truth, name, part.seed)
    return prior, problem.operator, y, truth, z0


def _start(settings: Settings, part: Part, name: str) -> tuple[dict, dict]:
    """Mean PSNR, length and misfit of a start, over the test images."""
    prior, operator, y, truth, z0 = _problem(settings, part, name)
    with torch.no_grad():
        x0 = prior.decode(z0)
        misfit = (operator(x0) - y).square().sum(1)
    values = {"psnr": evaluate.psnr(x0, truth), "length": z0.norm(dim=1), "misfit": misfit}
    return {}, {f"start {key}": named(float(value[: settings.images].mean())) for key, value in values.items()}


def _search(settings: Settings, part: Part, item: tuple[str, float]) -> tuple[dict, dict]:
    """Asim et al. 2020, eq. 2, from a start, with a weight γ; paths are means over the test images."""
    name, gamma = item
    prior, operator, y, truth, z0 = _problem(settings, part, name)
    options: dict[str, Any] = {"max_evaluations": settings.budget, "watch": {"length": lambda x, z: z.norm(dim=1)}}
    found = part.count(recover.flow_latent(prior, operator, y, gamma, z0=z0, **options))
    assert found.z is not None  # for the types: a search over latents has them
    with torch.no_grad():
        misfit = (operator(found.x) - y).square().sum(1)
    psnr, n = evaluate.psnr(found.x, truth), settings.images
    values = {"psnr": psnr, "length": found.z.norm(dim=1), "misfit": misfit, "converged": found.converged}
    every = range(1, settings.budget + 1)
    paths = {f"{key} path": found.at(key, every)[:, :n].mean(1) for key in ("length", "energy")}
    return {"validation psnr": float(psnr[n:].mean())}, {
        **shared.by_image({key: value[:n] for key, value in values.items()}),
        **{key: named(path, evaluation=every) for key, path in paths.items()},
        "recovered": shared.pictures(found.x[:2]),
    }
