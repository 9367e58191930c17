"""Are the samplers calibrated on the problems of parts 3 and 4? Ranks of truths that the priors make."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from companion import _support, bayes, energy, measure
from companion.bayes.problems import lattice_wave
from companion.experiments import Context, Part, experiment, gather, named, shared
from companion.experiments.ang.calibration import VISIBLE, Sizes, draw, quantities, share, within
from companion.experiments.ang.problems import prior_latents

DIGITS = ("stripes", "stripes, called white", "one bit", "no phase")  # of the VAE
FIELDS = ("wave", "elliptic")  # Gaussian random fields
METHODS = ("mala, metric", "hmc, metric", "smc", "laplace")
_OTHERS = ("hmc, learned", "pcn, metric", "svgd, metric", "psvgd")
MIRRORED = ("hmc, metric, mirrored", "laplace, mirrored")  # every second draw on the average is its mirror image


@dataclass(frozen=True, kw_only=True)
class Settings(Sizes):
    """Sizes of the test, and the problems' constants."""

    scale: float = 2.0  # of the stripes, on the whole picture
    bits: int = 100
    before: float = 0.5  # standard deviation of the noise before the sign, which flips one bit in six
    magnitudes: int = 25
    around: float = 0.1  # and after the square
    side: int  # of the fields
    digits: tuple[str, ...] = DIGITS
    fields: tuple[str, ...] = FIELDS
    methods: tuple[str, ...] = METHODS


_QUICK = Settings(
    problems=8,
    budget=90,
    search=20,
    draws=19,
    side=4,
    digits=("stripes, called white", "one bit"),
    fields=("wave",),
    methods=("hmc, metric", "laplace"),
)
_LAPTOP = Settings(problems=200, budget=900, draws=59, side=8)
_PAPER = Settings(problems=1000, budget=3000, draws=59, side=16)
_TOLERANCES = {"*rank": 0.5, "*coverage": 0.2, "*error": 0.2}


@experiment(
    "ang.calibration-problems",
    paper="Ang 2021",
    shows="what no source asks: calibration under dependent noise, one bit, magnitudes, and two fields",
    profiles={"quick": _QUICK, "laptop": _LAPTOP, "paper": _PAPER},
    tolerances=_TOLERANCES,
)
def calibration_problems(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Ranks digits of the VAE and random fields among their posteriors' draws."""
    mirrored = tuple(method for method in MIRRORED if method.removesuffix(", mirrored") in settings.methods)
    arrays: dict[str, Any] = {}
    for kind, problems, methods in (
        ("digit", settings.digits, settings.methods),
        ("field", settings.fields, settings.methods + mirrored),
    ):
        outcomes = context.map(_rank, [(problem, method) for problem in problems for method in methods], kind)
        found = gather(outcomes, case=problems, method=methods)
        arrays |= {f"{kind} {name}": values for name, values in found.items()}
    return {}, arrays


@experiment(
    "ang.calibration-problems-others",
    paper="Ang 2021",
    shows="the same for a learned metric and for Stein's particles",
    profiles={
        "quick": replace(_QUICK, budget=150, methods=_OTHERS),
        "laptop": replace(_LAPTOP, methods=_OTHERS),
        "paper": replace(_PAPER, methods=_OTHERS),
    },
    tolerances=_TOLERANCES,
)
def problems_others(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Ranks digits of the VAE and random fields among the draws of more samplers."""
    return calibration_problems(settings, context)


@dataclass(frozen=True)
class Bits(measure.Problem):
    """y = sign(A x + δ), from the problem of A x + δ: its likelihood is probit's."""

    def observe(self, x: Tensor, seed: int | torch.Generator = 0) -> Tensor:
        return super().observe(x, seed).sign()

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        return -energy.ProbitMisfit(measure.Problem(self.operator, self.noise), y)(x)

    def select(self, index: Any) -> "Bits":
        return Bits(self.operator.select(index), self.noise.select(index))


def posed(settings: Settings, part: Part, name: str) -> tuple[Any, measure.Problem, measure.Problem]:
    """A prior, the problem by which its images are measured, and the one that the sampler is told."""
    if name in FIELDS:
        fields = bayes.Synthetic(settings.side) if name == "wave" else bayes.Elliptic(settings.side)
        told = measure.Problem(fields.operator, measure.GaussianNoise(fields.gamma))
        return fields.field, told, told
    prior, seed = shared.prior(part, "vae-mnist"), shared.seed_of(part, "matrix", name)
    if name.startswith("stripes"):
        noise = measure.SinusoidalNoise(settings.scale)
        true = measure.Problem(measure.Identity(prior.shape), noise)
        white = measure.GaussianNoise(float(noise.std_map(prior.shape).square().mean().sqrt()))
        return prior, true, measure.Problem(true.operator, white) if name.endswith("white") else true
    m = settings.bits if name == "one bit" else settings.magnitudes
    matrix = measure.Gaussian(prior.shape, m, seed, domain="real")
    if name == "one bit":
        told = Bits(matrix, measure.GaussianNoise(settings.before))
    else:
        told = measure.Problem(measure.PhaseRetrieval(matrix), measure.GaussianNoise(settings.around))
    return prior, told, told


def _rank(settings: Settings, part: Part, item: tuple[str, str]) -> tuple[dict, dict]:
    """Ranks of each latent, of ‖z‖² and of the misfit; for fields of the critical coordinate, too, along the wave."""
    name, method = item
    prior, problem, told = posed(settings, part, name)
    measured = name.partition(",")[0]  # the same truths and measurements, whatever the sampler is told of the noise
    latents = prior_latents(part, prior, settings.problems, measured)
    with torch.no_grad():
        truth = prior.decode(latents)
    y = problem.observe(truth, shared.seed_of(part, "noise", measured))
    z = draw(settings, part, method.removesuffix(", mirrored"), prior, told, y)
    with torch.no_grad():
        x = prior.decode(z.flatten(0, 1)).view(len(z), *truth.shape)
        if method.endswith("mirrored"):
            x = mirrored(prior, x, shared.seed_of(part, "mirror", method))
            z = prior.encode(x.flatten(0, 1)).view_as(z)
    drawn, true = quantities(z, x, told, y), quantities(latents[None], truth[None], told, y)
    if name in FIELDS:
        wave = lattice_wave(settings.side).to(x)
        drawn, true = (torch.cat([q, (images @ wave)[..., None]], 2) for q, images in ((drawn, x), (true, truth[None])))
    seen = x.std(0) > (0 if name in FIELDS else VISIBLE)
    return {}, {
        "rank": named(shared.numpy((drawn < true).sum(0)), problem=settings.problems, quantity=true.shape[2]),
        "coverage": named(share(within(x, truth), seen), problem=settings.problems),
        "error": named(shared.numpy((x.mean(0) - truth).flatten(1).square().mean(1)), problem=settings.problems),
    }


def mirrored(field: Any, x: Tensor, seed: int) -> Tensor:
    """Fields [draw, problem, side²], each by a coin of its own its mirror image."""
    coins = torch.rand(x.shape[:2], generator=_support.generator(seed, "coins"), dtype=x.dtype) < 0.5
    return torch.where(coins[..., None], field.mirror(x.flatten(0, 1)).view_as(x), x)
