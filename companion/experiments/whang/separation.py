"""Two images in one: digits as noise on colour images, y = x / 2 + δ, with a flow for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from companion import data, evaluate, measure, recover
from companion.experiments import Context, Part, experiment, gather, named, problems, shared
from companion.experiments.whang import sets

HALF = 0.5  # of the image, in the measurements
EDGE = 2  # pixels of the border between 28 and 32


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    data: str = "photos"
    flow: str = "glow-photos32"
    digits: str = "mnist"  # whose images are the noise
    digit_flow: str = "glow-mnist-smooth"
    tau: float = 0.1  # standard deviation where there is no digit: what the digits' flow was smoothed by
    # what validation images choose from: β of the flows; multiples of the noise's root mean square for "bm3d" and "tv"
    weights: Mapping[str, tuple[float, ...]]
    closed: tuple[str, ...] = ("doubled", "wiener")  # twice the measurements; the filter with both covariances
    images: int = 24
    tuned_on: int = 6
    budget: int = 120  # evaluations for one image
    shown: int = 4

    @property
    def methods(self) -> list[str]:
        """Those without a weight, and those with one."""
        return [*self.closed, *self.weights]


_WEIGHTS: dict[str, tuple[float, ...]] = {
    "known channels": (0.05, 0.1, 0.2, 0.5, 1.0),
    "asim": (0.1, 0.5, 2.0),
    "bm3d": (0.3, 0.6, 1.0),
    "tv": (0.3, 0.6, 1.0, 1.5),
}
_LAPTOP = Settings(weights=_WEIGHTS)


@experiment(
    "whang.separation",
    paper="Whang et al. 2021",
    shows="Fig. 1, 6, 10a in kind",
    profiles={
        "quick": replace(
            _LAPTOP,
            digits="digits",
            weights={"known channels": (0.1,), "tv": (0.6,)},
            closed=("doubled",),
            images=1,
            tuned_on=1,
            budget=10,
            shown=1,
        ),
        "laptop": replace(_LAPTOP, data="eurosat", flow="glow-eurosat32", images=30),
        "paper": replace(_LAPTOP, data="photographs", images=72),
    },
    tolerances={"psnr": 0.05},
)
def separation(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Takes one digit off each colour channel of an image, with a flow of images and a flow of digits."""
    choices = context.map(_choose, settings.methods, "weights")
    chosen = [(name, choice.metrics["weight"]) for name, choice in zip(settings.methods, choices, strict=True)]
    arrays = gather(context.map(_solve, chosen, "searches"), method=settings.methods)
    truth, _, y = _problem(settings, context, "test", settings.images)
    shown = settings.shown
    pictures = {"truth": shared.pictures(truth[:shown]), "measured": shared.pictures(y[:shown])}
    return {"chosen": dict(chosen)}, {**arrays, **pictures}


def _problem(settings: Settings, part: Part, split: str, number: int) -> tuple[Tensor, measure.Problem, Tensor]:
    """Images, the problem with the learned noise, and measurements with real digits in the three channels."""
    truth = sets.images(part, settings.data, split, number, 32)
    digits = sets.images(part, settings.digits, split, 3 * len(truth), 28)
    noise = torch.nn.functional.pad(digits.view(len(truth), 3, 28, 28), [EDGE] * 4)
    learned = measure.FlowNoise(
        shared.prior(part, settings.digit_flow),
        (3, 32, 32),
        [[(channel, EDGE, EDGE) for channel in range(3)]],
        settings.tau,
    )
    return truth, measure.Problem(measure.Scaling((3, 32, 32), HALF), learned), HALF * truth + noise


@lru_cache(maxsize=1)
def _digits(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean, [1024], and covariance of digits in the larger frame."""
    factor, mean = sets.gaussian(name, 28, device)
    pad = torch.nn.functional.pad
    factor = pad(factor.T.view(-1, 28, 28), [EDGE] * 4).flatten(1).T
    return pad(mean[0], [EDGE] * 4).flatten(), factor @ factor.T


def wiener(y: Tensor, images: tuple[Tensor, Tensor], digits: tuple[Tensor, Tensor]) -> Tensor:
    """E[x | y] for y = x / 2 + δ, with x of a Gaussian's factor and mean, and δ of a mean and covariance, each channel.

    White noise of standard deviation FLOOR is added to δ, which is constant at the border.
    """
    (factor, centre), (mean, covariance) = images, digits
    channels = centre.shape[0]
    both = HALF**2 * factor @ factor.T + torch.block_diag(*[covariance] * channels)
    residual = y.double().flatten(1) - HALF * centre.flatten() - mean.repeat(channels)
    gain = torch.linalg.solve(both + sets.FLOOR**2 * torch.eye(len(both)).to(both), residual.T)
    return (centre.flatten() + HALF * (factor @ (factor.T @ gain)).T).view_as(y).to(y)


def _solver(
    settings: Settings, part: Part, problem: measure.Problem, y: Tensor, method: str
) -> Callable[[float], recover.Result]:
    """The method, as a function of its weight."""
    plain = y / HALF
    rms = float(data.load(settings.digits, split="train")[:1000].square().mean().sqrt()) / HALF
    if method in ("doubled", "wiener"):
        x = plain
        if method == "wiener":
            x = wiener(y, sets.gaussian(settings.data, 32, part.device), _digits(settings.digits, part.device))
        return lambda _: problems.closed_form(x)
    if method == "bm3d":
        return lambda weight: recover.bm3d(plain, weight * rms)
    identity = measure.Identity((3, 32, 32))
    if method == "tv":
        return lambda weight: recover.tv(identity, plain, weight * rms, max_iterations=1000)
    flow = shared.prior(part, settings.flow)
    train = data.load(settings.data, split="train", size=32)
    start = flow.encode(train[::10].mean(0, keepdim=True).to(y)).expand(len(y), -1)
    options: dict[str, Any] = {"max_evaluations": settings.budget}
    if method == "asim":
        return lambda weight: recover.flow_latent(
            flow, identity, plain, weight * rms**2, squared=True, z0=start, **options
        )
    return lambda weight: recover.flow_map(flow, problem, y, weight, start=start, **options)


def _choose(settings: Settings, part: Part, method: str) -> tuple[dict, dict]:
    """The weight of a method on validation images."""
    weights = settings.weights.get(method, (0.0,))
    if len(weights) == 1:
        return {"weight": weights[0]}, {}
    truth, problem, y = _problem(settings, part, "validation", settings.tuned_on)
    best, scores = problems.choose(part, weights, _solver(settings, part, problem, y, method), truth)
    return {"weight": weights[best]}, {"psnr": named(scores.round(3), weight=weights, image=len(truth))}


def _solve(settings: Settings, part: Part, item: tuple[str, float]) -> tuple[dict, dict]:
    method, weight = item
    truth, problem, y = _problem(settings, part, "test", settings.images)
    found = part.count(_solver(settings, part, problem, y, method)(weight))
    scores = {"psnr": evaluate.psnr(found.x, truth).float(), "evaluations": found.evaluations}
    return {}, shared.by_image(scores) | {"recovered": shared.pictures(found.x[: settings.shown])}
