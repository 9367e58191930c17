"""Posterior samplers: Markov kernels and the loop that runs them, particles, starts, and what is done with draws."""

from companion.sample.chains import Chains, Diagnostics, autocorrelation_time, mixing_time
from companion.sample.design import (
    Design,
    GaussianPosterior,
    LatentPosterior,
    Posterior,
    Rule,
    adaptive_sensing,
    bayesian_optimisation,
    greedy,
)
from companion.sample.loop import run
from companion.sample.metric import Metric, gauss_newton
from companion.sample.samplers import adapted, annealed_langevin, hmc, langevin, mala, pcn
from companion.sample.score import orbit, tweedie
from companion.sample.sequential import Particles, smc
from companion.sample.start import first_guess, improve, initialise
from companion.sample.stein import projected_svgd, svgd
from companion.sample.weighting import Weights, calibrated, importance_weights

__all__ = [
    "Chains",
    "Design",
    "Diagnostics",
    "GaussianPosterior",
    "LatentPosterior",
    "Metric",
    "Particles",
    "Posterior",
    "Rule",
    "Weights",
    "adapted",
    "adaptive_sensing",
    "annealed_langevin",
    "autocorrelation_time",
    "bayesian_optimisation",
    "calibrated",
    "first_guess",
    "gauss_newton",
    "greedy",
    "hmc",
    "importance_weights",
    "improve",
    "initialise",
    "langevin",
    "mala",
    "mixing_time",
    "orbit",
    "pcn",
    "projected_svgd",
    "run",
    "smc",
    "svgd",
    "tweedie",
]
