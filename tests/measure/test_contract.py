"""What every operator, noise and problem of the package promises.

The examples stand beside the tests of each class: any ``test_*.py`` of this folder may have ``OPERATORS`` and
``NOISES``, dictionaries from a class to a list of examples. A public class of the package's own without one fails.

- An operator's example is called with a shape, (channels, height, width), and a seed, and returns an operator. Classes
  whose gradient is not the derivative are in ``SURROGATE_GRADIENT``.
- A noise's example is a pair of the noise and exact measurements, [batch, ...]. Over one measurement the density is
  integrated by quadrature, over up to 16 by draws, so one of the examples has no more.
"""

import copy
import importlib
import inspect
import math
import pickle
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import PerImageNoise, kinds
from scipy import integrate, stats

from companion import energy, measure

TESTS = [
    importlib.import_module(f.stem) for f in sorted(Path(__file__).parent.glob("test_*.py")) if f.stem[5:] != "contract"
]
OPERATORS, NOISES = (
    {k: v for test in TESTS for k, v in getattr(test, name, {}).items()} for name in ("OPERATORS", "NOISES")
)
SURROGATE = [kind for test in TESTS for kind in getattr(test, "SURROGATE_GRADIENT", ())]
FEW = 16
operators = [
    pytest.param(make, id=f"{kind.__name__}-{k}") for kind, makers in OPERATORS.items() for k, make in enumerate(makers)
]
noises = [
    pytest.param(*pair, id=f"{kind.__name__}-{k}") for kind, pairs in NOISES.items() for k, pair in enumerate(pairs)
]


def public(kind):
    return {
        c
        for c in kinds(kind, measure)
        if c.__module__.startswith("companion.measure") and not c.__name__.startswith("_") and not inspect.isabstract(c)
    }


def test_every_operator_and_noise_has_an_example():
    for kind, examples in ((measure.Operator, OPERATORS), (measure.Noise, NOISES)):
        lacking = {c.__name__ for c in public(kind) - set(examples)}
        assert not lacking, f"no example of {lacking} in a test_*.py of this folder"
    lacking = {k.__name__ for k, pairs in NOISES.items() if all(exact[0].numel() > FEW for _, exact in pairs)}
    assert not lacking, f"no example of {lacking} with at most {FEW} measurements, over which its density is integrated"


