"""Training: what a prior minimises, the loop that does it, and the recipes of the stored checkpoints."""

from companion.training.criteria import (
    Adversarial,
    Criterion,
    DenoisingScoreMatching,
    Elbo,
    Likelihood,
    PointLikelihood,
    SmoothedLikelihood,
    WeightNormLikelihood,
)
from companion.training.loop import fit
from companion.training.recipes import PROFILES, quality, recipe_names, train_recipe
from companion.training.schedule import LearningCurve, Schedule
from companion.training.state import averaged
