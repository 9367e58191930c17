"""Searches and samplers compute where their arguments lie, whatever torch's default device is."""

import pytest
import torch
from flow_cases import rand, randn

from companion import measure, priors, recover, sample
from companion.energy import Energy, LatentNorm, NoiseMisfit, SquaredMisfit

SHAPE = (1, 8, 8)
PRIOR = priors.Linear(randn(64, 5), shape=SHAPE)
OPERATOR = measure.Gaussian(SHAPE, 20)
X = rand(2, *SHAPE)
Y = OPERATOR(X)
Z = randn(2, 5)
CHAINS = randn(2, 8, 5)
LATENT = Energy(PRIOR, SquaredMisfit(OPERATOR, Y), LatentNorm(0.1, squared=True))
POSTERIOR = Energy(
    PRIOR, NoiseMisfit(measure.Problem(OPERATOR, measure.GaussianNoise(1.0)), Y), LatentNorm(0.5, squared=True)
)
FEW = {"draws": 8, "warmup": 4}

CALLS = {
    "minimise by L-BFGS": lambda: recover.minimise(LATENT, Z, max_iterations=20),
    "minimise by Adam": lambda: recover.minimise(LATENT, Z, method="adam", max_iterations=5),
    "flow_latent": lambda: recover.flow_latent(PRIOR, OPERATOR, Y),
    "gan_latent": lambda: recover.gan_latent(PRIOR, OPERATOR, Y, restarts=2, max_iterations=5),
    "lasso in cosines": lambda: recover.lasso(OPERATOR, Y, weight=0.1, max_iterations=20),
    "lasso in wavelets": lambda: recover.lasso(OPERATOR, Y, "wavelet", weight=0.1, max_iterations=20),
    "tv": lambda: recover.tv(OPERATOR, Y, weight=0.1, max_iterations=20),
    "pseudo_inverse": lambda: recover.pseudo_inverse(OPERATOR, Y),
    "gaussian_map": lambda: recover.gaussian_map(OPERATOR, Y, PRIOR.weight, noise_std=0.1),
    "start": lambda: recover.start(PRIOR, Y, "sphere"),
    "null_space_neighbour": lambda: recover.null_space_neighbour(OPERATOR, X, 1.0),
    "gauss_newton": lambda: sample.gauss_newton(POSTERIOR, Z),
    "langevin": lambda: sample.langevin(POSTERIOR, CHAINS, step=0.01, **FEW),
    "mala": lambda: sample.mala(POSTERIOR, CHAINS, **FEW).diagnostics(),
    "hmc": lambda: sample.hmc(POSTERIOR, CHAINS, **FEW),
    "pcn": lambda: sample.pcn(POSTERIOR, CHAINS, **FEW),
    "adapted": lambda: sample.adapted(POSTERIOR, CHAINS, sample.gauss_newton(POSTERIOR, Z), windows=(8,)),
    "annealed_langevin": lambda: sample.annealed_langevin(POSTERIOR, CHAINS, step=0.01, levels=2, steps=4, draws=4),
    "smc": lambda: sample.smc(POSTERIOR, particles=16, moves=1),
    "svgd": lambda: sample.svgd(POSTERIOR, CHAINS, iterations=3),
    "projected_svgd": lambda: sample.projected_svgd(POSTERIOR, CHAINS, iterations=3, rounds=1),
    "initialise": lambda: sample.initialise(POSTERIOR, "map", chains=2),
}


def tensors(value):
    fields = vars(value) if hasattr(value, "__dict__") and not isinstance(value, torch.Tensor) else {"": value}
    return {name: field for name, field in fields.items() if isinstance(field, torch.Tensor)}


@pytest.mark.parametrize("name", CALLS)
def test_results_do_not_depend_on_the_default_device(name):
    expected = tensors(CALLS[name]())
    torch.set_default_device("meta")  # as "cuda" would: nothing may follow it unasked
    try:
        found = tensors(CALLS[name]())
    finally:
        torch.set_default_device(None)
    for key, value in expected.items():
        assert found[key].device.type == "cpu" and torch.equal(found[key], value), f"{name}: {key}"
