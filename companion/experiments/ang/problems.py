"""What the experiments share: digits to recover, their measurements, and the energy of the posterior."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion import _support, energy, measure
from companion.experiments import Part, problems, shared


@dataclass(frozen=True)
class Case:
    """A measurement: "inpainting" of m random pixels, "compressed" by m Gaussian rows, or "denoising" of all pixels."""

    kind: str
    m: int  # ignored by denoising
    std: float  # of the noise on each measurement

    def __str__(self) -> str:
        """The label of the case in the arrays."""
        size = "" if self.kind == "denoising" else f" {self.m}"
        return f"{self.kind}{size}, std {self.std:g}"


def cases(settings: Any) -> list[Case]:
    """The settings' cases, which they hold as tuples (kind, m, std)."""
    return [Case(kind, int(m), float(std)) for kind, m, std in settings.cases]


def truths(part: Part, prior: Any, name: str, number: int, split: str = "test") -> Tensor:
    """Images to recover, [number, *shape]: draws of the "prior" itself, embedded "digits", or those of a data set."""
    if name == "prior":
        with torch.no_grad():
            return prior.decode(prior_latents(part, prior, number, split)).clamp(0, 1)
    return shared.images(part, name, split, number, prior.shape[-1])


def prior_latents(part: Part, prior: Any, number: int, split: str = "test") -> Tensor:
    """The latents of the truths from the "prior", [number, n]; the first ones do not depend on how many follow."""
    shape = (prior.latent_dim,)
    return torch.stack([_support.normal(shape, part.seed, prior.like, "truth", split, k) for k in range(number)])


def observed(part: Part, truth: Tensor, case: Case, draw: str | int = 0) -> tuple[measure.Problem, Tensor]:
    """The problem and y. Each image has pixels of its own; all have one Gaussian matrix."""
    shape = tuple(truth.shape[1:])
    if case.kind == "denoising":
        return problems.denoising(part, truth, case.std, draw)
    if case.kind == "compressed":
        return problems.compressed(part, truth, case.m, draw, norm=case.std * case.m**0.5)
    missing, images = 1 - case.m / truth[0].numel(), range(len(truth))
    masks = [
        measure.masks.random_pixels(shape, missing, _support.generator(part.seed, "mask", draw, k)) for k in images
    ]
    problem = measure.Problem(measure.Mask(torch.stack(masks)), measure.GaussianNoise(case.std))
    return problem, problem.observe(truth, shared.seed_of(part, "draw", draw))


def posterior(prior: Any, problem: measure.Problem, y: Tensor) -> energy.Energy:
    """−log p(z | y) but for a constant: −log p(y | G(z)) + ‖z‖²/2."""
    return energy.Energy(prior, energy.NoiseMisfit(problem, y), energy.LatentNorm(0.5, squared=True))
