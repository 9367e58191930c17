"""Bayesian inverse problems on random fields, and the training of MsIGN to their posteriors."""

from companion.bayes.divergence import Divergence, Weighted, jeffreys, weighted
from companion.bayes.laplace import Laplace, laplace
from companion.bayes.problems import Barrier, Elliptic, FieldProblem, Synthetic, barrier
from companion.bayes.train import Settings, Stage, amortised_svgd, train_msign

__all__ = [
    "Barrier",
    "Divergence",
    "Elliptic",
    "FieldProblem",
    "Laplace",
    "Settings",
    "Stage",
    "Synthetic",
    "Weighted",
    "amortised_svgd",
    "barrier",
    "jeffreys",
    "laplace",
    "train_msign",
    "weighted",
]
