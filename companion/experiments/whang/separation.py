"""Two images in one: digits as noise on colour images, y = x / 2 + δ, with a flow for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from companion import _support, evaluate, measure, recover
from companion.experiments import Context, Part, experiment, gather, named, problems, shared
from companion.experiments.whang import sets

HALF = 0.5  # of the image, in the measurements
EDGE = 2  # pixels of the border between 28 and 32
# a digit on every colour channel, or a single one on a channel that no method is told
LAYOUTS = ("every channel", "unknown channel")
# twice the measurements; the filter with both covariances; for an unknown channel, three filters by their evidence
CLOSED = ("doubled", "wiener", "wiener, mixture")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the comparison."""

    data: str
    flow: str
    gaussian: str = ""  # checkpoint of the Gaussian of the images; "" for one fitted to the training images
    digits: str = "mnist"  # whose images are the noise
    # by method: checkpoint of the digits' flow, and the noise of its training, which is τ where there is no digit
    digit_flows: Mapping[str, tuple[str, float]]
    # what validation images choose from: β of the flows; γ of ‖z‖² for "asim", in units of the noise's mean square;
    # multiples of its root for "bm3d" and "tv"
    weights: Mapping[str, tuple[float, ...]]
    closed: tuple[str, ...] = CLOSED
    layouts: tuple[str, ...] = LAYOUTS
    images: int
    tuned_on: int = 6
    budget: int = 120  # evaluations for one image
    shown: int = 4

    @property
    def methods(self) -> list[str]:
        """Those without a weight, and those with one."""
        return [*self.closed, *self.weights]


_FLOWS = {"map": ("glow-mnist-smooth05", 0.05), "map, smoother": ("glow-mnist-smooth", 0.1)}
_BETAS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_WEIGHTS: dict[str, tuple[float, ...]] = {
    "map": _BETAS,
    "map, smoother": _BETAS,
    "asim": (0.0, 0.02, 0.1, 0.5),
    "bm3d": (0.1, 0.3, 0.6),
    "tv": (0.03, 0.1, 0.3, 0.6),
}
_PHOTOGRAPHS = Settings(
    data="photographs",
    flow="glow-photos32",
    gaussian="gaussian-photos32",
    digit_flows=_FLOWS,
    weights=_WEIGHTS,
    images=24,  # one crop of each photograph
)
_TILES = replace(_PHOTOGRAPHS, data="eurosat", flow="glow-eurosat32", gaussian="", images=30)


def _quick(settings: Settings) -> Settings:
    few: dict[str, Any] = {"images": 1, "tuned_on": 1, "budget": 6, "shown": 1}
    return replace(
        settings,
        data="photos",
        digits="digits",
        gaussian="gaussian-photos32",
        weights={"map": (0.02, 0.1), "tv": (0.6,)},
        **few,
    )


def _compare(settings: Settings, context: Context) -> tuple[dict, dict]:
    """The comparison, for each layout."""
    grid = [(layout, method) for layout in settings.layouts for method in settings.methods]
    weights = [choice.metrics["weight"] for choice in context.map(_choose, grid, "weights")]
    items = [(*point, weight) for point, weight in zip(grid, weights, strict=True)]
    arrays = gather(context.map(_solve, items, "searches"), layout=settings.layouts, method=settings.methods)
    seen = [_problem(settings, context, layout, "test", settings.images) for layout in settings.layouts]
    measured = torch.stack([y[: settings.shown] for _, y in seen])
    return {"chosen": {f"{layout}: {method}": weight for layout, method, weight in items}}, arrays | {
        "truth": shared.pictures(seen[0][0][: settings.shown]),
        "measured": shared.pictures(measured, layout=settings.layouts, picture=measured.shape[1]),
    }


