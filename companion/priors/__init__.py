"""Priors: flows, their training and their checkpoints."""

from companion.priors.base import Prior
from companion.priors.checkpoint import load, names, save
from companion.priors.flow import Check, Flow
from companion.priors.glow import Glow
from companion.priors.recipes import recipe_names, train_recipe
from companion.priors.training import History, Likelihood, Settings, fit

MODELS: dict[str, type[Prior]] = {"Glow": Glow}

__all__ = [
    "MODELS",
    "Check",
    "Flow",
    "Glow",
    "History",
    "Likelihood",
    "Prior",
    "Settings",
    "fit",
    "load",
    "names",
    "recipe_names",
    "save",
    "train_recipe",
]
