"""Whang et al. 2021, theorem 4.1: how far noise can move a mode, on a Gaussian and about modes of a trained flow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from companion import _support, measure, recover
from companion.experiments import Context, Part, experiment, gather, named
from companion.experiments.whang import sets
from companion.priors import load


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the test."""

    flow: str = "glow-mnist-smooth"
    data: str = "mnist"
    images: int = 6  # near each of which a mode is looked for
    descent: int = 400  # evaluations for that
    stds: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)  # of the noise, and σ of the misfit
    budget: int = 200  # evaluations for a MAP estimate from the noisy image
    steps: int = 60  # of Lanczos


@experiment(
    "whang.theorems",
    paper="Whang et al. 2021",
    shows="Theorem 4.1",
    profiles={
        "quick": Settings(data="digits", images=1, descent=20, stds=(0.05, 0.2), budget=15, steps=6),
        "laptop": Settings(),
    },
    tolerances={"*": 0.1},
)
def theorems(settings: Settings, context: Context) -> tuple[dict, dict]:
    """Adds noise δ to modes x* and compares ‖x̂ − x*‖ of the MAP estimate with ‖δ‖ / (1 + μσ²).

    Arrays by prior ("gaussian", "flow"), std and image: "error", "bound", "noise" (‖δ‖), "arrived" (whether the search,
    which begins at the noisy image, converged); and "curvature", μ, the least eigenvalue of the Hessian of −log p at
    x*, by prior and image; "gradient", that of −log p at x*, as a share of ‖x*‖.
    """
    items = [(prior, image) for prior in ("gaussian", "flow") for image in range(settings.images)]
    found = context.map(_test, items, "modes")
    return {}, gather(found, prior=("gaussian", "flow"), image=settings.images)


def _test(settings: Settings, part: Part, item: tuple[str, int]) -> tuple[dict, dict]:
    kind, image = item
    truth = sets.images(part, settings.data, "test", settings.images, 28)[image : image + 1].double()
    if kind == "gaussian":
        factor, mean = sets.gaussian(settings.data, 28, part.device)
        mode, curvature, gradient = mean[None], float(factor.square().sum(0).max()) ** -1, 0.0
    else:
        flow = load(settings.flow, part.device, torch.float64)
        mode = part.count(recover.minimise(lambda x: -flow.log_prob(x), truth, max_evaluations=settings.descent)).x
        gradient = float(_gradient(flow, mode).norm() / mode.norm())
        curvature = least_curvature(flow, mode, settings.steps, part)
    errors, bounds, sizes, arrived = [], [], [], []
    for std in settings.stds:
        delta = std * _support.normal(tuple(mode.shape), part.seed, mode, "noise", image)
        if kind == "gaussian":
            found = recover.gaussian_map(measure.Identity(tuple(mode.shape[1:])), mode + delta, factor, mean, std)
        else:
            problem = measure.Problem(measure.Identity(flow.shape), measure.GaussianNoise(std))
            y = mode + delta
            # from y, as the theorem has it: a search from x* that does not arrive would err too little
            z0 = flow.encode(y)
            found = part.count(recover.flow_map(flow, problem, y, start=z0, max_evaluations=settings.budget))
        errors.append(float((found.x - mode).norm()))
        arrived.append(bool(found.converged[0]))
        sizes.append(float(delta.norm()))
        bounds.append(sizes[-1] / (1 + max(curvature, 0.0) * std**2))
    by = {"std": settings.stds}
    return {}, {
        "error": named(np.array(errors), **by),
        "bound": named(np.array(bounds), **by),
        "noise": named(np.array(sizes), **by),
        "arrived": named(np.array(arrived, dtype=int), **by),
        "curvature": named(curvature),
        "gradient": named(gradient),
    }


def _gradient(flow: Any, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(-flow.log_prob(x).sum(), x)[0]


def least_curvature(flow: Any, x: Tensor, steps: int, part: Part) -> float:
    """Least eigenvalue of the Hessian of −log p at one image, by Lanczos on products with vectors.

    From above: with few steps the value lies between the least eigenvalue and the next ones.
    """
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(-flow.log_prob(leaf).sum(), leaf, create_graph=True)

    def product(vector: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(np.asarray(vector)).to(leaf).view_as(leaf)
        part.count_evaluations(1)
        return torch.autograd.grad(gradient, leaf, direction, retain_graph=True)[0].flatten().cpu().numpy()

    start = _support.normal((leaf.numel(),), 0, leaf.detach(), "lanczos").cpu().numpy()
    return float(ritz_values(product, start, steps).min())


def ritz_values(product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, steps: int) -> np.ndarray:
    """Ritz values of a symmetric matrix after so many steps, each new vector made orthogonal to all before."""
    basis, diagonal, beside = [start / np.linalg.norm(start)], [], []
    for _ in range(steps):
        pushed = product(basis[-1])
        diagonal.append(float(pushed @ basis[-1]))
        for vector in basis:
            pushed = pushed - (pushed @ vector) * vector
        beside.append(float(np.linalg.norm(pushed)))
        if beside[-1] < 1e-12:
            break
        basis.append(pushed / beside[-1])
    return eigh_tridiagonal(diagonal, beside[: len(diagonal) - 1], eigvals_only=True)