@experiment(
    "whang.separation",
    paper="Whang et al. 2021",
    shows="Fig. 1, 6, 10a in kind",
    profiles={
        "quick": replace(_quick(_PHOTOGRAPHS), layouts=LAYOUTS[1:]),
        "laptop": _PHOTOGRAPHS,
        "paper": replace(_PHOTOGRAPHS, images=72, tuned_on=24, budget=300),
    },
    tolerances={"psnr": 0.05},
)
def separation(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Takes digits off the colour channels of photographs, with a flow of photographs and a flow of digits."""
    return _compare(settings, context)


@experiment(
    "whang.separation-eurosat",
    paper="Whang et al. 2021",
    shows="Fig. 1, 6, 10a in kind, on images of one class",
    profiles={"quick": replace(_quick(_TILES), layouts=LAYOUTS[:1]), "laptop": _TILES},
    tolerances={"psnr": 0.05},
)
def separation_eurosat(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Takes digits off the colour channels of satellite tiles, with a flow of tiles and a flow of digits."""
    return _compare(settings, context)


def _problem(settings: Settings, part: Part, layout: str, split: str, number: int) -> tuple[Tensor, Tensor]:
    """Images, and measurements with real digits."""
    truth = sets.images(part, settings.data, split, number, 32)
    digits = sets.images(part, settings.digits, split, 3 * len(truth), 28).view(-1, 3, 28, 28)
    written = torch.ones(len(truth), 3).to(truth)
    if layout != "every channel":
        source = _support.generator(part.seed, "channel", split)
        written = torch.eye(3).to(truth)[torch.randint(3, (len(truth),), generator=source)]
    pages = torch.nn.functional.pad(written[:, :, None, None] * digits, [EDGE] * 4)
    return truth, HALF * truth + pages


def _model(settings: Settings, part: Part, layout: str, method: str) -> measure.Problem:
    """Half of the image, and the noise with the digits' density: in all channels, or in one of three."""
    name, tau = settings.digit_flows[method]
    places = [(channel, EDGE, EDGE) for channel in range(3)]
    placements = [places] if layout == "every channel" else [[place] for place in places]
    noise = measure.FlowNoise(shared.prior(part, name), (3, 32, 32), placements, tau)
    return measure.Problem(measure.Scaling((3, 32, 32), HALF), noise)


def writing(mean: Tensor, covariance: Tensor, layout: str = "every channel") -> tuple[Tensor, Tensor]:
    """Mean, [3 n], and covariance, [3 n, 3 n], of digits on three channels, from those of one page, [n] and [n, n].

    On an unknown channel a page is there with probability 1/3, and never on two channels.
    """
    if layout == "every channel":
        return mean.repeat(3), torch.block_diag(*[covariance] * 3)
    outer = torch.outer(mean, mean)
    return mean.repeat(3) / 3, torch.block_diag(*[(covariance + outer) / 3] * 3) - outer.repeat(3, 3) / 9


def on_one_channel(mean: Tensor, covariance: Tensor, channel: int) -> tuple[Tensor, Tensor]:
    """Mean, [3 n], and covariance, [3 n, 3 n], of a page that is on this channel, and nothing on the others."""
    there = torch.eye(3).to(mean)[channel]
    return torch.kron(there, mean), torch.kron(torch.diag(there), covariance)


def wiener(y: Tensor, images: tuple[Tensor, Tensor], noise: tuple[Tensor, Tensor]) -> Tensor:
    """The best linear estimate of x for y = x / 2 + δ: x of a factor, [n, k], and mean, δ of a mean and covariance.

    White noise of standard deviation FLOOR is added to δ, which is constant at the border.
    """
    return by_evidence(y, images, [noise])


def by_evidence(y: Tensor, images: tuple[Tensor, Tensor], noises: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """E[x | y] for y = x / 2 + δ, where δ is one of several normal noises, each as likely as the others beforehand.

    It is the mean of their Wiener filters, weighted by the evidence p(y | noise).
    """
    (factor, centre), estimates, evidence = images, [], []
    of_images = HALF**2 * factor @ factor.T
    of_images.diagonal().add_(sets.FLOOR**2)
    for mean, covariance in noises:
        root = torch.linalg.cholesky(of_images + covariance)
        residual = (y.double().flatten(1) - HALF * centre.flatten() - mean).T
        gain = torch.cholesky_solve(residual, root)
        estimates.append(centre.flatten() + HALF * (factor @ (factor.T @ gain)).T)
        evidence.append(-0.5 * (residual * gain).sum(0) - root.diagonal().log().sum())
    weights = torch.stack(evidence).softmax(0)
    return (weights[..., None] * torch.stack(estimates)).sum(0).view_as(y).to(y)


def _page(settings: Settings, part: Part) -> tuple[Tensor, Tensor]:
    """Mean, [1024], and covariance of training digits in the larger frame."""
    factor, mean = sets.gaussian(settings.digits, 28, part.device)
    pages = torch.nn.functional.pad(factor.T.view(-1, 28, 28), [EDGE] * 4).flatten(1).T
    return torch.nn.functional.pad(mean[0], [EDGE] * 4).flatten(), pages @ pages.T


def _solver(settings: Settings, part: Part, layout: str, y: Tensor, method: str) -> Callable[[float], recover.Result]:
    """The method, as a function of its weight; every search begins at the better Wiener estimate."""
    plain = y / HALF
    if method == "doubled":
        return lambda _: problems.closed_form(plain)
    page = _page(settings, part)
    mean, covariance = writing(*page, layout)
    rms = float((covariance.trace() + mean.square().sum()) / len(mean)) ** 0.5 / HALF
    if method == "bm3d":
        return lambda weight: recover.bm3d(plain, weight * rms)
    identity = measure.Identity((3, 32, 32))
    if method == "tv":
        return lambda weight: recover.tv(identity, plain, weight * rms, max_iterations=1000)
    given = settings.gaussian
    known = shared.stored_gaussian(part, given) if given else sets.gaussian(settings.data, 32, part.device)
    if method == "wiener":
        return lambda _: problems.closed_form(wiener(y, known, (mean, covariance)))
    channels = [on_one_channel(*page, channel) for channel in range(3)]
    filtered = by_evidence(y, known, [(mean, covariance)] if layout == "every channel" else channels)
    if method == "wiener, mixture":
        return lambda _: problems.closed_form(filtered)
    flow = shared.prior(part, settings.flow)
    start, budget = flow.encode(filtered), settings.budget
    if method == "asim":
        return lambda weight: recover.flow_latent(
            flow, identity, plain, weight * rms**2, squared=True, z0=start, max_evaluations=budget
        )
    problem = _model(settings, part, layout, method)
    return lambda weight: recover.flow_map(flow, problem, y, weight, start=start, max_evaluations=budget)


def _choose(settings: Settings, part: Part, item: tuple[str, str]) -> tuple[dict, dict]:
    """The weight of a method on validation images."""
    layout, method = item
    weights = settings.weights.get(method, (0.0,))
    if len(weights) == 1:
        return {"weight": weights[0]}, {}
    truth, y = _problem(settings, part, layout, "validation", settings.tuned_on)
    solve = _solver(settings, part, layout, y, method)
    best, scores = problems.choose(part, weights, solve, truth)
    return {"weight": weights[best]}, {"psnr": named(scores.round(3), weight=weights, image=len(truth))}


def _solve(settings: Settings, part: Part, item: tuple[str, str, float]) -> tuple[dict, dict]:
    layout, method, weight = item
    truth, y = _problem(settings, part, layout, "test", settings.images)
    found = part.count(_solver(settings, part, layout, y, method)(weight))
    scores = {"psnr": evaluate.psnr(found.x, truth).float(), "evaluations": found.evaluations}
    return {}, shared.by_image(scores) | {"recovered": shared.pictures(found.x[: settings.shown])}
