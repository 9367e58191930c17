"""What the experiments on dependent noise share: images, the Gaussian of their training set, noises by name."""

import torch
from torch import Tensor

from companion import measure
from companion._support import one_of
from companion.experiments import Part, problems, shared

# Whang et al. 2020, sec. 5.4.3, has decay 0.005 on images of 64 pixels: the same share of a smaller image is noisy
_RADIAL_DECAY, _RADIAL_SIDE = 0.005, 64
FLOOR = 0.01  # added to the training covariance, as a standard deviation: some border pixels are always black
NOISES = ("sinusoidal", "radial", "camera")


def images(part: Part, name: str, split: str, number: int, size: int) -> Tensor:
    """The first images of a split, or spread over it where neighbours are alike."""
    return shared.images(
        part, name, split, number, size, spread=(name, split) == ("photos", "validation") or name == "eurosat"
    )


def gaussian(name: str, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and mean of the Gaussian with the training images' mean and covariance, for `recover.gaussian_map`."""
    return problems.gaussian(name, size, device, FLOOR)


def noise(kind: str, level: float, size: int) -> measure.Noise:
    """A noise by name: "sinusoidal" and "radial" with that largest standard deviation, or the "camera" with that gain.

    ValueError for another name.
    """
    one_of("kind", kind, NOISES)
    if kind == "sinusoidal":
        return measure.SinusoidalNoise(level)
    if kind == "radial":
        return measure.RadialNoise(level, decay=_RADIAL_DECAY * (_RADIAL_SIDE / size) ** 2)
    return measure.PoissonGaussianNoise(gain=level, read=0.02)


def std_map(noise: measure.Noise, images: Tensor) -> Tensor:
    """Standard deviation of every pixel, [C, H, W]; of the camera's noise, at the images' mean brightness."""
    if isinstance(noise, measure.IndependentNoise):
        return noise.std_map(tuple(images.shape[1:])).to(images).expand(images.shape[1:])
    return pixel_std(noise, images.mean()).expand(images.shape[1:])


def pixel_std(noise: measure.Noise, exact: Tensor) -> Tensor:
    """Standard deviation of the camera's noise at every pixel of exact values, of their shape."""
    assert isinstance(noise, measure.PoissonGaussianNoise)
    return (noise.gain * exact.clamp(min=0) + noise.read**2).sqrt()
