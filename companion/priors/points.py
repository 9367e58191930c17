"""A RealNVP for points: densities in the plane, where everything can be drawn and checked."""

from companion import _support
from companion.priors.bijections import ActNorm, Bijection, Chain, Coupling
from companion.priors.checkerboard import swapped_halves
from companion.priors.flow import Flow
from companion.priors.networks import DenseConditioner


class PointFlow(Flow):
    """RealNVP on R^n with fully connected conditioners (Dinh et al. 2017, sec. 3.2-3.3); by default on the plane.

    Parameters
    ----------
    couplings, coupling
        Number of couplings, each but the last followed by an exchange of the coordinates; "affine" or "additive".
    width, seed
        Hidden units of the conditioners, and seed of their initial weights.
    dimension
        n >= 2, the number of coordinates; points and latents are [batch, n].

    Scale and shift of each coordinate (an ActNorm, which ``initialise`` may set from data) stand before each coupling.
    """

    def __init__(
        self, couplings: int = 8, width: int = 64, dimension: int = 2, coupling: str = "affine", seed: int = 0
    ) -> None:
        _support.count("couplings", couplings)
        _support.count("width", width)
        _support.count("dimension", dimension, least=2)
        moved = dimension - dimension // 2
        outputs = 2 * moved if coupling == "affine" else moved
        parts: list[Bijection] = []
        for i in range(couplings):
            network = DenseConditioner(dimension // 2, outputs, width, _support.generator(seed, "weights", i))
            parts += [ActNorm(dimension), Coupling(network, coupling), swapped_halves(dimension)]
        super().__init__((dimension,), Chain(parts[:-1]), pixels=None)
