"""The test score of a flow in full: bits per dimension of every held-out image, and how loose its bound is."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion import _support, data, priors
from companion.experiments.context import Context
from companion.experiments.registry import experiment


@dataclass(frozen=True)
class Settings:
    """Sizes of the score.

    Attributes:
        prior, data: checkpoint and the data set that it was trained on.
        images: test images, and as many training images.
        draws: dequantisations of one image for the tighter bound.
        tightened: test images for which that bound is computed.
    """

    prior: str
    data: str
    images: int
    draws: int
    tightened: int


@experiment(
    "hand.test-score",
    paper="Hand, lecture notes",
    shows="Likelihood of training and test data",
    profiles={
        "quick": Settings("glow-photos32", "photos", 16, 4, 4),
        "laptop": Settings("glow-mnist", "mnist", 10_000, 32, 100),
    },
)
def full_score(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Scores all test images and as many training images in bits per dimension, and tightens the bound for some."""
    flow = priors.load(settings.prior, context.device)
    arrays: dict[str, np.ndarray] = {}
    size = flow.shape[-1]
    for split in context.progress(("train", "test"), "splits"):

        def part(split: str = split) -> tuple[dict, dict]:
            x = data.load(settings.data, split, size=size)[: settings.images].to(context.device)
            draw = _support.generator(context.seed)
            with torch.no_grad():
                bits = torch.cat([flow.bits_per_dim(some, draw) for some in x.split(250)])
            context.count_evaluations(len(x))
            return {}, {"bits": bits.cpu().numpy()}

        arrays[split] = context.part(split, part).arrays["bits"]

    def tighter() -> tuple[dict, dict]:
        x = data.load(settings.data, "test", size=size)[: settings.tightened].to(context.device)
        context.count_evaluations(len(x) * settings.draws)
        return {}, {"tighter": tightened(flow, x, settings.draws, context.seed).cpu().numpy()}

    arrays |= context.part("tighter", tighter).arrays
    metrics = {
        f"mean bits {split}": round(float(arrays[split].astype(np.float64).mean()), 4) for split in ("train", "test")
    }
    metrics |= {f"images {split}": len(arrays[split]) for split in ("train", "test")}
    metrics["mean tighter"] = arrays["tighter"].astype(np.float64).mean(1).round(4).tolist()
    # train, test: [images]; tighter: [draws, images], the bound from the first 1, 2, ..., draws dequantisations
    return metrics, arrays


@torch.no_grad()
def tightened(flow: priors.Flow, x: Tensor, draws: int, seed: int) -> Tensor:
    """Bits per dimension of x bounded from the first k dequantisations, for k = 1, ..., `draws`; [draws, batch].

    The probability of an image is the mean density over its cell; the logarithm of a mean of k densities bounds it
    from below in expectation, the closer the larger k is (Burda et al. 2016, theorem 1, with uniform proposals).
    """
    assert flow.pixels is not None
    draw = _support.generator(seed)
    log_density = torch.stack([flow.log_prob(flow.pixels.dequantise(x, draw)) for _ in range(draws)])
    log_mean = log_density.logcumsumexp(0) - torch.arange(1, draws + 1).log().to(x)[:, None]
    return torch.stack([flow.pixels.bits_per_dim(row, flow.latent_dim) for row in log_mean])
