"""Latent against image space on photographs: the same flow, problems and number of evaluations for both."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from companion import energy, evaluate, measure, recover
from companion.experiments import Context, Named, Part, experiment, gather, named, problems, shared


@dataclass(frozen=True, kw_only=True)
class Settings(shared.OnImages):
    """Sizes of the comparison."""

    prior: str = "glow-photos32"
    budget: int  # evaluations for one image, the same in every space
    measurements: tuple[int, ...] = (307, 1229)  # numbers m, with √E‖δ‖² = 0.1
    image_gammas: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)  # weights of −log p(x); in latent space γ = 0
    noisy_m: int  # m of compressed sensing under more noise, with the next two
    noise_norms: tuple[float, ...] = (1.0,)  # √E‖δ‖²
    norm_gammas: tuple[float, ...] = (0.0, 0.1, 1.0)  # weights of ‖z‖
    stds: tuple[float, ...] = (0.05, 0.1)  # of denoising problems, each solved from z = 0 and from the noisy image
    denoising_latent: tuple[float, ...] = (0.1, 0.3, 1.0)  # weights of ‖z‖ for them
    denoising_image: tuple[float, ...] = (0.005, 0.02)  # weights of −log p(x)


_TINY: dict[str, Any] = {"measurements": (614,), "image_gammas": (1e-3,), "noise_norms": (0.1,), "norm_gammas": (0.0,)}
_TINY |= {"stds": (0.1,), "denoising_latent": (1.0,), "denoising_image": (1e-2,)}


@dataclass(frozen=True)
class Search:
    """One search for all images: the problem ("m", "noise norm" or "std", and its value), where, γ, and from where."""

    kind: str
    value: float
    space: str
    gamma: float
    start: str = "zero"

    @property
    def problem(self) -> str:
        """The problem in words, "m=307"."""
        return f"{self.kind}={self.value:g}"

    def __str__(self) -> str:
        """The label of the search in the arrays."""
        return f"{self.problem} {self.space} {self.gamma:g} from {self.start}"


@experiment(
    "asim.image-space",
    paper="Asim et al. 2020",
    shows="Fig. 58-61",
    profiles={
        "quick": Settings(data="photos", images=1, budget=8, noisy_m=614, **_TINY),
        "laptop": Settings(budget=80, noisy_m=1229),
        "paper": Settings(
            **shared.FLOWERS,
            budget=600,
            measurements=(500, 1000, 2500, 5000),
            image_gammas=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
            noisy_m=5000,
            noise_norms=(0.1, 1.0),
            norm_gammas=(0.0, 0.01, 0.1, 1.0),
            denoising_latent=(0.0, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
            denoising_image=(0.001, 0.005, 0.02, 0.05, 0.1),
        ),
    },
)
def image_space(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Recovers held-out photographs by search over latents, over pixels, or over both in turn, at equal evaluations."""
    searches = _searches(settings)
    outcomes = context.map(_solve, searches, "searches")
    truth = settings.truth(context)
    listed = [
        {"problem": search.problem, "space": search.space, "gamma": search.gamma, "start": search.start}
        | outcome.metrics
        for search, outcome in zip(searches, outcomes, strict=True)
    ]
    observed = [evaluate.psnr(problems.denoising(context, truth, std)[1], truth).numpy() for std in settings.stds]
    arrays: dict[str, Named] = gather(outcomes, search=map(str, searches))
    arrays["observed psnr"] = named(np.stack(observed), std=settings.stds, image=len(truth))
    arrays["truth"] = shared.pictures(truth)
    return {"runs": listed, "n": truth[0].numel()}, arrays


def _searches(settings: Settings) -> list[Search]:
    found = []
    for m in settings.measurements:
        found.append(Search("m", m, "latent", 0.0))
        found += [Search("m", m, space, gamma) for space in ("image", "both") for gamma in settings.image_gammas]
    for norm in settings.noise_norms:
        found += [Search("noise norm", norm, "latent", gamma) for gamma in settings.norm_gammas]
    for std in settings.stds:
        for start in ("zero", "noisy image"):
            found += [Search("std", std, "latent", gamma, start) for gamma in settings.denoising_latent]
            found += [Search("std", std, "image", gamma, start) for gamma in settings.denoising_image]
    return found


def _solve(settings: Settings, part: Part, search: Search) -> tuple[dict, dict]:
    """One search for all images, from z = 0 and its image G(0), or from the noisy image and its latent.

    In space "both", the first half of the budget goes to latents with γ = 0, the other to the image that they lead to.
    """
    prior = shared.prior(part, settings.prior)
    truth = settings.truth(part)
    if search.kind == "std":
        problem, y = problems.denoising(part, truth, search.value)
    elif search.kind == "m":
        problem, y = problems.compressed(part, truth, int(search.value))
    else:
        problem, y = problems.compressed(part, truth, settings.noisy_m, norm=search.value)
    stages, budget, watch = [], settings.budget, problems.watch_psnr(truth)
    x0 = y if search.start == "noisy image" else None
    if search.space != "image":
        spend = budget // 2 if search.space == "both" else budget
        z0 = None if x0 is None else prior.encode(x0)
        gamma = search.gamma if search.space == "latent" else 0.0
        stages.append(recover.flow_latent(prior, problem.operator, y, gamma, z0=z0, max_evaluations=spend, watch=watch))
        x0, budget = stages[0].x, budget - spend
    if search.space != "latent":
        stages.append(
            recover.flow_image(prior, problem.operator, y, search.gamma, x0=x0, max_evaluations=budget, watch=watch)
        )
    found = stages[-1]
    evaluations = torch.stack([part.count(stage).evaluations for stage in stages]).sum(0)
    spent = [int(stage.evaluations.max()) for stage in stages[:-1]]
    ends = [*spent, settings.budget - sum(spent)]
    path = torch.cat([stage.at("psnr", range(1, end + 1)) for stage, end in zip(stages, ends, strict=True)])
    psnr = evaluate.psnr(found.x, truth)
    return {
        "mean psnr": round(float(psnr.mean()), 3),
        "converged": int(found.converged.sum()),
        "mean evaluations": round(float(evaluations.double().mean()), 1),
        **_score(prior, problem, y, found),
    }, {
        "psnr": named(psnr.numpy(), image=len(truth)),
        "path": named(path.numpy(), evaluation=range(1, settings.budget + 1), image=len(truth)),
        "recovered": shared.pictures(found.x[:3]),
    }


@torch.no_grad()
def _score(prior: Any, problem: measure.Problem, y: torch.Tensor, found: recover.Result) -> dict[str, float]:
    misfit = energy.SquaredMisfit(problem.operator, y)
    point = energy.Energy(prior, misfit, space="x").at(found.x)
    return {
        "mean misfit": float(misfit(found.x).mean()),
        "mean negative log-likelihood": -float(point.log_prob.mean()),
    }
