"""A flow as prior: what it takes to sample the posterior of 784 latents."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import _support, energy, evaluate, measure, sample
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.calibration import quantities, within
from companion.experiments.ang.problems import posterior, prior_latents, truths

COMPONENTS = 20  # principal components of the digits, on which chains are judged


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the runs."""

    data: str
    images: int
    chains: int
    budget: int  # evaluations of each chain, half of them warm-up
    search: int = 150  # for the MAP, from which all starts come
    m: int = 200  # pixels seen
    std: float = 0.1  # of the noise of measurements
    smoothing: float = 0.1  # of the noise in the images that the flow was trained on
    training: int = 2000  # digits whose principal components are taken
    runs: tuple[tuple[str, str, str, int], ...]  # prior, space, start, leapfrogs


_SMOOTH = "glow-mnist-smooth"
_RUNS = (
    (_SMOOTH, "z", "map", 1),
    (_SMOOTH, "z", "map", 10),
    (_SMOOTH, "z", "typical", 10),
    (_SMOOTH, "z", "typical", 60),
    (_SMOOTH, "x", "typical", 15),
    (_SMOOTH, "x", "typical", 60),
    ("glow-mnist", "z", "typical", 60),
)


@experiment(
    "ang.flow",
    paper="Ang 2021",
    shows="flows as priors, which the report leaves for later",
    profiles={
        "quick": Settings(
            data="digits",
            images=1,
            chains=2,
            budget=30,
            search=10,
            training=100,
            runs=((_SMOOTH, "z", "map", 1), (_SMOOTH, "z", "typical", 3)),
        ),
        "laptop": Settings(data="mnist", images=2, chains=4, budget=2400, runs=_RUNS),
        "paper": Settings(data="mnist", images=20, chains=8, budget=20_000, runs=_RUNS),
    },
    tolerances={"rhat": None, "ess": 0.5, "norm": 0.1, "error*": 0.2, "step": 0.3, "accept_rate": 0.3},
)
def flow(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Samples the posterior of inpainted digits with a Glow prior, smoothed or not, in latents and in pixels."""
    outcomes = context.map(_sample, settings.runs, "runs")
    labels = [f"{prior}, {space} from {start}, {leapfrogs}" for prior, space, start, leapfrogs in settings.runs]
    return {}, gather(outcomes, run=labels)


def _sample(settings: Settings, part: Part, item: tuple[str, str, str, int]) -> tuple[dict, dict]:
    """One run on all images: diagnostics, norms of the latents, and errors of the mean against the clean digit.

    The flow is a density of digits with N(0, smoothing²) noise, so that is what is measured; the clean digit is
    estimated from the mean by Tweedie's formula.
    """
    name, space, start, leapfrogs = item
    prior = shared.prior(part, name)
    clean = truths(part, prior, settings.data, settings.images)
    noisy = clean + settings.smoothing * _support.normal(clean.shape, part.seed, clean, "smoothing")
    problem, y = _inpainting(settings, part, noisy)
    misfit = energy.NoiseMisfit(problem, y)
    in_latents = energy.Energy(prior, misfit, energy.LatentNorm(0.5, squared=True))
    seed, options = shared.seed_of(part, "chains", name), {"budget": settings.search, "noise": settings.smoothing}
    z0 = sample.initialise(in_latents, "map", chains=1, seed=seed, **options)  # type: ignore[arg-type]
    z0 = z0.expand(-1, settings.chains, -1)
    if start == "typical":
        z0 = sample.initialise(in_latents, "typical", chains=settings.chains, seed=seed, **options)  # type: ignore[arg-type]
    part.count_evaluations(settings.images * settings.search * (1 + settings.chains * (start == "typical")))
    target, at = in_latents, z0
    if space == "x":
        target = energy.Energy(prior, misfit, energy.FlowLikelihood(1.0), space="x")
        with torch.no_grad():
            at = prior.decode(z0.flatten(0, 1)).unflatten(0, z0.shape[:2])
    draws = settings.budget // 2 // leapfrogs
    chains = sample.hmc(target, at, leapfrogs=leapfrogs, step=0.02, draws=draws, warmup=draws, seed=seed)
    part.count(chains)  # type: ignore[arg-type]
    images = chains.samples if space == "x" else chains.images(prior)
    components = _components(settings, part, prior)
    found = chains.diagnostics(lambda rows: _images(prior, rows, space).flatten(1) @ components)
    with torch.no_grad():
        norms = chains.last if space == "z" else prior.encode(images[-1].flatten(0, 1)).unflatten(0, z0.shape[:2])
    mean = images.mean((0, 2))
    per_image: dict[str, Any] = {"image": settings.images}
    return {}, {
        "rhat": named(found.rhat[:, :-1].clip(max=1e6), **per_image, component=COMPONENTS),
        "ess": named(found.ess_bulk[:, :-1], **per_image, component=COMPONENTS),
        "norm": named(shared.numpy(norms.norm(dim=2)), **per_image, chain=settings.chains),
        "error": named(evaluate.mse(mean, clean).numpy(), **per_image),
        "error, denoised": named(
            evaluate.mse(sample.tweedie(prior, mean, settings.smoothing), clean).numpy(), **per_image
        ),
        "accept_rate": named(shared.numpy(chains.accept_rate.mean(1)), **per_image),
        "step": named(shared.numpy(chains.step), **per_image),
    }


@dataclass(frozen=True, kw_only=True)
class Easy:
    """Sizes of the test where so little is measured that chains of a flow's latents come to an end."""

    data: str  # whose principal components are looked at
    flow: str = _SMOOTH
    problems: int  # drawn from the flow itself
    block: int  # problems in one batch
    chains: int = 2
    warmup: int
    draws: int  # kept of each chain
    thin: int
    weighted: int  # draws of the prior whose weighted mean judges the chains'
    m: int  # pixels seen
    std: float  # of the noise of measurements
    training: int = 2000


_FEW = Easy(data="digits", problems=4, block=2, warmup=40, draws=10, thin=2, weighted=100, m=10, std=0.5, training=200)
_EASY = Easy(data="mnist", problems=200, block=20, warmup=1000, draws=400, thin=10, weighted=10_000, m=25, std=0.5)


_TOLERANCES = {
    "rank": 0.5,
    "coverage": 0.2,
    "error": 0.2,
    "rhat": 0.5,
    "*ess": 0.5,
    "off*": 0.5,
    "converged": 0.5,
    "accept_rate": 0.3,
}


@dataclass(frozen=True, kw_only=True)
class Rivals(Easy):
    """The same by samplers that gradients drive."""

    leapfrogs: int  # of HMC
    particles: int  # of sequential Monte Carlo


@experiment(
    "ang.flow-calibration",
    paper="Ang 2021",
    shows="flows as priors: calibration where their chains converge",
    profiles={
        "quick": _FEW,
        "laptop": _EASY,
        "paper": replace(_EASY, problems=1000, warmup=10_000, draws=2000, weighted=100_000),
    },
    tolerances=_TOLERANCES,
)
def flow_calibration(settings: Easy, context: Context) -> tuple[dict, dict]:
    """Ranks digits of a flow's own among their posterior's draws, by chains that hardly any measurement hinders."""
    blocks = range(0, settings.problems, settings.block)
    return {}, gather(context.map(_ranked, blocks, "problems"), block=len(blocks))


@experiment(
    "ang.flow-samplers",
    paper="Ang 2021",
    shows="flows as priors: the same problems by samplers that gradients drive",
    profiles={
        "quick": Rivals(**vars(_FEW) | {"warmup": 10, "thin": 1, "leapfrogs": 3, "particles": 20}),
        "laptop": Rivals(
            **vars(_EASY) | {"problems": 40, "warmup": 60, "draws": 150, "thin": 1, "leapfrogs": 6, "particles": 59}
        ),
    },
    tolerances=_TOLERANCES,
)
def flow_samplers(settings: Rivals, context: Context) -> tuple[dict, dict]:
    """Ranks digits of a flow's own among draws of Hamiltonian chains and of sequential Monte Carlo."""
    methods, blocks = ("hmc", "smc"), range(0, settings.problems, settings.block)
    items = [(method, start) for method in methods for start in blocks]
    return {}, gather(context.map(_rival, items, "samplers"), method=methods, block=len(blocks))


def _ranked(settings: Easy, part: Part, start: int) -> tuple[dict, dict]:
    """Chains of preconditioned Crank–Nicolson from draws of the prior, for the problems from `start` on."""
    own = _own(settings, part, start)
    options: dict[str, Any] = {"draws": settings.draws, "warmup": settings.warmup, "thin": settings.thin, "step": 0.5}
    chains = sample.pcn(own.target, own.starts, seed=shared.seed_of(part, "chains", start), **options)
    part.count_evaluations(int(chains.evaluations.sum()) + settings.weighted)
    return {}, _of_chains(settings, own, chains)


def _rival(settings: Rivals, part: Part, item: tuple[str, int]) -> tuple[dict, dict]:
    """The problems from `start` on by another sampler; particles have no R-hat, and count as independent."""
    method, start = item
    own, seed = _own(settings, part, start), shared.seed_of(part, *item)
    if method == "hmc":
        options: dict[str, Any] = {"draws": settings.draws, "warmup": settings.warmup, "thin": settings.thin}
        chains = sample.hmc(own.target, own.starts, step=0.2, leapfrogs=settings.leapfrogs, seed=seed, **options)
        found, evaluations = _of_chains(settings, own, chains), chains.evaluations.sum(1)
    else:
        particles = sample.smc(own.target, particles=settings.particles, seed=seed)
        images = torch.stack([_images(own.prior, draw, "z") for draw in particles.samples])
        ess, nothing = np.full(settings.block, float(settings.particles)), np.full(settings.block, np.nan)
        found, evaluations = _of_draws(settings, own, particles.samples, images, 1 / ess), particles.evaluations
        per_problem: dict[str, Any] = {"problem": settings.block}
        found |= {name: named(nothing, **per_problem) for name in ("rhat", "converged")}
        found |= {"ess": named(ess, **per_problem)}
        found |= {"accept_rate": named(shared.numpy(particles.accept_rate), **per_problem)}
    part.count_evaluations(int(evaluations.sum()) + settings.weighted)
    return {}, found | {"evaluations": named(shared.numpy(evaluations), problem=settings.block)}


@dataclass(frozen=True)
class _Own:
    """A block of the flow's own digits, measured, and weighted draws of the prior, which judge what chains find."""

    prior: Any
    latents: Tensor
    truth: Tensor
    problem: measure.Problem
    y: Tensor
    target: energy.Energy
    starts: Tensor  # draws of the prior, [problem, chain, n]
    components: Tensor
    mean: Tensor  # of the weighted draws
    ess: np.ndarray  # and how many of them count


def _own(settings: Easy, part: Part, start: int) -> _Own:
    prior, chosen = shared.prior(part, settings.flow), torch.arange(start, start + settings.block)
    latents = prior_latents(part, prior, settings.problems)
    truth = _images(prior, latents, "z")
    problem, y = _inpainting(settings, part, truth)
    latents, truth, problem, y = latents[chosen], truth[chosen], problem.select(chosen), y[chosen]
    shape = (settings.chains, prior.latent_dim)
    starts = torch.stack([_support.normal(shape, part.seed, latents, "start", k) for k in chosen.tolist()])
    mean, ess = _weighted(settings, part, prior, energy.NoiseMisfit(problem, y))
    components = _components(settings, part, prior)
    return _Own(prior, latents, truth, problem, y, posterior(prior, problem, y), starts, components, mean, ess)


def _of_chains(settings: Easy, own: _Own, chains: sample.Chains) -> dict[str, Any]:
    drawn = chains.images(own.prior)  # [draw, problem, chain, C, H, W]
    found = chains.diagnostics(lambda _: drawn.flatten(0, 2).flatten(1) @ own.components)
    z, x = (each.transpose(1, 2).flatten(0, 1) for each in (chains.samples, drawn))  # chains one after the other
    per_problem: dict[str, Any] = {"problem": settings.block}
    return _of_draws(settings, own, z, x, (1 / found.ess_bulk[:, :-1]).mean(1)) | {
        "rhat": named(found.rhat.max(1).clip(max=1e6), **per_problem),
        "ess": named(found.ess_bulk.min(1), **per_problem),
        "converged": named(found.converged, **per_problem),
        "accept_rate": named(shared.numpy(chains.accept_rate.mean(1)), **per_problem),
    }


def _of_draws(settings: Easy, own: _Own, z: Tensor, x: Tensor, chance: np.ndarray) -> dict[str, Any]:
    """Of draws of latents and images, [draw, problem, ...], of which 1/`chance` are worth independent ones.

    "rank" is the share of the draws below the truth, of principal components, ‖z‖² and the squared misfit. "off" is how
    far their mean image lies from that of weighted draws of the prior, over pixels, in standard deviations of the
    posterior; "off, expected" is what the effective sample sizes of both leave to chance.
    """
    of_draws, of_truth = (
        torch.cat([image.flatten(2) @ own.components, quantities(latent, image, own.problem, own.y)[..., -2:]], 2)
        for latent, image in ((z, x), (own.latents[None], own.truth[None]))
    )
    off = ((x.mean(0) - own.mean) / x.std(0)).square().flatten(1).mean(1).sqrt()
    per_problem: dict[str, Any] = {"problem": settings.block}
    return {
        "rank": named(shared.numpy((of_draws < of_truth).double().mean(0)), **per_problem, quantity=COMPONENTS + 2),
        "coverage": named(shared.numpy(within(x, own.truth).double().flatten(1).mean(1)), **per_problem),
        "error": named(shared.numpy((x.mean(0) - own.truth).square().flatten(1).mean(1)), **per_problem),
        "off": named(shared.numpy(off), **per_problem),
        "off, expected": named(np.sqrt(chance + 1 / own.ess), **per_problem),
        "weighted ess": named(own.ess, **per_problem),
    }


@torch.no_grad()
def _weighted(settings: Easy, part: Part, prior: Any, misfit: energy.NoiseMisfit) -> tuple[Tensor, np.ndarray]:
    """Posterior means, [problem, *shape], by draws of the prior weighted with the likelihood, and how many count."""
    latents = _support.normal((settings.weighted, prior.latent_dim), part.seed, prior.like, "weighted")
    x = _images(prior, latents, "z")
    copies = (misfit.select(torch.full((len(x),), k)) for k in range(settings.block))
    weights = torch.stack([(-copy(x)).softmax(0) for copy in copies])
    return torch.einsum("pd,d...->p...", weights, x), shared.numpy(1 / weights.square().sum(1))


def _inpainting(settings: Settings | Easy, part: Part, x: Tensor) -> tuple[measure.Problem, Tensor]:
    """Noisy pixels of noisy images, which may leave [0, 1]."""
    shape, missing = tuple(x.shape[1:]), 1 - settings.m / x[0].numel()
    sources = [_support.generator(part.seed, "mask", k) for k in range(len(x))]
    masks = torch.stack([measure.masks.random_pixels(shape, missing, source) for source in sources])
    problem = measure.Problem(measure.Mask(masks, domain="real"), measure.GaussianNoise(settings.std))
    return problem, problem.observe(x, shared.seed_of(part, "draw"))


def _components(settings: Settings | Easy, part: Part, prior: Any) -> Tensor:
    """Leading principal components of training digits, [pixels, COMPONENTS]."""
    flat = truths(part, prior, settings.data, settings.training, "train").flatten(1)
    return torch.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:COMPONENTS].mT


@torch.no_grad()
def _images(prior: Any, rows: Tensor, space: str) -> Tensor:
    return rows if space == "x" else torch.cat([prior.decode(part) for part in rows.split(256)])
