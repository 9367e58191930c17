"""Learned invertible matrices for 1×1 convolutions: orthogonal, LU-decomposed, or unconstrained."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from companion import _support


class Matrix(nn.Module, ABC):
    """A learned invertible matrix."""

    @abstractmethod
    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """The matrix, its inverse, and log|det|."""


class Rotation(Matrix):
    """A learned rotation Q = (I + S)(I − S)⁻¹ with S = a − aᵀ (Cayley transform of a skew-symmetric matrix).

    Orthogonal for every value of its parameters and in every dtype: its inverse is its transpose, its log-determinant
    0.
    """

    def __init__(self, size: int, seed: int | torch.Generator) -> None:
        super().__init__()
        draw = torch.randn(size, size, generator=_support.generator(seed, "matrix"))
        self.skew = nn.Parameter(draw / size**0.5)  # eigenvalues of S of order 1: angles spread over the circle

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        skew = self.skew - self.skew.T
        eye = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
        rotation = torch.linalg.solve_ex(eye - skew, eye + skew)[0]  # I − S is never singular: nothing to check
        return rotation, rotation.T, skew.new_zeros(())


class DenseMatrix(Matrix):
    """An unconstrained invertible matrix that starts as a rotation (Kingma & Dhariwal 2018, eq. 9)."""

    def __init__(self, size: int, seed: int | torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(_random_rotation(size, seed))

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, torch.linalg.inv(self.weight), torch.linalg.slogdet(self.weight)[1]


class LUMatrix(Matrix):
    """W = P L (U + diag(± exp(s))), P fixed, with log-determinant Σ s (Kingma & Dhariwal 2018, eq. 10)."""

    permutation: Tensor
    sign: Tensor

    def __init__(self, size: int, seed: int | torch.Generator) -> None:
        super().__init__()
        permutation, lower, upper = torch.linalg.lu(_random_rotation(size, seed).double())
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", upper.diag().sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_diagonal = nn.Parameter(upper.diag().abs().log().float())

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        eye = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        lower = self.lower.tril(-1) + eye
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        inverse_lower = torch.linalg.solve_triangular(lower, self.permutation.T, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, inverse_lower, upper=True)
        return self.permutation @ lower @ upper, inverse, self.log_diagonal.sum()


def _random_rotation(size: int, seed: int | torch.Generator) -> Tensor:
    draw = torch.randn(size, size, generator=_support.generator(seed, "matrix"), dtype=torch.float64)
    return torch.linalg.qr(draw)[0].float()


MIXES: dict[str, Callable[..., Matrix]] = {"rotation": Rotation, "lu": LUMatrix, "dense": DenseMatrix}
