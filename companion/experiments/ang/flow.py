"""A flow as prior: what it takes to sample the posterior of 784 latents."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion import _support, energy, evaluate, measure, sample
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.problems import truths

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
            budget=60,
            search=20,
            training=200,
            runs=((_SMOOTH, "z", "map", 1), (_SMOOTH, "z", "typical", 5)),
        ),
        "laptop": Settings(data="mnist", images=2, chains=4, budget=2400, runs=_RUNS),
        "paper": Settings(data="mnist", images=20, chains=8, budget=20_000, runs=_RUNS),
    },
    tolerances={"rhat": 0.5, "ess": 0.5, "norm": 0.1, "error*": 0.2, "step": 0.3, "accept_rate": 0.2},
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


def _inpainting(settings: Settings, part: Part, x: Tensor) -> tuple[measure.Problem, Tensor]:
    """Noisy pixels of noisy images, which may leave [0, 1]."""
    shape, missing = tuple(x.shape[1:]), 1 - settings.m / x[0].numel()
    sources = [_support.generator(part.seed, "mask", k) for k in range(len(x))]
    masks = torch.stack([measure.masks.random_pixels(shape, missing, source) for source in sources])
    problem = measure.Problem(measure.Mask(masks, domain="real"), measure.GaussianNoise(settings.std))
    return problem, problem.observe(x, shared.seed_of(part, "draw"))


def _components(settings: Settings, part: Part, prior: Any) -> Tensor:
    """Leading principal components of training digits, [pixels, COMPONENTS]."""
    flat = truths(part, prior, settings.data, settings.training, "train").flatten(1)
    return torch.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:COMPONENTS].mT


@torch.no_grad()
def _images(prior: Any, rows: Tensor, space: str) -> Tensor:
    return rows if space == "x" else torch.cat([prior.decode(part) for part in rows.split(256)])
