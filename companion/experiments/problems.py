"""The inverse problems that the experiments share, from named streams, and how they solve, watch and score them."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import evaluate, measure, priors, recover
from companion.experiments.parts import Part
from companion.experiments.shared import data_set, seed_of

NOISE_NORM = 0.1  # √E‖δ‖² of Asim et al. 2020, sec. 4.2


def compressed(
    part: Part, truth: Tensor, m: int, draw: str | int = 0, norm: float = NOISE_NORM
) -> tuple[measure.Problem, Tensor]:
    """Gaussian measurements of images with √E‖δ‖² = `norm`: the problem, and y, [batch, m].

    Draws differ in matrix and noise. Choose on validation images with a draw of its own ("validation").
    """
    seed = seed_of(part, "draw", draw)
    problem = measure.Problem(_matrix(tuple(truth.shape[1:]), m, seed), measure.GaussianNoise.of_norm(norm, m))
    return problem, problem.observe(truth, seed)


@lru_cache(maxsize=2)  # of validation and of test images
def _matrix(shape: tuple[int, ...], m: int, seed: int) -> measure.Gaussian:
    """Kept, since many parts of a run measure with the same: drawing it can take longer than what they do with it."""
    return measure.Gaussian(shape, m, seed)


@lru_cache(maxsize=2)
def gaussian(
    name: str, size: int, device: torch.device, floor: float = 0.0, mirror: bool = False
) -> tuple[Tensor, Tensor]:
    """Factor and mean of the Gaussian of a data set's training images; see :func:`companion.priors.gaussian_of`.

    Computed once a process, since every part of a run asks for it: not for those who change it.
    """
    return priors.gaussian_of(data_set(name, "train", size)[:].to(device), floor, mirror)


def denoising(part: Part, truth: Tensor, std: float, draw: str | int = 0) -> tuple[measure.Problem, Tensor]:
    """Noisy images: the problem, and y, [batch, C, H, W]. The same noise, scaled, for every `std`."""
    problem = measure.Problem(measure.Identity(tuple(truth.shape[1:])), measure.GaussianNoise(std))
    return problem, problem.observe(truth, seed_of(part, "draw", draw))


def closed_form(x: Tensor, evaluations: int = 0) -> recover.Result:
    """Estimates that took no search and no energy, and so many evaluations each."""
    none = torch.zeros(len(x))
    return recover.Result.of_one_step(x, None, none, evaluations, none == 0, ["closed form"] * len(x))


def restarted(
    part: Part, prior: Any, operator: measure.Operator, y: Tensor, gamma: float = 0.0, *, restarts: int, budget: int
) -> recover.Result:
    """Bora et al. 2017, eq. 4, by a generator: all restarts together within the budget, each from its own start."""
    each, seed = budget // restarts, seed_of(part, "restarts")
    return recover.gan_latent(prior, operator, y, gamma, restarts=restarts, seed=seed, max_evaluations=each)


def watch_psnr(truth: Tensor) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """For a solver's `watch`: the PSNR of every iterate, as "psnr" in its trace."""
    return {"psnr": lambda x, z: evaluate.psnr(torch.nan_to_num(x), truth)}


def choose(
    part: Part,
    options: Sequence[Any],
    solve: Callable[[Any], recover.Result],
    truth: Tensor,
    score: Callable[[Tensor, Tensor], Tensor] = evaluate.psnr,
) -> tuple[int, np.ndarray]:
    """Index of the option with the best mean score on validation images, and all scores, [options, images].

    A single option is not tried, and its scores are NaN.
    """
    if len(options) == 1:
        return 0, np.full((1, len(truth)), np.nan)
    scores = np.stack([score(part.count(solve(option)).x, truth).cpu().numpy() for option in options])
    return int(scores.mean(1).argmax()), scores
