"""A generator's prior tilted by its discriminator: nearer to the data or not, and better posterior means or not."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from companion import _support, energy, evaluate, sample
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.problems import Case, observed, posterior, prior_latents, truths


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    prior: str = "gan-mnist"
    data: str  # a data set, or "tilted": see :func:`real_images`
    calibration: int  # validation images, and as many generated ones, that the discriminator is calibrated on
    weights: tuple[float, ...] = (0.0, 1.0, 5.0)  # λ, of the calibrated log ratio
    draws: int  # of each refined prior, a chain each; as many held-out images are compared with
    budget: int  # evaluations of each of these chains, before its draw
    images: int  # to be recovered
    chains: int  # of each posterior
    search: int = 80  # evaluations of the search for a start, of each chain
    posterior: int  # evaluations of each chain after it, half of them warm-up
    m: int = 50  # pixels seen
    std: float = 0.1  # of the noise of measurements


_LEAPFROGS = 5


@experiment(
    "ang.discriminator",
    paper="Ang 2021",
    shows="sec. 3.2, Figs. 3–5, with a discriminator calibrated on held-out images",
    profiles={
        "quick": Settings(
            data="tilted", calibration=80, draws=32, budget=40, images=6, chains=2, search=20, posterior=40
        ),
        "laptop": Settings(data="mnist", calibration=2000, draws=256, budget=750, images=32, chains=2, posterior=1000),
        "paper": Settings(
            data="mnist", calibration=5000, draws=2000, budget=5000, images=1000, chains=4, posterior=10_000
        ),
    },
    # chains follow rounding errors apart, and R-hat of chains that hardly moved is any large number
    tolerances={"rhat": None, "*": 0.3},
)
def discriminator(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Refines a GAN's prior and its posteriors by the calibrated discriminator, with several weights."""
    ratio, facts = calibrate(settings, context)
    items = [(weight, ratio.scale, ratio.bias) for weight in settings.weights]
    real = real_images(settings, context, 2 * settings.draws, "test")
    facts["energy distance of real images"] = energy_distance(*real.chunk(2))
    return facts, gather(context.map(_refine, items, "weights"), weight=settings.weights)


@torch.no_grad()
def real_images(settings: Settings, part: Part, number: int, split: str) -> Tensor:
    """Images of the data, [number, *shape].

    Those called "tilted" are draws of the generator accepted with probability ∝ exp(d): the log ratio is d + constant,
    so that the right scale is 1 and λ = 1 is exact. The embedded 8×8 digits won't do: enlarged, they are so smooth that
    the discriminator tells them all from the generator's, and prefers the latter.
    """
    gan = shared.prior(part, settings.prior)
    if settings.data != "tilted":
        return truths(part, gan, settings.data, number, split)
    source = _support.generator(part.seed, "tilted", split)
    pool = gan.decode(_support.normal((30 * number, gan.latent_dim), source, gan.like))
    d = gan.discriminate(pool).cpu()
    accepted = torch.rand(len(d), generator=source, device="cpu") < (d - d.max()).exp()
    return pool[accepted.to(pool.device)][:number]


def calibrate(settings: Settings, part: Part) -> tuple[energy.LogRatio, dict[str, float]]:
    """The calibrated log ratio, and what it is worth: scale, bias, and log losses in nats on images of another set."""
    gan, number = shared.prior(part, settings.prior), settings.calibration

    def both(split: str) -> tuple[Tensor, Tensor]:
        real = real_images(settings, part, number, split)
        return real, truths(part, gan, "prior", len(real), split)

    ratio = sample.calibrated(gan.discriminate, *both("validation"))
    facts = {"scale": ratio.scale, "bias": ratio.bias}
    held_out = both("test")
    for name, judge in (("raw", energy.LogRatio(gan.discriminate)), ("calibrated", ratio)):
        with torch.no_grad():
            real, generated = (judge(x) for x in held_out)
        facts[f"{name} log ratio, real"] = float(real.mean())
        facts[f"{name} log ratio, generated"] = float(generated.mean())
        facts[f"{name} log loss"] = float(softplus(-real).mean() + softplus(generated).mean()) / 2
    return ratio, facts


def energy_distance(x: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
    """√(2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖) of images x, [number, *shape], with weights that sum to 1, and y.

    Draws of one distribution are not at 0, but at about √(E‖X − X'‖ (1 / number of x + 1 / number of y)).
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()
    w = x.new_full((len(x),), 1 / len(x)) if weights is None else weights.to(x)
    across, within, real = w @ torch.cdist(x, y).mean(1), w @ torch.cdist(x, x) @ w, torch.cdist(y, y).mean()
    return float((2 * across - within - real).clamp(min=0).sqrt())


def _refine(settings: Settings, part: Part, item: tuple[float, float, float]) -> tuple[dict, dict]:
    """The prior tilted with weight λ: its draws by chains and by importance weights, and posterior means."""
    weight, scale, bias = item
    gan = shared.prior(part, settings.prior)
    ratio = energy.LogRatio(gan.discriminate, scale, bias)
    penalty = energy.Discrimination(ratio, weight)
    real = real_images(settings, part, settings.draws, "test")

    z = prior_latents(part, gan, settings.draws, "refined")
    steps = settings.budget // _LEAPFROGS
    chains = sample.hmc(
        lambda z: z.square().sum(1) / 2 + penalty(energy.LatentPoint(gan, z)),
        z[:, None],
        leapfrogs=_LEAPFROGS,
        draws=1,
        warmup=steps - 1,
        seed=shared.seed_of(part, "prior"),
    )
    part.count_evaluations(int(chains.evaluations.sum()))
    with torch.no_grad():
        generated, refined = gan.decode(z), gan.decode(chains.last[:, 0])
        before, after = ratio(generated), ratio(refined)
    weights = sample.importance_weights(weight * before)

    truth = real_images(settings, part, settings.images, "test")
    problem, y = observed(part, truth, Case("inpainting", settings.m, settings.std))
    terms = [*posterior(gan, problem, y).terms, (1.0, penalty)]
    tilted = energy.Energy(gan, terms=terms)
    z0 = sample.initialise(
        tilted, "best", chains=settings.chains, budget=settings.search, seed=shared.seed_of(part, "start")
    )
    half = settings.posterior // 2 // _LEAPFROGS
    found = sample.hmc(
        tilted, z0, leapfrogs=_LEAPFROGS, draws=half, warmup=half, seed=shared.seed_of(part, "posterior")
    )
    part.count_evaluations(settings.images * settings.chains * settings.search + int(found.evaluations.sum()))
    estimate = found.estimate(gan)
    numbers = {
        "importance ess": weights.ess,
        "energy distance": torch.tensor(energy_distance(refined, real)),
        "energy distance, importance": torch.tensor(energy_distance(generated, real, weights.values)),
    }
    per_image = {
        "error": evaluate.mse(estimate, truth),
        "ssim": evaluate.ssim(estimate, truth),
        "rhat": torch.as_tensor(found.diagnostics().rhat.max(1)).clamp(max=1e6),
        "accept_rate": found.accept_rate.mean(1),
        "step": found.step,
    }
    return {}, {
        **{name: named(shared.numpy(value, 4)) for name, value in numbers.items()},
        "log ratio": named(shared.numpy(after, 3), draw=settings.draws),
        "refined step": named(shared.numpy(chains.step, 4), draw=settings.draws),
        **shared.by_image(per_image, 5),
        "refined": shared.pictures(refined[:8]),
        "estimate": shared.pictures(estimate[:8]),
    }
