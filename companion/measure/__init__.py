"""Forward operators and noise: how an image becomes measurements, y given f(x)."""

from companion.measure import masks
from companion.measure.base import LinearOperator, Operator, check_adjoint
from companion.measure.elliptic import EllipticPDE
from companion.measure.flow_noise import FlowNoise
from companion.measure.linear import Blur, Downsample, Fourier, Gaussian, Identity, Mask, PerImage, Scaling
from companion.measure.noise import (
    AdditiveNoise,
    GaussianNoise,
    IndependentNoise,
    Noise,
    PoissonGaussianNoise,
    RadialNoise,
    SinusoidalNoise,
    WidenedNoise,
)
from companion.measure.nonlinear import Composition, LinearComposition, PhaseRetrieval, SaturatingCamera, SignOf
from companion.measure.problem import Problem
