"""Bayesian inverse problems on random fields, and the training of MsIGN to their posteriors."""

from companion.bayes.divergence import Divergence, Weighted, jeffreys, weighted
from companion.bayes.modes import Laplace, laplace
from companion.bayes.problems import Barrier, Elliptic, FieldProblem, Synthetic, barrier
from companion.bayes.train import Stage, Training, amortised_svgd, train_msign

__all__ = [
    "Barrier",
    "Divergence",
    "Elliptic",
    "FieldProblem",
    "Laplace",
    "Stage",
    "Synthetic",
    "Training",
    "Weighted",
    "amortised_svgd",
    "barrier",
    "jeffreys",
    "laplace",
    "train_msign",
    "weighted",
]
