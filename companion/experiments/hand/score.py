"""The test score of a flow in full: bits per dimension of every held-out image, and how loose its bound is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from companion import _support, priors
from companion.experiments import Context, Part, experiment, gather, named, shared

SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the score."""

    prior: str = "glow-mnist"
    data: str = "mnist"
    images: int = 10_000  # test images, and as many training images
    draws: int = 32  # dequantisations of one image for the tighter bound
    tightened: int = 100  # test images for which that bound is computed


@experiment(
    "hand.test-score",
    paper="Hand, lecture notes",
    shows="Likelihood of training and test data",
    profiles={
        "quick": Settings(prior="glow-photos32", data="photos", images=16, draws=4, tightened=4),
        "laptop": Settings(),
    },
)
def full_score(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Scores all test images and as many training images in bits per dimension, and tightens the bound for some."""
    arrays = gather(context.map(_score, SPLITS, "splits"), split=SPLITS)
    (tighter,) = context.map(_tighten, ["test"], "bounds")
    means = zip(SPLITS, arrays["bits"].values.mean(1), strict=True)
    return {f"mean bits {split}": round(float(mean), 4) for split, mean in means}, arrays | tighter.named


@torch.no_grad()
def _score(settings: Settings, part: Part, split: str) -> tuple[dict, dict]:
    flow = shared.prior(part, settings.prior)
    x = shared.images(part, settings.data, split, settings.images, flow.shape[-1])
    draw = _support.generator(part.seed, "dequantisation", split)
    part.count_evaluations(len(x))
    bits = torch.cat([flow.bits_per_dim(some, draw) for some in x.split(250)])
    return {}, {"bits": named(bits.double().cpu().numpy(), image=len(x))}


def _tighten(settings: Settings, part: Part, split: str) -> tuple[dict, dict]:
    flow = shared.prior(part, settings.prior)
    x = shared.images(part, settings.data, split, settings.tightened, flow.shape[-1])
    part.count_evaluations(len(x) * settings.draws)
    bits = tightened(flow, x, settings.draws, shared.seed_of(part, "bounds")).double().cpu().numpy()
    return {}, {"tighter": named(bits, draws=range(1, settings.draws + 1), image=len(x))}


@torch.no_grad()
def tightened(flow: priors.Flow, x: Tensor, draws: int, seed: int) -> Tensor:
    """Bits per dimension of x bounded from the first k dequantisations, for k = 1, ..., `draws`; [draws, batch].

    The probability of an image is the mean density over its cell; the logarithm of a mean of k densities bounds it
    from below in expectation, the closer the larger k is (Burda et al. 2016, theorem 1, with uniform proposals).
    """
    assert flow.pixels is not None
    draw = _support.generator(seed, "dequantisation")
    log_density = torch.stack([flow.log_prob(flow.pixels.dequantise(x, draw)) for _ in range(draws)])
    log_mean = log_density.logcumsumexp(0) - torch.arange(1, draws + 1).log().to(x)[:, None]
    return torch.stack([flow.pixels.bits_per_dim(row, flow.latent_dim) for row in log_mean])
