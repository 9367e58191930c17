"""What every misfit promises: one value per image, its gradient, rows chosen rightly, and a density where it is one.

A public misfit without an example in ``MISFITS`` fails: a function of the shape of three images that returns a function
from their measurements y, one for each pixel, to the misfit, and one that draws y given the images and a seed. Those in
``DENSITIES`` are −log p(y | x), of real numbers or of bits.
"""

import itertools
import math
from collections.abc import Callable
from inspect import isabstract

import pytest
import torch
from operator_cases import Masks, PerImageNoise, kinds
from scipy import integrate
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from companion import energy, measure
from companion.energy import Misfit, NoiseMisfit, PerceptronMisfit, ProbitMisfit, SquaredMisfit
from companion.measure import Problem

Make, Draw = Callable[[Tensor], Misfit], Callable[[Tensor, int], Tensor]
EACH = PerImageNoise(torch.tensor([0.3, 0.6, 1.2]))


def each(shape):
    factors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    return Problem(Masks(factors.view(3, 1, 1, 1).expand(3, *shape)), EACH)


def linear(shape):
    return Problem(measure.Gaussian(shape, shape[-1], seed=1), measure.SinusoidalNoise(0.7, mean=0.3))


def squared(kind):
    return lambda shape: (lambda y: kind(each(shape).operator, y), each(shape).observe)


def noisy(kind):
    return lambda shape: (lambda y: kind(each(shape), y), each(shape).observe)


def perceptron(shape):
    problem = Problem(measure.SignOf(linear(shape).operator), linear(shape).noise)
    return lambda y: PerceptronMisfit(problem, y), problem.observe


def probit(kind):
    def example(shape):
        problem = linear(shape)
        return lambda y: kind(problem, y), lambda x, seed: problem.observe(x, seed).sign()

    return example


MISFITS = {
    SquaredMisfit: squared(SquaredMisfit),
    NoiseMisfit: noisy(NoiseMisfit),
    PerceptronMisfit: perceptron,
    ProbitMisfit: probit(ProbitMisfit),
}
DENSITIES = {NoiseMisfit: "real numbers", ProbitMisfit: "bits"}


