"""Priors: flows, their training and their checkpoints."""

from companion.priors.base import Prior
from companion.priors.checkpoint import load, names, save
from companion.priors.flow import Check, Flow
from companion.priors.gan import GAN
from companion.priors.glow import Glow
from companion.priors.memory import memory_saving
from companion.priors.objectives import Adversarial, Elbo, PointLikelihood, WeightNormLikelihood
from companion.priors.points import PointFlow
from companion.priors.realnvp import RealNVP
from companion.priors.recipes import recipe_names, train_recipe
from companion.priors.training import History, Likelihood, Settings, fit
from companion.priors.vae import VAE

MODELS: dict[str, type[Prior]] = {"Glow": Glow, "RealNVP": RealNVP, "PointFlow": PointFlow, "VAE": VAE, "GAN": GAN}

__all__ = [
    "GAN",
    "MODELS",
    "VAE",
    "Adversarial",
    "Check",
    "Elbo",
    "Flow",
    "Glow",
    "History",
    "Likelihood",
    "PointFlow",
    "PointLikelihood",
    "Prior",
    "RealNVP",
    "Settings",
    "WeightNormLikelihood",
    "fit",
    "load",
    "memory_saving",
    "names",
    "recipe_names",
    "save",
    "train_recipe",
]
