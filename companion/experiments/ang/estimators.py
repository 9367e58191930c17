"""What is dropped of a chain, when it has arrived, and what is made of its draws (Ang's burn-in, and Figure 9)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion import _support, evaluate, sample
from companion.energy import Energy
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.problems import Case, cases, observed, posterior, truths
from companion.experiments.arrays import Named, collect

RUNS = ("random", "map", "map, metric")
ESTIMATORS = ("last", "mean latent", "mean image")
STEPS = (0.0, 1.0, 2.0)  # of the final step, in steps of the sampler
NOISES = (0.0, 0.5, 1.0, 2.0)  # that Tweedie's formula is told, in the flow's own


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the study."""

    prior: str = "vae-mnist"
    flow: str = "glow-mnist-smooth"
    smoothing: float = 0.1  # of the noise in the images that the flow was trained on
    data: str
    images: int
    published: int = 15  # draws that the report averages
    search: int = 60  # evaluations of the search for a MAP
    burn_in: tuple[int, ...] = (*range(0, 201, 20), 500, 1000)
    lengths: tuple[int, ...] = (15, 200, 2000)  # of the chains that estimates are made of; the last is that of the run
    reference: int = 400  # draws of each of two chains that say what equilibrium is, by HMC with the metric
    cases: tuple[tuple[str, int, float], ...] = (("inpainting", 200, 0.1), ("compressed", 100, 0.1))