def case(example, pixels=4):
    """The function that makes the misfit, y of three images, and other images to look at."""
    make, draw = example((1, 1, pixels))
    true, x = torch.rand(2, 3, 1, 1, pixels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return make, draw(true, 0), x


def one_value_per_image(example):
    make, y, x = case(example)
    value = make(y)(x)
    assert value.shape == (3,) and value.dtype == x.dtype, f"got {value.dtype} {tuple(value.shape)}"


def its_gradient(example):
    make, y, x = case(example)
    assert torch.autograd.gradcheck(make(y), x.requires_grad_())


def rows_chosen(example):
    make, y, x = case(example)
    misfit = make(y)
    value = misfit(x)
    for index in ([0], [2, 0], [1, 1], torch.tensor([2, 1, 0])):
        chosen = misfit.select(index)
        torch.testing.assert_close(chosen(x[index]), value[index])
        torch.testing.assert_close(chosen.select([len(index) - 1])(x[index][-1:]), value[index][-1:])
    torch.testing.assert_close(misfit(x), value)  # choosing changes nothing


def no_neighbour(example):
    make, y, x = case(example)
    value, (other_y, other_x) = make(y)(x), (y.clone(), x.clone())
    other_y[1:], other_x[1:] = -y[1:], 1 - x[1:]
    torch.testing.assert_close(make(other_y)(other_x)[0], value[0])
    other_x[1:] = torch.nan
    torch.testing.assert_close(make(y)(other_x)[0], value[0])


def the_density(example, of):
    """Over all y of one image it adds up to one, and has the mean and the spread of draws; by a z-test."""
    pixels = 3 if of == "bits" else 1
    make, y, x = case(example, pixels)
    draw = example((1, 1, pixels))[1]
    draws = torch.stack([draw(x, seed)[1].flatten() for seed in range(300)])
    whole = y.clone()

    def density(*values):
        whole[1] = torch.tensor(values, dtype=y.dtype).view_as(y[1])
        return math.exp(-float(make(whole)(x)[1]))

    if of == "bits":
        every = list(itertools.product((-1.0, 1.0), repeat=pixels))
        weight = torch.tensor([density(*values) for values in every], dtype=y.dtype)
        moments = [float(weight.sum()), *(weight @ torch.tensor(every, dtype=y.dtype)).tolist()]
        given, spread = draws, (1 - torch.tensor(moments[1:]).square()).sqrt()
    else:
        centre, wide = float(draws.median()), 12 * float(draws.std())
        between = (centre - wide, centre + wide)
        moments = [integrate.quad(lambda v, k=k: density(v) * v**k, *between, limit=200)[0] for k in (0, 1, 2)]
        given = torch.cat([draws, draws.square()], 1)
        spread = given.std(0)
    assert moments[0] == pytest.approx(1, abs=1e-7), f"the density adds up to {moments[0]}"
    assert ((given.mean(0) - torch.tensor(moments[1:])).abs() <= 5 * spread / math.sqrt(len(given)) + 1e-6).all()


def finite_at_an_exact_fit(example):
    make, y, x = case(example)
    fitted = make(y).operator.forward(x)
    fitted = fitted.sign() if (y.abs() == 1).all() else fitted  # of bits
    (gradient,) = torch.autograd.grad(make(fitted)(x.requires_grad_()).sum(), x)
    assert gradient.isfinite().all(), "the gradient is not finite where y = f(x)"


CHECKS = [one_value_per_image, its_gradient, rows_chosen, no_neighbour, finite_at_an_exact_fit]


def test_every_misfit_has_an_example():
    known = {kind for kind in kinds(Misfit, energy) if kind.__module__.startswith("companion.")}
    lacking = {kind.__name__ for kind in known - set(MISFITS) if not isabstract(kind)}
    assert not lacking, f"no example of {lacking} in MISFITS of this file"


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", MISFITS)
def test_a_misfit_keeps_its_promises(kind, check):
    check(MISFITS[kind])


@pytest.mark.parametrize("kind", DENSITIES)
def test_a_misfit_that_is_a_density_is_one(kind):
    the_density(MISFITS[kind], DENSITIES[kind])


class EachMeasurement(SquaredMisfit):
    def __call__(self, x):
        return (self.operator.forward(x) - self.y).square()


class SumOfAll(SquaredMisfit):
    def __call__(self, x):
        return super().__call__(x).sum()


class HalfTheGradient(SquaredMisfit):
    def __call__(self, x):
        residual = self.operator.forward(x) - self.y
        return (residual.detach() * residual).flatten(1).sum(1)


class FirstRows(NoiseMisfit):
    def select(self, index):
        return super().select(torch.arange(len(index)))


class NoiseNotChosen(NoiseMisfit):
    def select(self, index):
        chosen = super().select(index)
        chosen.problem = Problem(self.problem.operator.select(index), self.problem.noise.select([0] * len(index)))
        return chosen


class ChoosesInPlace(NoiseMisfit):
    def select(self, index):
        chosen = super().select(index)
        self.y = self.y.flip(0)
        return chosen


class OverTheBatch(SquaredMisfit):
    def __call__(self, x):
        return super().__call__(x) / self.y.mean().square()


class Centred(SquaredMisfit):
    def __call__(self, x):
        value = super().__call__(x)
        return value - 0.1 * value.mean()


class RootOfSquares(SquaredMisfit):
    """An L1 norm without a derivative where the data are met."""

    def __call__(self, x):
        return (self.operator.forward(x) - self.y).square().sqrt().flatten(1).sum(1)


class NotNormalised(NoiseMisfit):
    def __call__(self, x):
        return super().__call__(x) - math.log(2)


class HalfTheLogarithm(NoiseMisfit):
    def __call__(self, x):
        return super().__call__(x) / 2


class OtherLevel(NoiseMisfit):
    """Normalised, but of noise twice as strong."""

    def __call__(self, x):
        noise = PerImageNoise(2 * self.problem.noise.std)
        return -Problem(self.problem.operator, noise).log_likelihood(x, self.y)


class OtherBits(ProbitMisfit):
    """Normalised, but of the opposite bits."""

    def __call__(self, x):
        value = self.operator.forward(x) + self.noise.mean
        return -torch.special.log_ndtr(-self.y * value / self.noise.std_map(value.shape[1:]).to(value)).sum(1)


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (EachMeasurement, one_value_per_image),
        (SumOfAll, one_value_per_image),
        (HalfTheGradient, its_gradient),
        (FirstRows, rows_chosen),
        (NoiseNotChosen, rows_chosen),
        (ChoosesInPlace, rows_chosen),
        (OverTheBatch, no_neighbour),
        (Centred, no_neighbour),
        (RootOfSquares, finite_at_an_exact_fit),
        (NotNormalised, the_density),
        (HalfTheLogarithm, the_density),
        (OtherLevel, the_density),
        (OtherBits, the_density),
    ],
)
def test_a_wrong_misfit_is_found(kind, check):
    base = next(base for base in MISFITS if issubclass(kind, base))
    wrong = {SquaredMisfit: squared, NoiseMisfit: noisy, ProbitMisfit: probit}[base](kind)
    options = (DENSITIES[base],) if check is the_density else ()
    with pytest.raises((AssertionError, GradcheckError)):
        check(wrong, *options)
