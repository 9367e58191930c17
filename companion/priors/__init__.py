"""Priors: generators of images and densities on them, and their checkpoints.

Every module of this folder is imported here, so that a model in a file of its own is public, and known to `load`,
without another edit.
"""

from importlib import import_module
from pkgutil import iter_modules

from companion.priors.base import MODELS, Prior
from companion.priors.checkpoint import load, names, register, save
from companion.priors.conditioning import GaussianConditioning, HaarConditioning
from companion.priors.fields import GaussianField
from companion.priors.flow import Check, Flow
from companion.priors.gan import GAN
from companion.priors.glow import Glow, resized
from companion.priors.linear import Linear, gaussian_of
from companion.priors.memory import memory_saving
from companion.priors.points import PointFlow
from companion.priors.realnvp import RealNVP
from companion.priors.vae import VAE

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
globals().update(MODELS)
