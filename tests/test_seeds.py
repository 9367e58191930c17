"""Every public callable with a seed heeds it, and it alone: the generators of torch and NumPy change nothing."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from flow_cases import rand, randn, tiny
from torch import Tensor, nn

import companion
from companion import bayes, energy, evaluate, measure, priors, recover, sample
from companion.bayes.modes import aim
from companion.bayes.moved import moved
from companion.priors import bijections, matrices, msign, networks, pixels
from companion.training import criteria

# what has no answer of its own that differs from seed to seed
ELSEWHERE = {
    "bayes.problems.FieldProblem.__init__": "abstract; its two problems are here",
    "bayes.problems.barrier": "a minimum, which does not depend on the starts",
    "measure.base.check_adjoint": "a rounding error",
    "measure.noise.Noise.sample": "abstract; of every noise in measure/test_contract.py",
    "sample.kernels.random_block": "the draws of every sampler here",
}


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in module.parameters()])


def constructed(kind: Any, *args: Any, **options: Any) -> Callable[[int], Tensor]:
    return lambda seed: weights(kind(*args, **options, seed=seed))


def initialised(start: Callable[..., None], *args: Any) -> Callable[[int], Tensor]:
    def case(seed: int) -> Tensor:
        network = nn.Linear(3, 2)
        nn.init.zeros_(network.weight)
        nn.init.zeros_(network.bias)
        start(network, seed, *args)
        return weights(network)

    return case


@cache
def linear() -> energy.Energy:
    """The energy of a linear-Gaussian posterior of two images."""
    prior = priors.Linear(randn(6, 3))
    problem = measure.Problem(measure.Identity((6,)), measure.GaussianNoise(0.5))
    misfit = energy.NoiseMisfit(problem, randn(2, 6))
    return energy.Energy(prior, misfit, energy.LatentNorm(0.5, squared=True))


@cache
def field() -> bayes.Synthetic:
    return bayes.Synthetic(4)


@cache
def flow() -> priors.Glow:
    return tiny(dtype=torch.float32)


def sampled(sampler: Callable[..., Any], **options: Any) -> Callable[[int], Tensor]:
    z0 = torch.zeros(2, 1, 3, dtype=torch.float64)
    return lambda seed: sampler(linear(), z0, **options, seed=seed).samples


def trained(train: Callable[..., Any]) -> Callable[[int], Tensor]:
    def case(seed: int) -> Tensor:
        model = msign.MsIGN(field().field, 2, 1, 4)
        train(field(), model, bayes.Training(iterations=2, batch=8, pool=20), seed=seed)
        return weights(model)

    return case


def aimed(seed: int) -> Tensor:
    model = msign.Mirrored(msign.MsIGN(field().field, 2, 1, 4, rank=4))
    aim(field(), model, 100, seed=seed)
    return model.directed.matrix


def posterior(seed: int) -> sample.GaussianPosterior:
    return sample.GaussianPosterior(torch.zeros(16), torch.eye(16), 0.1, draws=8, seed=seed)


def drawn(of: sample.Posterior) -> Tensor:
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[..., 0, :] = True
    return of(mask, rand(2, 4, dtype=torch.float32), 0)


def first_pixels(search: Callable[..., sample.Design]) -> Callable[[int], Tensor]:
    """What is measured after a first round, which depends on the noise of what was measured in it."""
    truth = rand(2, 1, 4, 4, dtype=torch.float32)

    def case(seed: int) -> Tensor:
        seen: list[Tensor] = []

        def spy(mask: Tensor, y: Tensor, round_: int) -> Tensor:
            seen.append(y)
            return posterior(0)(mask, y, round_)

        search(truth, spy, rounds=2, seed=seed)
        return seen[-1]

    return case


IMAGES = rand(4, 1, 4, 4, dtype=torch.float32)
VAE = (1, 4, 4), 2, [8]
CASES: dict[str, Callable[[int], Any]] = {
    "bayes.modes.laplace": lambda s: bayes.laplace(field(), rank=4, seed=s).directions,
    "bayes.modes.aim": aimed,
    "bayes.moved.moved": lambda s: moved(
        field(), msign.MsIGN(field().field, 2, 1, 4), field().field.sample(4, seed=0), 12, seed=s
    ),
    "bayes.problems.Synthetic.__init__": lambda s: bayes.Synthetic(4, seed=s).y,
    "bayes.problems.Synthetic.sample": lambda s: field().sample(3, s),
    "bayes.problems.Elliptic.__init__": lambda s: bayes.Elliptic(4, seed=s).y,
    "bayes.train.train_msign": trained(bayes.train_msign),
    "bayes.train.amortised_svgd": trained(bayes.amortised_svgd),
    "evaluate.saving": lambda s: evaluate.saving(
        *(rand(2, 3, 9) + torch.tensor([4.0, 2.0, 0.0])[:, None]).numpy(), [1, 2, 3], 2, resamples=9, seed=s
    ),
    "evaluate.bootstrap": lambda s: torch.tensor(
        evaluate.bootstrap(lambda k: float(np.square(k).mean()), 9, resamples=9, seed=s)
    ),
    "measure.linear.Gaussian.__init__": lambda s: measure.Gaussian((16,), 4, s)(IMAGES.flatten(1)),
    "measure.masks.random_pixels": lambda s: measure.masks.random_pixels((1, 4, 4), 0.5, s),
    "measure.masks.random_subpixels": lambda s: measure.masks.random_subpixels((3, 4, 4), 0.5, s),
    "measure.problem.Problem.observe": lambda s: measure.Problem(
        measure.Identity((1, 4, 4)), measure.GaussianNoise(0.1)
    ).observe(IMAGES, s),
    "priors.base.Prior.sample": lambda s: flow().sample(2, seed=s),
    "priors.bijections.ChannelMix.__init__": constructed(bijections.ChannelMix, 3),
    "priors.deep_image_prior.DeepImagePrior.__init__": lambda s: priors.DeepImagePrior((1, 8, 8), 4, 2, seed=s).noise,
    "priors.flow.Flow.bits_per_dim": lambda s: flow().bits_per_dim(IMAGES, s),
    "priors.gan.GAN.__init__": constructed(priors.GAN, (1, 28, 28), 2, 2),
    "priors.glow.Glow.__init__": constructed(priors.Glow, (1, 4, 4), 1, 1, 2),
    "priors.image_msign.ImageMsIGN.__init__": constructed(priors.ImageMsIGN, (1, 8, 8), 2, 1, 2),
    "priors.matrices.Rotation.__init__": lambda s: matrices.Rotation(3, s).matrices()[0],
    "priors.matrices.DenseMatrix.__init__": lambda s: matrices.DenseMatrix(3, s).matrices()[0],
    "priors.matrices.LUMatrix.__init__": lambda s: matrices.LUMatrix(3, s).matrices()[0],
    "priors.msign.MsIGN.__init__": lambda s: weights(msign.MsIGN(field().field, 2, 1, 4, seed=s)),
    "priors.msign.Mirrored.sample": lambda s: msign.Mirrored(msign.MsIGN(field().field, 2, 1, 4)).sample(3, s),
    "priors.msign.GlowBlock.__init__": constructed(msign.GlowBlock, 1, 1, 4),
    "priors.msign.SmallConditioner.__init__": constructed(msign.SmallConditioner, 2, 2, 4),
    "priors.networks.ConvConditioner.__init__": constructed(networks.ConvConditioner, 2, 2, 4),
    "priors.networks.ResidualConditioner.__init__": constructed(networks.ResidualConditioner, 2, 2, 4, 1),
    "priors.networks.DenseConditioner.__init__": constructed(networks.DenseConditioner, 2, 2, 4),
    "priors.networks.initialise": initialised(networks.initialise, nn.init.kaiming_normal_),
    "priors.networks.he_initialise": initialised(networks.he_initialise),
    "priors.pixels.PixelMap.dequantise": lambda s: pixels.PixelMap("uniform", 8, 0.9).dequantise(IMAGES, s),
    "priors.points.PointFlow.__init__": constructed(priors.PointFlow, 2, 4),
    "priors.realnvp.RealNVP.__init__": constructed(priors.RealNVP, (1, 4, 4), 1, 1, 2),
    "priors.vae.VAE.__init__": constructed(priors.VAE, *VAE),
    "priors.vae.VAE.elbo": lambda s: priors.VAE(*VAE).elbo(IMAGES, s).detach(),
    "priors.vae.VAE.bits_per_dim": lambda s: priors.VAE(*VAE, likelihood="gaussian").bits_per_dim(IMAGES, s).detach(),
    "recover.estimators.flow_map": lambda s: (
        recover.flow_map(
            flow(),
            measure.Problem(measure.Identity((1, 4, 4)), measure.GaussianNoise(0.1)),
            IMAGES,
            start="normal",
            seed=s,
            max_evaluations=2,
        ).x
    ),
    "recover.estimators.gan_latent": lambda s: (
        recover.gan_latent(
            priors.VAE(*VAE), measure.Identity((1, 4, 4)), IMAGES, restarts=1, seed=s, max_evaluations=2
        ).x
    ),
    "recover.starts.start": lambda s: recover.start(flow(), IMAGES, "normal", seed=s),
    "recover.starts.null_space_neighbour": lambda s: recover.null_space_neighbour(
        measure.Gaussian((1, 4, 4), 4), IMAGES, 0.1, s
    ),
    "sample.design.LatentPosterior.__init__": lambda s: drawn(
        sample.LatentPosterior(priors.VAE(*VAE), 0.1, chains=1, search=2, draws=2, seed=s)
    ),
    "sample.design.GaussianPosterior.__init__": lambda s: drawn(posterior(s)),
    "sample.design.adaptive_sensing": first_pixels(sample.adaptive_sensing),
    "sample.design.bayesian_optimisation": first_pixels(sample.bayesian_optimisation),
    "sample.loop.run": sampled(sample.hmc, draws=2, warmup=2),
    "sample.metric.Metric.draw": lambda s: sample.gauss_newton(linear(), torch.zeros(2, 3).double()).draw(2, seed=s),
    "sample.samplers.adapted": lambda s: sample.adapted(
        linear(),
        torch.zeros(2, 1, 3).double(),
        sample.gauss_newton(linear(), torch.zeros(2, 3).double()),
        windows=(3,),
        seed=s,
    )[1],
    "sample.samplers.annealed_langevin": sampled(sample.annealed_langevin, step=0.1, levels=2, steps=2, draws=2),
    "sample.sequential.smc": lambda s: sample.smc(linear(), particles=4, moves=1, leapfrogs=1, seed=s).samples,
    "sample.start.initialise": lambda s: sample.initialise(linear(), "random", chains=2, seed=s),
    "training.criteria.sliced_wasserstein": lambda s: torch.tensor(
        criteria.sliced_wasserstein(randn(9, 2), randn(9, 2, seed=5), 3, s)
    ),
}


def callables() -> set[str]:
    """Names of the public functions and methods of the package, experiments aside, that take a seed."""
    found = set()
    for info in pkgutil.walk_packages(companion.__path__, "companion."):
        if any(part.startswith("_") or part == "experiments" for part in info.name.split(".")):
            continue
        for name, thing in vars(importlib.import_module(info.name)).items():
            if name.startswith("_") or not callable(thing) or getattr(thing, "__module__", "") != info.name:
                continue
            methods = vars(thing).items() if inspect.isclass(thing) else [("", thing)]
            for method, function in methods:
                if inspect.isfunction(function) and "seed" in inspect.signature(function).parameters:
                    found.add(".".join(filter(None, [info.name.removeprefix("companion."), name, method])))
    return found - {"training.schedule.Schedule.__init__"}  # a record: what `fit` does with it is tested there


def test_every_callable_with_a_seed_has_a_case_or_a_reason():
    assert callables() == CASES.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_seed_gives_the_same_draws_and_another_gives_others(name):
    def answer(seed: int) -> Tensor:
        return torch.as_tensor(CASES[name](seed)).detach()

    one = answer(3)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    torch.testing.assert_close(answer(3), one)
    other = answer(4)
    assert other.shape != one.shape or not torch.allclose(other.double(), one.double())
