"""Forward operators and noise: how an image becomes measurements, y = f(x) + δ."""

from companion.measure import masks
from companion.measure.base import LinearOperator, Operator
from companion.measure.linear import Blur, Downsample, Gaussian, Identity, Mask
from companion.measure.noise import GaussianNoise, IndependentNoise, Noise, RadialNoise, SinusoidalNoise
from companion.measure.problem import Problem
from companion.measure.sign import SignOf

__all__ = [
    "Blur",
    "Downsample",
    "Gaussian",
    "GaussianNoise",
    "Identity",
    "IndependentNoise",
    "LinearOperator",
    "Mask",
    "Noise",
    "Operator",
    "Problem",
    "RadialNoise",
    "SignOf",
    "SinusoidalNoise",
    "masks",
]