def normal(*shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(operator, batch=3, seed=0, dtype=torch.float64):
    batch = operator.batch or batch
    return normal(batch, *operator.shape, seed=seed, dtype=dtype), normal(
        batch, *operator.output_shape, seed=seed + 1, dtype=dtype
    )


def close(one, other, dtype=torch.float64, scale=None, what="two values of one"):
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    scale = other.abs().max() if scale is None else scale
    assert one.shape == other.shape, f"{what}: shapes {tuple(one.shape)} and {tuple(other.shape)}"
    off = float(((one - other).abs() / (scale + 1e-30)).max())
    assert off <= tolerance, f"{what}: off by {off:.1e} of its size"


@pytest.mark.parametrize("make", operators)
@pytest.mark.parametrize("pixels", ["all 0", "all 1", "beyond [0, 1]"])
def test_values_and_gradients_are_finite_wherever_a_search_may_come(make, pixels):
    operator = make((3, 8, 8), 1)
    x = inputs(operator)[0] if pixels == "beyond [0, 1]" else torch.full_like(inputs(operator)[0], float(pixels[-1]))
    measured = operator.forward(x.requires_grad_())
    (gradient,) = torch.autograd.grad(measured.sum(), x)
    for what, value in (("apply", measured), ("its gradient", gradient)):
        assert value.isfinite().all(), f"{type(operator).__name__}: {what} is not finite where pixels are {pixels}"


@pytest.mark.parametrize("make", operators)
@settings(max_examples=8, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(4, 9), st.integers(4, 9)),
    st.integers(1, 9),
    st.integers(0, 20),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_shapes_dtypes_and_adjoint(make, shape, batch, seed, dtype):
    operator = make(shape, seed)
    x, y = inputs(operator, batch, seed, dtype)
    measured = operator(x)
    assert measured.shape == y.shape and measured.dtype == dtype
    assert torch.equal(measured, operator.forward(x)) and operator.domain in ("image", "real")
    if isinstance(operator, measure.LinearOperator):
        back = operator.adjoint(y)
        assert back.shape == x.shape and back.dtype == dtype
        left, right = (measured * y).flatten(1).sum(1), (x * back).flatten(1).sum(1)
        # as check_adjoint does: the sums may be small by chance, their terms are not
        sizes = torch.maximum(*((a * b).flatten(1).norm(dim=1) for a, b in ((measured, y), (x, back))))
        close(
            left,
            right,
            dtype,
            sizes,
            f"{type(operator).__name__}: ⟨A x, y⟩ is not ⟨x, Aᵀ y⟩, so apply_adjoint is wrong",
        )
        assert measure.check_adjoint(operator) < 1e-12


@pytest.mark.parametrize("make", operators)
def test_gradients(make):
    operator = make((2, 5, 7), 4)
    x, y = inputs(operator)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((operator(x) * y).sum(), x)
    if isinstance(operator, measure.LinearOperator):
        close(operator.adjoint(y), gradient, what=f"{type(operator).__name__}: autograd's gradient is not Aᵀ y")
    if type(operator) not in SURROGATE:
        torch.autograd.gradcheck(operator.forward, x, fast_mode=True)


@pytest.mark.parametrize("make", operators)
def test_outputs_share_no_memory_with_inputs(make):
    for operator in (make((3, 4, 6), 2), make((1, 4, 4), 0)):
        x, y = inputs(operator)
        before = x.clone(), y.clone()
        operator(x).fill_(torch.nan)
        if isinstance(operator, measure.LinearOperator):
            operator.adjoint(y).fill_(torch.nan)
        name = type(operator).__name__
        kept = torch.equal(x, before[0]) and torch.equal(y, before[1])
        assert kept, f"{name} changes its input, or returns its memory (then: clone it)"


@pytest.mark.parametrize("make", operators)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_alone_or_chosen_is_measured_as_in_its_batch(make, dtype):
    operator = make((3, 8, 8), 5)
    x, y = inputs(operator, dtype=dtype)
    linear = isinstance(operator, measure.LinearOperator)
    alone = f"{type(operator).__name__}: an image alone is not what it is in its batch; does it see its neighbours, or "
    alone += "has it data for each image without `batch` and `select`?"
    together, back = operator(x), operator.adjoint(y) if linear else None
    last = len(x) - 1
    for index in ([0], [last], [last, 0, last], torch.tensor([last, 0])):
        chosen = operator.select(index)
        assert (chosen is operator) == (operator.batch is None) and type(chosen) is type(operator)
        close(chosen(x[index]), together[index], dtype, what=alone)
        if linear:
            close(chosen.adjoint(y[index]), back[index], dtype, what=alone)
    if operator.batch is not None:
        with pytest.raises(ValueError, match=f"got 1 images; allowed: {operator.batch}"):
            operator(x[:1])
    wild = x.clone()
    wild[0] = torch.nan
    close(operator.forward(wild)[1:], together[1:], dtype)


@pytest.mark.parametrize("make", operators)
def test_copies_and_pickles_measure_the_same_even_of_those_first_used_inside_a_transform(make):
    operator = make((2, 4, 6), 3)
    x, _ = inputs(operator)
    expected = make((2, 4, 6), 3)(x)

    def value(x):
        return operator.forward(x).square().sum()

    torch.func.grad(value)(x)
    with torch.inference_mode():
        operator(x.float())
    for other in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator)), operator):
        close(other(x), expected)
        single = x.float().requires_grad_()
        other(single).sum().backward()
        assert single.grad.isfinite().all()


