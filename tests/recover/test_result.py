"""The tensors of a result share no memory, neither with each other nor with what was given."""

from itertools import combinations

import pytest
import torch
from flow_cases import rand, randn, tiny

from companion import measure, recover
from companion.energy import Energy, LatentNorm, SquaredMisfit

FLOW = tiny()
OPERATOR = measure.Gaussian(FLOW.shape, 8)
Z, X = randn(3, FLOW.latent_dim), rand(3, *FLOW.shape)
Y = OPERATOR(X)


def energy(space):
    return Energy(FLOW, SquaredMisfit(OPERATOR, Y), LatentNorm(0.1), space)


def squares(x):
    return x.flatten(1).square().sum(1)


CALLS = {
    "minimise in z": lambda: recover.minimise(energy("z"), Z, max_iterations=3),
    "minimise in x": lambda: recover.minimise(energy("x"), X, max_iterations=3),
    "minimise by Adam": lambda: recover.minimise(energy("x"), X, method="adam", max_iterations=3),
    "minimise a function": lambda: recover.minimise(squares, X, max_iterations=3),
    "minimise a function of vectors": lambda: recover.minimise(squares, Z, max_iterations=3),
    "lasso in pixels": lambda: recover.lasso(OPERATOR, Y, "pixel", max_iterations=3),
    "lasso in cosines": lambda: recover.lasso(OPERATOR, Y, "dct", max_iterations=3),
    "lasso in wavelets": lambda: recover.lasso(OPERATOR, Y, "wavelet", max_iterations=3),
    "tv": lambda: recover.tv(OPERATOR, Y, max_iterations=3),
    "tv of Identity": lambda: recover.tv(measure.Identity(FLOW.shape), X, max_iterations=3),
    "pseudo_inverse": lambda: recover.pseudo_inverse(OPERATOR, Y),
    "gaussian_map": lambda: recover.gaussian_map(OPERATOR, Y, FACTOR, MEAN, 0.1),
}
FACTOR, MEAN = randn(16, 16), X[0].clone()


@pytest.mark.parametrize("name", CALLS)
def test_tensors_of_a_result_share_no_memory_with_each_other_nor_with_arguments(name):
    result = CALLS[name]()
    found = {key: value for key, value in vars(result).items() if isinstance(value, torch.Tensor)}
    found |= {f"trace of {key}": value for key, value in result.trace.items()}
    given = {"Z": Z, "X": X, "Y": Y, "FACTOR": FACTOR, "MEAN": MEAN}
    for one, other in combinations(found | given, 2):
        a, b = ((found | given)[each].untyped_storage().data_ptr() for each in (one, other))
        assert a != b, f"{name}: {one} and {other} share memory"
