"""What the experiments share: images and priors, problems from named streams, scores on the way."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import _reads, data, evaluate, measure, priors, recover
from companion._support import generator
from companion.experiments.arrays import Named, named
from companion.experiments.parts import Part

NOISE_NORM = 0.1  # √E‖δ‖² of Asim et al. 2020, sec. 4.2


def images(part: Part, name: str, split: str, number: int, size: int | None = None, *, spread: bool = False) -> Tensor:
    """The first images of a split, at most `number`, [number, C, H, W], on the run's device.

    With `spread`, images at equal distances from the whole split: neighbours may be of one class or one photograph.
    """
    every = data.load(name, split=split, size=size)
    number = min(number, len(every))
    return (every[torch.arange(number) * len(every) // number] if spread else every[:number]).to(part.device)


def prior(part: Part, name: str) -> Any:
    """A stored prior on the run's device, loaded once a process: not for those who change it."""
    loaded, read = _prior(name, part.device)
    for path in read:
        _reads.note(path)
    return loaded


@lru_cache(maxsize=4)
def _prior(name: str, device: torch.device) -> tuple[Any, frozenset]:
    with _reads.recording() as read:
        loaded = priors.load(name, device)
    return loaded, frozenset(read)


def seed_of(part: Part, *stream: str | int) -> int:
    """A seed of its own for what `stream` names, as ("draw", 3): to be handed on unchanged, never added to."""
    return generator(part.seed, *stream).initial_seed()


def compressed(
    part: Part, truth: Tensor, m: int, draw: str | int = 0, norm: float = NOISE_NORM
) -> tuple[measure.Problem, Tensor]:
    """Gaussian measurements of images with √E‖δ‖² = `norm`: the problem, and y, [batch, m].

    Draws differ in matrix and noise. Choose on validation images with a draw of its own ("validation").
    """
    seed = seed_of(part, "draw", draw)
    problem = measure.Problem(measure.Gaussian(tuple(truth.shape[1:]), m, seed), measure.GaussianNoise.of_norm(norm, m))
    return problem, problem.observe(truth, seed)


def denoising(part: Part, truth: Tensor, std: float, draw: str | int = 0) -> tuple[measure.Problem, Tensor]:
    """Noisy images: the problem, and y, [batch, C, H, W]. The same noise, scaled, for every `std`."""
    problem = measure.Problem(measure.Identity(tuple(truth.shape[1:])), measure.GaussianNoise(std))
    return problem, problem.observe(truth, seed_of(part, "draw", draw))


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


def as_bytes(x: Tensor) -> np.ndarray:
    """Images, clipped to [0, 1], as 8-bit values."""
    return (x.detach().clamp(0, 1) * 255).round().byte().cpu().numpy()


def pictures(x: Tensor, **outer: int | Iterable[Any]) -> Named:
    """Images as 8-bit values with named axes: `outer` (picture, if not given, of a batch), channel, row, column."""
    *batch, channels, height, width = x.shape
    outer = outer or dict.fromkeys(["picture"] * len(batch), len(x))
    return named(as_bytes(x), **outer, channel=channels, row=height, column=width)


def numpy(x: Tensor, digits: int | None = None) -> np.ndarray:
    """Numbers for a result, rounded to so many digits."""
    values = x.detach().cpu().numpy()
    return values if digits is None else values.round(digits)