@pytest.mark.parametrize("make", operators)
def test_autocast_rounds_nothing(make):
    operator = make((2, 4, 6), 3)
    x, y = inputs(operator, dtype=torch.float32)
    methods = [(operator, x), *([(operator.adjoint, y)] if isinstance(operator, measure.LinearOperator) else [])]
    for method, value in methods:
        exact = method(value)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = method(value)
        assert rounded.dtype == torch.float32 and torch.equal(rounded, exact), f"{type(operator).__name__} is rounded"


@pytest.mark.parametrize("make", operators)
def test_defaults_of_device_and_dtype_do_not_matter(make):
    operator = make((2, 4, 6), 3)
    x, y = inputs(operator, dtype=torch.float32)
    problem = measure.Problem(operator, measure.GaussianNoise(0.1))
    expected, noisy = operator(x), problem.noise.sample(operator(x), 0)
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        fresh = make((2, 4, 6), 3)
        assert torch.equal(fresh(x), expected) and torch.equal(problem.noise.sample(fresh(x), 0), noisy)
        if isinstance(operator, measure.LinearOperator):
            assert torch.equal(fresh.adjoint(y), operator.adjoint(y))
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("noise", "exact"), noises)
def test_log_prob_is_per_image_differentiable_and_follows_the_dtype(noise, exact):
    y = noise.sample(exact, 5)
    before = y.clone(), exact.clone()
    value = noise.log_prob(y, exact)
    assert torch.equal(y, before[0]) and torch.equal(exact, before[1]), f"{noise}.log_prob changes its input"
    assert value.shape == (len(exact),) and value.dtype == torch.float64
    single = noise.log_prob(y.float(), exact.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), value, rtol=1e-3, atol=1e-2)
    for index in ([0], [1, 0, 1]):
        torch.testing.assert_close(
            noise.select(index).log_prob(y[index], exact[index]), value[index], rtol=1e-12, atol=0
        )
    assert torch.autograd.gradcheck(
        noise.log_prob, (y.requires_grad_(), exact.clone().requires_grad_()), fast_mode=True
    )


@pytest.mark.parametrize(("noise", "exact"), noises)
@pytest.mark.parametrize("level", [-1.0, 0.0, 2.0])
def test_the_density_is_finite_wherever_a_search_may_come_and_at_an_exact_fit(noise, exact, level):
    """Images of a search leave [0, 1], and so do exact measurements; with y = f(x) many a norm has no derivative."""
    fitted = torch.full_like(exact, level).requires_grad_()
    for y in (noise.sample(exact, 5), fitted.detach()):
        value = noise.log_prob(y, fitted)
        (gradient,) = torch.autograd.grad(value.sum(), fitted)
        for what, one in (("log_prob", value), ("its gradient", gradient)):
            assert one.isfinite().all(), f"{noise}: {what} is not finite where f(x) is {level}"


@pytest.mark.parametrize(("noise", "exact"), noises)
def test_draws_depend_on_no_other_image_nor_on_the_dtype(noise, exact):
    before = exact.clone()
    many = noise.sample(exact, 7)
    assert torch.equal(exact, before), f"{noise}.draw changes its input"
    if isinstance(noise, measure.AdditiveNoise):
        shape = (1, *exact.shape[1:])
        drawn = noise.residual(shape, torch.Generator().manual_seed(0)).shape
        assert drawn == shape, f"{noise}.residual: got shape {tuple(drawn)}; allowed: {shape}"
    assert torch.equal(noise.sample(exact[:1], 7), many[:1]) and not torch.equal(noise.sample(exact, 8), many)
    assert many.data_ptr() != exact.data_ptr() and many.dtype == torch.float64
    other = torch.cat([exact.flip(0)[:1], exact[1:]])
    assert torch.equal(noise.sample(other, 7)[1:], many[1:])
    single = noise.sample(exact.float(), 7)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), many, rtol=1e-5, atol=1e-6)
    for twin in (copy.deepcopy(noise), pickle.loads(pickle.dumps(noise))):
        assert torch.equal(twin.sample(exact, 7), many)


