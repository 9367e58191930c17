"""Where a search begins: the initialisations of Asim et al. 2020, sec. 3.2 and appendix C."""

import torch
from torch import Tensor

from companion import _support
from companion.energy import Generator
from companion.measure.base import LinearOperator
from companion.recover.linear import pseudo_inverse

STARTS = ("zero", "normal", "sphere")


def start(
    prior: Generator,
    y: Tensor,
    how: str = "zero",
    scale: float = 1.0,
    seed: int | torch.Generator = 0,
    restart: int = 0,
) -> Tensor:
    """Initial latents for the measurements y, [batch, ...]: [batch, n], in the dtype and on the device of y.

    Parameters
    ----------
    how
        "zero"; "normal": z0 ~ N(0, scale² I); "sphere": a random direction with ‖z0‖ = scale.
    seed, restart
        Of the draws, made image by image: the first images' starts do not depend on how many follow. Each `restart` has
        a stream of its own.

    ValueError for another `how`, a scale < 0, and a y that is not finite or holds whole numbers.

    To start from an image (a Lasso solution, a zero-filled image, one from :func:`null_space_neighbour`), encode it
    with ``flow.encode``.
    """
    _support.finite("y", y)
    _support.one_of("how", how, STARTS)
    scale = _support.positive("scale", scale, zero=True)
    if how == "zero":
        return y.new_zeros(len(y), prior.latent_dim)
    source = _support.generator(seed, "start", restart)
    draws = torch.stack(
        [torch.randn(prior.latent_dim, generator=source, dtype=torch.float64, device="cpu") for _ in range(len(y))]
    )
    if how == "sphere":
        draws = draws / torch.linalg.vector_norm(draws, dim=1, keepdim=True)
    return (scale * draws).to(y)


def null_space_neighbour(operator: LinearOperator, x: Tensor, norm: float, seed: int | torch.Generator = 0) -> Tensor:
    """Images that measure the same as x, [batch, C, H, W], at distance `norm` from it in a random direction.

    The direction is v − A⁺A v for v ~ N(0, I), by conjugate gradients. ValueError where A has no null space.
    """
    _support.finite("x", _support.batch_of("x", x, operator.shape))
    norm = _support.positive("norm", norm)
    source = _support.generator(seed, "neighbour")
    random = torch.stack(
        [torch.randn(operator.shape, generator=source, dtype=torch.float64, device="cpu") for _ in x]
    ).to(x)
    direction = random - pseudo_inverse(operator, operator(random)).x
    length = torch.linalg.vector_norm(direction.flatten(1), dim=1)
    if (length < 1e-3 * torch.linalg.vector_norm(random.flatten(1), dim=1)).any():
        raise ValueError("operator: got one without a null space; allowed: fewer independent measurements than pixels")
    return x + direction * (norm / length).view(-1, *[1] * len(operator.shape))
