"""An operator and a noise with data for each image, and the search for classes, for the tests of several folders."""

import importlib
import pkgutil

import torch

from companion import measure


def kinds(kind, package):
    """All subclasses, of every module of a package, imported or not."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return {each for below in kind.__subclasses__() for each in {below, *kinds(below, package)}}


class Masks(measure.base.LinearOperator):
    """A mask of its own for every image."""

    def __init__(self, masks):
        super().__init__(masks.shape[1:], masks.shape[1:])
        self.batch = len(masks)
        self.masks = masks

    def apply(self, x):
        return self.masks * x

    apply_adjoint = apply

    def select(self, index):
        return Masks(self.masks[index])


class PerImageNoise(measure.IndependentNoise):
    """A user's noise with a level for each image."""

    def __init__(self, std):
        self.std = std.double()

    def std_map(self, shape):
        return self.std.view(-1, *[1] * len(shape))

    def residual_log_prob(self, residual):
        std = self.std_map(residual.shape[1:]).to(residual)
        return torch.distributions.Normal(0, std, validate_args=False).log_prob(residual).flatten(1).sum(1)

    def select(self, index):
        return PerImageNoise(self.std[index])
