"""The most likely image under a flow: what it is, how β and stopping early change it, and that coordinates matter."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion import evaluate, measure, recover
from companion.energy import Energy, FlowLikelihood, LatentNorm, NoiseMisfit, Penalty
from companion.experiments import Context, Part, experiment, gather, named, problems, shared
from companion.experiments.whang import sets

CANDIDATES = ("truth", "blank")  # images whose density is compared with that of the estimates


@dataclass(frozen=True, kw_only=True)
class Family:
    """A flow with images unlike those it was trained on by their indices only, and noise of some levels."""

    prior: str
    data: str
    size: int
    scales: tuple[float, ...]  # of sinusoidal noise


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    families: tuple[Family, ...]
    images: int = 24  # held-out images of each family
    betas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    budget: int = 300  # evaluations for one image
    marks: tuple[int, ...] = (1, 3, 10, 30, 100, 300)  # evaluations at which scores are noted
    shown: int = 3  # images that are stored, with their estimates


@dataclass(frozen=True)
class Search:
    """One search: the weight β of −log p(x) ("image") or of ‖z‖²/2 ("latent"), and where it begins."""

    prior: str
    scale: float
    mode: str
    beta: float
    start: str = "zero"


_DIGITS = ("glow-mnist", "glow-mnist-smooth")
_QUICK = tuple(Family(prior=name, data="digits", size=28, scales=(0.3,)) for name in _DIGITS)
_LAPTOP = (
    *(Family(prior=name, data="mnist", size=28, scales=(0.3, 1.0)) for name in _DIGITS),
    Family(prior="glow-eurosat32", data="eurosat", size=32, scales=(0.3,)),
    Family(prior="glow-photos32", data="photographs", size=32, scales=(0.3,)),
)


@experiment(
    "whang.modes",
    paper="Whang et al. 2021",
    shows="eq. 12: what its minimiser is; β and evaluations, which the paper gives no table of",
    profiles={
        "quick": Settings(families=_QUICK, images=2, betas=(0.1, 1.0), budget=10, marks=(1, 5, 10), shown=2),
        "laptop": Settings(families=_LAPTOP),
    },
    tolerances={"*psnr*": 0.03, "*nats*": 0.03, "*misfit*": 0.1, "*recovered": 0.2},
)
def modes(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Denoises images by the mode of a flow's posterior, for many β and evaluations, and compares energies.

    Arrays of each prior: "psnr" by scale, mode, beta, evaluation and image; "misfit" and "nats" (−log p(x)) of the
    estimates; "latent nats" (‖z‖²/2); the same of the truth and of a blank page, by candidate; and, of the searches
    that begin at the truth with β = 1, "from truth psnr".
    """
    arrays: dict[str, Any] = {}
    for family in settings.families:
        grid = [
            Search(family.prior, scale, mode, beta)
            for scale in family.scales
            for mode in ("image", "latent")
            for beta in settings.betas
        ]
        axes = {"scale": family.scales, "mode": ("image", "latent"), "beta": settings.betas}
        stored = gather(context.map(_search, grid, f"{family.prior}: searches"), **axes)
        at_truth = [Search(family.prior, scale, "image", 1.0, "truth") for scale in family.scales]
        ends = gather(context.map(_search, at_truth, f"{family.prior}: from the truth"), scale=family.scales)
        stored |= {f"from truth {name}": array for name, array in ends.items()}
        points = [(family.prior, scale, of) for scale in family.scales for of in CANDIDATES]
        stored |= gather(
            context.map(_score, points, f"{family.prior}: energies"), scale=family.scales, candidate=CANDIDATES
        )
        arrays |= {f"{family.prior} {name}": array for name, array in stored.items()}
    return {}, arrays


def _problem(settings: Settings, part: Part, name: str, scale: float) -> tuple[Any, Tensor, measure.Problem, Tensor]:
    """Flow, truth, problem and measurements of a family."""
    family = next(family for family in settings.families if family.prior == name)
    truth = sets.images(part, family.data, "test", settings.images, family.size)
    problem = measure.Problem(measure.Identity(tuple(truth.shape[1:])), measure.SinusoidalNoise(scale))
    return shared.prior(part, name), truth, problem, problem.observe(truth, shared.seed_of(part, "draw", 0))


def _search(settings: Settings, part: Part, search: Search) -> tuple[dict, dict]:
    flow, truth, problem, y = _problem(settings, part, search.prior, search.scale)
    penalty: Penalty = FlowLikelihood(search.beta)
    if search.mode == "latent":
        penalty = LatentNorm(search.beta / 2, squared=True)
    energy = Energy(flow, NoiseMisfit(problem, y), penalty)
    z0 = flow.encode(truth) if search.start == "truth" else truth.new_zeros(len(truth), flow.latent_dim)
    watch = problems.watch_psnr(truth)
    found = part.count(recover.minimise(energy, z0, max_evaluations=settings.budget, watch=watch))
    image = {"image": len(truth)}
    return {}, {
        "psnr": named(found.at("psnr", settings.marks).float().numpy(), evaluation=settings.marks, **image),
        "recovered": shared.pictures(found.x[: settings.shown]),
        **{name: named(shared.numpy(value), **image) for name, value in _nats(flow, problem, found.x, y).items()},
    }


def _score(settings: Settings, part: Part, point: tuple[str, float, str]) -> tuple[dict, dict]:
    """The terms of the energy at the truth, or at a blank page."""
    name, scale, candidate = point
    flow, truth, problem, y = _problem(settings, part, name, scale)
    x = truth if candidate == "truth" else torch.zeros_like(truth)
    part.count_evaluations(len(x))
    scored = {f"candidate {key}": value for key, value in _nats(flow, problem, x, y).items()}
    scored |= {
        "candidate psnr": evaluate.psnr(x, truth).clamp(max=99).float(),
        "noisy psnr": evaluate.psnr(y, truth).float(),
    }
    shown = {"noisy": shared.pictures(y[: settings.shown]), "truth": shared.pictures(truth[: settings.shown])}
    return {}, {key: named(shared.numpy(value), image=len(x)) for key, value in scored.items()} | shown


@torch.no_grad()
def _nats(flow: Any, problem: measure.Problem, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """−log p(y | x), −log p(x) and ‖z‖²/2 of images."""
    inside = x if flow.domain is None else x.clamp(0, 1)
    return {
        "misfit": -problem.log_likelihood(x, y),
        "nats": -flow.log_prob(inside),
        "latent nats": flow.encode(inside).square().sum(1) / 2,
    }


def energies(run: Any, prior: str, scale: float) -> dict[str, Any]:
    """Misfit − log p(x), β = 1, in nats: of truth, blank page, and where a search from the truth ends; [image] each."""
    at = {"scale": scale}
    found = {
        kind: sum(run.take(f"{prior} candidate {term}", candidate=kind, **at) for term in ("misfit", "nats"))
        for kind in CANDIDATES
    }
    return found | {"end": sum(run.take(f"{prior} from truth {term}", **at) for term in ("misfit", "nats"))}