@pytest.mark.parametrize(
    ("noise", "exact"),
    [pytest.param(*p.values, id=p.id, marks=pytest.mark.slow if "FlowNoise" in p.id else ()) for p in noises],
)
def test_the_density_of_one_measurement_integrates_to_one_and_has_the_moments_of_the_draws(noise, exact):
    """By quadrature over the first entry of y, the others fixed; the draws' mean and variance by a z-test."""
    exact = exact[:1]
    many = noise.sample(exact.repeat(1000, *[1] * (exact.dim() - 1)), 3).flatten(1)[:, 0]
    y, unit = noise.sample(exact, 1), float(many.std())
    base = y.flatten(1)[0].clone()
    centre, middle = float(exact.flatten(1)[0, 0]), float(many.median())

    @cache  # the three integrals look at the same places
    @torch.no_grad()
    def density(value):
        base[0] = value
        return math.exp(float(noise.log_prob(base.view_as(y), exact)) - scale)

    scale, base[0] = 0.0, middle
    scale = float(noise.log_prob(base.view_as(y), exact))
    # from the middle outwards, in units of the spread, without end: tails may be long, and a density may have a kink
    total, mean, square = (
        sum(
            integrate.quad(
                lambda u, p=power, s=side: density(middle + s * u) * (middle + s * u - centre) ** p * unit,
                0,
                math.inf,
                epsabs=1e-12,
                limit=200,
            )[0]
            for side in (-unit, unit)
        )
        for power in (0, 1, 2)
    )
    mean, variance = mean / total, square / total - (mean / total) ** 2
    assert abs(float(many.mean()) - centre - mean) < 5 * math.sqrt(variance / 1000)
    assert float(many.var()) == pytest.approx(variance, rel=0.3)
    if y.numel() == 1:
        integral = total * math.exp(scale)
        assert integral == pytest.approx(1, abs=1e-8), f"the density of {noise} integrates to {integral}"


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "exact"), [p for p in noises if 1 < p.values[1][0].numel() <= FEW])
def test_the_density_of_a_few_measurements_integrates_to_one(noise, exact):
    """E[q(y) / p(y)] = 1 over draws y of p, for any density q: here a normal one, of other draws; by a z-test."""
    exact = exact[:1].repeat(2000, *[1] * (exact.dim() - 1))
    others, y = (noise.sample(exact, seed) for seed in (1, 2))
    near = torch.distributions.MultivariateNormal(others.flatten(1).mean(0), others.flatten(1).mT.cov())
    ratio = (near.log_prob(y.flatten(1)) - noise.log_prob(y, exact)).exp()
    error = float(ratio.std()) / math.sqrt(2000)
    assert abs(float(ratio.mean()) - 1) < 5 * error, f"the density of {noise} integrates to {1 / float(ratio.mean())}"


@pytest.mark.parametrize("make", operators)
def test_problems_select_both_sides_and_observe_by_image(make):
    operator = make((2, 6, 8), 2)
    problem = measure.Problem(operator, PerImageNoise(torch.tensor([0.1, 0.2, 0.4, 0.8])[: operator.batch or 4]))
    batch = len(problem.noise.std)
    x = torch.rand(batch, *operator.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = problem.observe(x, seed=3)
    assert torch.equal(y, problem.noise.sample(operator(x), 3))
    value = problem.log_likelihood(x, y)
    expected = stats.norm(operator(x).numpy(), problem.noise.std.view(-1, *[1] * (y.dim() - 1)).numpy()).logpdf(
        y.numpy()
    )
    torch.testing.assert_close(value, torch.from_numpy(expected).flatten(1).sum(1))
    for index in ([1], [1, 0, 1]):
        chosen = problem.select(index)
        torch.testing.assert_close(chosen.log_likelihood(x[index], y[index]), value[index])
        torch.testing.assert_close(energy.NoiseMisfit(problem, y).select(index)(x[index]), -value[index])
        squares = (operator(x) - y).square().flatten(1).sum(1)
        torch.testing.assert_close(energy.SquaredMisfit(operator, y).select(index)(x[index]), squares[index])
