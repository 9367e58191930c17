"""Forward operators and noise: how an image becomes measurements, y given f(x)."""

from companion.measure import masks
from companion.measure.base import LinearOperator, Operator, check_adjoint
from companion.measure.elliptic import EllipticPDE
from companion.measure.linear import Blur, Downsample, Gaussian, Identity, Mask, PerImage
from companion.measure.noise import (
    AdditiveNoise,
    GaussianNoise,
    IndependentNoise,
    Noise,
    PoissonGaussianNoise,
    RadialNoise,
    SinusoidalNoise,
)
from companion.measure.problem import Problem
from companion.measure.sign import SignOf

__all__ = [
    "AdditiveNoise",
    "Blur",
    "Downsample",
    "EllipticPDE",
    "Gaussian",
    "GaussianNoise",
    "Identity",
    "IndependentNoise",
    "LinearOperator",
    "Mask",
    "Noise",
    "Operator",
    "PerImage",
    "PoissonGaussianNoise",
    "Problem",
    "RadialNoise",
    "SignOf",
    "SinusoidalNoise",
    "check_adjoint",
    "masks",
]
