"""Effective draws per second of Hamiltonian Monte Carlo beside Pyro's, on the posterior of a VAE's latents."""

import importlib.util
import math
import statistics
import time

from arviz_stats.base import array_stats
from torch import Tensor

from companion import measure, priors, sample
from companion.energy import Energy, LatentNorm, NoiseMisfit

LEAPFROGS, WARMUP, DRAWS, CHAINS = 8, 200, 500, 32


def posterior(seed: int) -> tuple[Energy, Tensor]:
    """−log p(z | y) of 100 Gaussian measurements of a digit, and a start, [1, n]: the best of a few searches.

    The noise is large enough for plain HMC to move: without a metric nothing does at 0.1, and no library would win.
    """
    prior = priors.load("vae-mnist")
    problem = measure.Problem(measure.Gaussian(prior.shape, 100, seed=seed), measure.GaussianNoise(1.0))
    y = problem.observe(prior.sample(1, seed=seed), seed=seed)
    energy = Energy(prior, NoiseMisfit(problem, y), LatentNorm(0.5, squared=True))
    return energy, sample.initialise(energy, "best", chains=1, budget=100, seed=seed)[:, 0]


def ours(energy: Energy, z0: Tensor, seed: int, chains: int = 1) -> sample.Chains:
    """All chains at once."""
    starts = z0[:, None].expand(-1, chains, -1)
    return sample.hmc(energy, starts, step=0.05, leapfrogs=LEAPFROGS, warmup=WARMUP, draws=DRAWS, seed=seed)


def pyros(energy: Energy, z0: Tensor, seed: int, length: float) -> Tensor:
    """Draws of one chain with paths of this length, [draw, n]; Pyro's step is adapted to an acceptance of 0.8."""
    from pyro import set_rng_seed
    from pyro.infer import HMC, MCMC

    set_rng_seed(seed)
    kernel = HMC(
        potential_fn=lambda z: energy(z["z"]).sum(), step_size=0.05, trajectory_length=length, adapt_mass_matrix=False
    )
    run = MCMC(kernel, DRAWS, WARMUP, initial_params={"z": z0}, disable_progbar=True)
    run.run()
    return run.get_samples()["z"][:, 0]


def langevin_seconds(images: int = 10, chains: int = 10, steps: int = 1000) -> float:
    """Seconds of unadjusted Langevin for the posteriors of inpainted digits, all chains at once."""
    prior = priors.load("vae-mnist")
    problem = measure.Problem(measure.Mask(measure.masks.centre(prior.shape, 0.5)), measure.GaussianNoise(0.1))
    y = problem.observe(prior.sample(images), seed=0)
    energy = Energy(prior, NoiseMisfit(problem, y), LatentNorm(0.5, squared=True))
    z0 = sample.initialise(energy, "random", chains=chains, seed=0)
    began = time.perf_counter()
    sample.langevin(energy, z0, step=0.01, draws=10, thin=steps // 10, warmup=0, seed=0)
    return time.perf_counter() - began


def rate(draws: Tensor, seconds: float) -> float:
    """The smallest effective sample size of a latent by draws, [draw, chain, n], per second."""
    return min(float(array_stats.ess(latent.T.numpy())) for latent in draws.unbind(2)) / seconds


def compare_samplers(seeds: int = 15) -> dict[str, dict[str, float]]:
    """Effective draws per second, warm-up included, by row and library: medians over posteriors.

    "companion / Pyro" is the geometric mean of the ratios, posterior by posterior, with the ends of its 95 % interval:
    an effective sample size of one chain varies by a factor of two.
    """
    one, many = "effective draws of HMC per second, one chain", f"the same, {CHAINS} chains at once"
    rates: dict[str, dict[str, list[float]]] = {one: {"companion": [], "Pyro": []}, many: {"companion": []}}
    for seed in range(seeds):
        energy, z0 = posterior(seed)
        began = time.perf_counter()
        chain = ours(energy, z0, seed)
        rates[one]["companion"].append(rate(chain.samples[:, 0], time.perf_counter() - began))
        began = time.perf_counter()
        rates[many]["companion"].append(rate(ours(energy, z0, seed, CHAINS).samples[:, 0], time.perf_counter() - began))
        if importlib.util.find_spec("pyro"):
            began = time.perf_counter()
            draws = pyros(energy, z0, seed, LEAPFROGS * float(chain.step))  # paths as long as ours
            rates[one]["Pyro"].append(rate(draws[:, None], time.perf_counter() - began))
    found = {
        row: {name: statistics.median(r) for name, r in libraries.items() if r} for row, libraries in rates.items()
    }
    if rates[one]["Pyro"]:
        logs = [math.log(a / b) for a, b in zip(*rates[one].values(), strict=True)]
        middle, half = statistics.mean(logs), 2.0 * statistics.stdev(logs) / len(logs) ** 0.5
        ends = {"companion / Pyro": 0.0, "from": -half, "to": half}
        found[one] |= {name: math.exp(middle + end) for name, end in ends.items()}
    return found | {"1,000 Langevin steps of 100 chains, seconds (at most 60)": {"companion": langevin_seconds()}}