@experiment(
    "ang.estimators",
    paper="Ang 2021",
    shows="burn-in, mixing time, Algorithm 1's denoising step (Fig. 9)",
    profiles={
        "quick": Settings(
            data="prior",
            images=4,
            burn_in=(0, 20),
            lengths=(15, 60),
            reference=60,
            cases=(("compressed", 50, 0.1),),
        ),
        "laptop": Settings(data="mnist", images=100),
        "paper": Settings(data="mnist", images=1000, lengths=(15, 200, 2000, 20_000), reference=2000),
    },
    # a chain's way follows rounding errors; what is compared is of the size of the Monte Carlo error
    tolerances={"error*": 0.1, "above*": 0.5, "mixing": 0.5, "autocorrelation*": 0.5, "*rhat": 0.5, "spread": 0.5},
)
def estimators(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Runs chains from a random latent and from a MAP; varies what is dropped, and what is returned."""
    chains = gather(context.map(_chains, settings.cases, "chains"), case=map(str, cases(settings)))
    (flow,) = context.map(_flow, [settings.flow], "flow")
    return {}, {**chains, **flow.arrays}


def _chains(settings: Settings, part: Part, given: tuple[str, int, float]) -> tuple[dict, dict]:
    """All runs on all images of a case; their energies are compared with those of longer chains from the best mode."""
    prior = shared.prior(part, settings.prior)
    truth = truths(part, prior, settings.data, settings.images)
    target = posterior(prior, *observed(part, truth, Case(*given)))
    seed = shared.seed_of(part, "reference")
    best = sample.initialise(target, "best", chains=4, budget=100, seed=seed)[:, 0]
    metric = sample.gauss_newton(target, best)
    options: dict[str, Any] = {"leapfrogs": 3, "step": 0.5, "warmup": 200, "draws": settings.reference, "seed": seed}
    level = sample.hmc(target, metric.draw(2, seed=seed), metric=metric, **options)
    part.count_evaluations(settings.images * (400 + metric.evaluations) + int(level.evaluations.sum()))
    energies, step = level.energies.transpose(1, 2).flatten(0, 1), metric.widths[:, 0]
    about = {
        "reference rhat": named(level.diagnostics().rhat.max(1), image=settings.images),
        "spread": named(shared.numpy(energies.std(0)), image=settings.images),
    }
    runs = [_run(settings, part, run, target, truth, step, energies) for run in RUNS]
    return {}, {**collect(runs, run=RUNS), **about}


def _run(
    settings: Settings, part: Part, run: str, target: Energy, truth: Tensor, step: Tensor, reference: Tensor
) -> dict[str, Named]:
    """One chain for each image: Langevin, or MALA with the metric at its start.

    Langevin's step is 1/√λ, with λ the largest curvature at the best mode: the same from both starts and at nobody's
    cost. The search and the metric count.
    """
    seed, total, per = shared.seed_of(part, "chains"), settings.lengths[-1], {"image": settings.images}
    z0 = sample.initialise(target, run.partition(",")[0], chains=1, budget=settings.search, seed=seed)
    metric = sample.gauss_newton(target, z0[:, 0]) if run.endswith("metric") else None
    if metric:  # steps have no warm-up to adapt in: what MALA adapts to in these coordinates
        chains = sample.mala(target, z0, step=0.7, metric=metric, draws=total, warmup=0, seed=seed)
    else:
        chains = sample.langevin(target, z0, step=step, draws=total, warmup=0, seed=seed)
    cost = settings.search * run.startswith("map") + (metric.evaluations if metric else 0)
    part.count_evaluations(settings.images * cost + int(chains.evaluations.sum()))
    z, energies, x = chains.samples[:, :, 0], chains.energies[:, :, 0], chains.images(target.prior)[:, :, 0]
    windows = [slice(b, b + settings.published) for b in settings.burn_in]
    mean, spread = reference.mean(0), reference.std(0)
    made = [estimates(target, z[n // 2 : n], x[n // 2 : n], chains.step, metric) for n in settings.lengths]
    of: dict[str, Any] = {"length": settings.lengths, "estimator": ESTIMATORS, "step": STEPS, **per}
    latest = torch.cat([z, energies[:, :, None]], 2)[total // 2 :]
    return {
        "error, next": named([evaluate.mse(x[w].mean(0), truth) for w in windows], burn_in=settings.burn_in, **per),
        "error, rest": named(
            [evaluate.mse(x[b:].mean(0), truth) for b in settings.burn_in], burn_in=settings.burn_in, **per
        ),
        "above": named([shared.numpy(energies[w].mean(0) - mean) for w in windows], burn_in=settings.burn_in, **per),
        "above, start": named(shared.numpy(target(z0[:, 0]).detach() - mean), **per),
        "mixing": named(cost + shared.numpy(sample.mixing_time(energies, mean, spread)), **per),
        "autocorrelation": named(
            sample.autocorrelation_time(latest.double().cpu().numpy()), **per, quantity=latest.shape[2]
        ),
        "error": named([[[evaluate.mse(at, truth) for at in each] for each in length] for length in made], **of),
    }


def estimates(target: Energy, z: Tensor, x: Tensor, step: Tensor, metric: sample.Metric | None) -> list[list[Tensor]]:
    """Images made of draws z, [draw, image, n], and their images x: of ESTIMATORS, each after STEPS without noise.

    The final step is h²/2 C ∇E from a latent, Langevin's without its noise and one evaluation more. Algorithm 1 prints
    it with g(z) in place of the first z, which has another dimension; its code is as here. A mean image has no latent.
    """

    def after(z: Tensor, factor: float) -> Tensor:
        gradient = target.value_and_gradient(z)[1]
        if metric:
            gradient = (metric.factor @ metric.factor.mT @ gradient[:, :, None])[:, :, 0]
        with torch.no_grad():
            return target.prior.decode(z - factor * step.square()[:, None] / 2 * gradient)

    return [[after(latent, s) for s in STEPS] for latent in (z[-1], z.mean(0))] + [[x.mean(0)] * len(STEPS)]


def _flow(settings: Settings, part: Part, name: str) -> tuple[dict, dict]:
    """Tweedie's step where it is licensed: images with the noise that the flow was trained on, and other noises told.

    A draw of the posterior of a smoothed flow is such an image; here all its pixels are known.
    """
    flow = shared.prior(part, name)
    clean = truths(part, flow, "digits" if settings.data == "prior" else settings.data, settings.images)
    noisy = clean + settings.smoothing * _support.normal(clean.shape, part.seed, clean, "smoothing")
    told = [sample.tweedie(flow, noisy, s * settings.smoothing) if s else noisy for s in NOISES]
    part.count_evaluations(settings.images * (len(NOISES) - 1))
    return {}, {"error, flow": named([evaluate.mse(x, clean) for x in told], noise=NOISES, image=settings.images)}
