"""Energies against formulas written out by hand, gradients against finite differences, independence of the images."""

import math

import pytest
import torch
from operator_cases import Masks, kinds

from companion import energy as energies
from companion import measure, recover
from companion.energy import (
    Discrimination,
    Energy,
    FlowLikelihood,
    LatentNorm,
    LogRatio,
    NoiseMisfit,
    Penalty,
    SquaredMisfit,
)
from companion.priors import GAN, Glow, PointFlow, load

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def flow():
    flow = Glow(SHAPE, levels=2, steps=2, width=8).double().eval().requires_grad_(False)
    source = torch.Generator().manual_seed(0)
    for parameter in flow.parameters():
        parameter += 0.03 * torch.randn(parameter.shape, generator=source, dtype=torch.float64)
    return flow


class Exponential(torch.nn.Module):
    """G(z) = exp(z), with a bounded domain: densities and latents known in closed form."""

    shape = (3,)
    latent_dim = 3
    domain = (0.0, math.inf)

    def decode(self, z):
        return z.exp()

    def decode_with_log_det(self, z):
        return z.exp(), z.sum(1)

    def encode(self, x):
        return x.log()

    def encode_with_log_det(self, x):
        return x.log(), -x.log().sum(1)


def problem_of(flow, batch=3):
    source = torch.Generator().manual_seed(1)
    operator = measure.Gaussian(flow.shape, 10, seed=2)
    y = torch.randn(batch, 10, generator=source, dtype=torch.float64)
    z = torch.randn(batch, flow.latent_dim, generator=source, dtype=torch.float64)
    return operator, y, z


@pytest.mark.parametrize("squared", [False, True])
def test_latent_energy_is_eq_2(flow, squared):
    operator, y, z = problem_of(flow)
    energy = Energy(flow, SquaredMisfit(operator, y), LatentNorm(0.7, squared))
    matrix = operator.matrix(y)
    for i, value in enumerate(energy(z)):
        x = flow.decode(z)[i].flatten()
        expected = ((matrix @ x - y[i]) ** 2).sum() + 0.7 * z[i].norm() ** (2 if squared else 1)
        torch.testing.assert_close(value, expected)
    misfit_only = Energy(flow, SquaredMisfit(operator, y))
    torch.testing.assert_close(misfit_only(z), energy(z) - 0.7 * z.norm(dim=1) ** (2 if squared else 1))


def test_image_energy_is_eq_1(flow):
    operator, y, z = problem_of(flow)
    x = flow.decode(z)
    energy = Energy(flow, SquaredMisfit(operator, y), FlowLikelihood(2.0), space="x")
    expected = (operator(x) - y).square().sum(1) - 2.0 * flow.log_prob(x)
    torch.testing.assert_close(energy(x), expected)
    latent = Energy(flow, SquaredMisfit(operator, y), FlowLikelihood(2.0))
    torch.testing.assert_close(latent(z), expected)


def test_flow_likelihood_in_closed_form():
    prior, x = Exponential(), torch.tensor([[0.5, 1.0, 3.0]], dtype=torch.float64)
    misfit = SquaredMisfit(measure.Identity((3,)), x)
    expected = -torch.distributions.LogNormal(0.0, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(Energy(prior, misfit, FlowLikelihood(1.0), space="x")(x), expected)
    torch.testing.assert_close(Energy(prior, misfit, FlowLikelihood(1.0))(x.log()), expected)
    torch.testing.assert_close(Energy(prior, misfit, LatentNorm(1.0), space="x")(x), x.log().norm(dim=1))


def test_an_image_beyond_the_flows_domain_has_infinite_energy_and_harms_no_other():
    prior = Exponential()
    x = torch.tensor([[0.5, 1.0, 3.0], [0.5, -1.0, 3.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    energy = Energy(prior, SquaredMisfit(measure.Identity((3,)), x), FlowLikelihood(1.0), space="x")
    values = energy(x)
    assert values[1] == math.inf and torch.isfinite(values[[0, 2]]).all()
    torch.testing.assert_close(values[[0, 2]], energy.select([0, 2])(x[[0, 2]]))


def test_a_density_is_the_same_beside_an_image_beyond_the_domain():
    flow = Glow((1, 8, 8), levels=1, steps=2, width=8, pixels="logit").double().requires_grad_(False)
    x = torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    x[0, 0, 0, 0] = flow.domain[1] - 1e-5  # inside, but nearer to the end than images beyond it are moved
    energy = Energy(flow, SquaredMisfit(measure.Identity(flow.shape), x), FlowLikelihood(1.0), space="x")
    fine = energy(x)[0]
    x[1] = 7.0
    assert energy(x)[1] == math.inf and energy(x)[0] == fine


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("contraction", [0.5, 0.9])
def test_pixels_within_rounding_of_the_domains_end_are_never_an_error(end, contraction):
    flow = Glow((1, 2, 2), levels=1, steps=1, width=4, pixels="logit", contraction=contraction).requires_grad_(False)
    pixels = [torch.tensor(flow.domain[end])]
    for _ in range(40):
        pixels.append(torch.nextafter(pixels[-1], torch.tensor(0.5)))
    x = torch.stack([*pixels, torch.tensor(0.5)]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    values = Energy(flow, SquaredMisfit(measure.Identity(flow.shape), x), FlowLikelihood(1.0), space="x")(x)
    assert values[0] == math.inf and torch.isfinite(values[-1]) and not values.isnan().any()


def test_flows_say_which_pixels_they_can_represent():
    assert Glow((1, 8, 8), levels=1, steps=1, width=4).domain is None and PointFlow(couplings=2, width=4).domain is None
    low, high = load("realnvp-mnist").domain
    assert -0.01 < low < 0 and 1 < high < 1.01


def test_a_search_cannot_change_a_prior_by_its_batch_normalisation():
    gan = GAN((1, 28, 28), latent_dim=4, width=2)
    misfit = SquaredMisfit(measure.Identity(gan.shape), torch.rand(2, *gan.shape))
    with pytest.raises(ValueError, match="prior: got GAN whose batch normalisation is in training mode"):
        Energy(gan, misfit)
    before = {name: value.clone() for name, value in gan.eval().state_dict().items()}
    Energy(gan, misfit)(torch.randn(2, 4))
    assert all(torch.equal(value, before[name]) for name, value in gan.state_dict().items())


def test_noise_misfit_is_the_negative_log_density(flow):
    operator, y, z = problem_of(flow)
    problem = measure.Problem(operator, measure.SinusoidalNoise(0.3, mean=0.2))
    x = flow.decode(z)
    std = problem.noise.std_map((10,))
    expected = -torch.distributions.Normal(0.2, std).log_prob(y - operator(x)).sum(1)
    torch.testing.assert_close(Energy(flow, NoiseMisfit(problem, y))(z), expected)
    white = measure.Problem(operator, measure.GaussianNoise(0.3))
    difference = NoiseMisfit(white, y)(x) - SquaredMisfit(operator, y)(x) / (2 * 0.3**2)
    torch.testing.assert_close(difference, torch.full_like(difference, 10 * math.log(0.3 * math.sqrt(2 * math.pi))))


@pytest.mark.parametrize(
    ("penalty", "space"),
    [
        (None, "z"),
        (LatentNorm(0.5), "z"),
        (LatentNorm(0.5, squared=True), "z"),
        (FlowLikelihood(0.3), "z"),
        (FlowLikelihood(0.3), "x"),
        (LatentNorm(0.5), "x"),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_agree_with_finite_differences(flow, penalty, space, batch):
    operator, y, z = problem_of(flow, batch)
    energy = Energy(flow, SquaredMisfit(operator, y), penalty, space)
    start = z if space == "z" else flow.decode(z)
    assert torch.autograd.gradcheck(energy, start.clone().requires_grad_(), fast_mode=True)


def test_latent_norm_has_gradient_zero_at_zero(flow):
    operator, y, z = problem_of(flow)
    zero = torch.zeros_like(z).requires_grad_()
    for squared in (False, True):
        plain, penalised = (
            Energy(flow, SquaredMisfit(operator, y), penalty) for penalty in (None, LatentNorm(3.0, squared))
        )
        (expected,) = torch.autograd.grad(plain(zero).sum(), zero)
        (gradient,) = torch.autograd.grad(penalised(zero).sum(), zero)
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("penalty", [None, LatentNorm(0.5), FlowLikelihood(1.0)])
@pytest.mark.parametrize("space", ["z", "x"])
def test_value_and_gradient_of_an_image_are_the_same_in_every_batch(penalty, space):
    flow = Glow((3, 16, 16), levels=2, steps=2, width=32).eval().requires_grad_(False)
    for parameter in flow.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    operator = measure.Gaussian(flow.shape, 100)
    z = torch.randn(9, flow.latent_dim)
    variable = z if space == "z" else flow.decode(z)
    energy = Energy(flow, SquaredMisfit(operator, torch.randn(9, 100)), penalty, space)

    def both(energy, variable):
        variable = variable.clone().requires_grad_()
        value = energy(variable)
        return value.detach(), torch.autograd.grad(value.sum(), variable)[0]

    value, gradient = both(energy, variable)
    for index in ([0], [8], [3, 1], [2, 4, 6, 8, 1]):
        own_value, own_gradient = both(energy.select(index), variable[index])
        torch.testing.assert_close(own_value, value[index], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own_gradient, gradient[index], rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def test_what_is_written_into_the_callers_data_later_changes_no_energy(flow):
    y, gamma = torch.rand(2, *flow.shape, dtype=flow.like.dtype), torch.ones(2)
    energy = Energy(flow, SquaredMisfit(measure.Identity(flow.shape), y), LatentNorm(gamma))
    z = torch.ones(2, flow.latent_dim, dtype=flow.like.dtype)
    before = energy(z)
    y.add_(1)
    gamma.mul_(2)
    assert torch.equal(energy(z), before)


def test_nan_stays_with_its_image(flow):
    operator, y, z = problem_of(flow)
    for penalty in (None, LatentNorm(1.0), FlowLikelihood(1.0)):
        energy = Energy(flow, SquaredMisfit(operator, y), penalty)
        broken = z.clone()
        broken[1, 0] = torch.nan
        broken.requires_grad_()
        value = energy(broken)
        (gradient,) = torch.autograd.grad(value.sum(), broken)
        assert value[1].isnan() and torch.equal(value[[0, 2]], energy(z)[[0, 2]])
        assert torch.isfinite(gradient[[0, 2]]).all()


def test_the_flow_is_passed_once(flow):
    operator, y, z = problem_of(flow)
    passes = []
    handle = flow.bijection.levels[0].parts[-1].conditioner.register_forward_hook(lambda *_: passes.append(1))
    try:
        Energy(flow, SquaredMisfit(operator, y), FlowLikelihood(1.0))(z)
        assert len(passes) == 1
        Energy(flow, SquaredMisfit(operator, y), FlowLikelihood(1.0), space="x")(z.view(-1, *SHAPE))
        assert len(passes) == 2
    finally:
        handle.remove()


def test_select_repeats_and_reorders(flow):
    operator, y, z = problem_of(flow)
    energy = Energy(flow, SquaredMisfit(operator, y), LatentNorm(1.0))
    assert len(energy.select([2, 0, 0, 2])) == 4
    torch.testing.assert_close(energy.select([2, 0, 0])(z[[2, 0, 0]]), energy(z)[[2, 0, 0]])


class NoDensity(torch.nn.Module):
    shape = (1, 2, 2)
    latent_dim = 2

    def decode(self, z):
        return z.repeat(1, 2).view(-1, 1, 2, 2)


def misfit(batch=2):
    return SquaredMisfit(measure.Identity((1, 2, 2)), torch.rand(batch, 1, 2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LatentNorm(-1.0), "gamma: got -1.0"),
        (lambda: FlowLikelihood(math.nan), "beta: got nan"),
        (lambda: SquaredMisfit(measure.Identity((1, 2, 2)), torch.rand(2, 4)), "y: got shape"),
        (lambda: SquaredMisfit(measure.Identity((2,)), torch.tensor([[1.0, torch.nan]])), "y: got 1 NaN"),
        (lambda: Energy(Exponential(), misfit()), "misfit: got an operator on"),
        (lambda: Energy(NoDensity(), misfit(), space="w"), "space: got 'w'"),
        (lambda: Energy(NoDensity(), misfit())(torch.rand(2, 3)), "z: got shape"),
        (lambda: Energy(NoDensity(), misfit())(torch.rand(3, 2)), "another batch than the 2 images"),
        (
            lambda: Energy(NoDensity(), misfit(), FlowLikelihood(1.0))(torch.rand(2, 2)),
            "which has no density: no domain, encode, encode_with_log_det, decode_with_log_det; allowed:",
        ),
        (lambda: Energy(NoDensity(), misfit(), LatentNorm(1.0), "x")(torch.rand(2, 1, 2, 2)), "has no density"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class FromReference(Penalty):
    """‖z − r‖², with a reference r for each image."""

    def __init__(self, reference):
        self.reference = reference

    def __call__(self, point):
        return (point.z - self.reference).square().sum(1)

    def select(self, index):
        return FromReference(self.reference[index])


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


EACH = torch.tensor([0.1, 0.0, 2.0, 0.7])
PENALTIES = {
    "none": None,
    "norm": LatentNorm(0.5),
    "norm, a weight for each": LatentNorm(EACH),
    "squared norm": LatentNorm(0.5, squared=True),
    "squared norm, a weight for each": LatentNorm(EACH, squared=True),
    "likelihood": FlowLikelihood(0.2),
    "likelihood, a weight for each": FlowLikelihood(0.2 * EACH),
    "discriminator": Discrimination(LogRatio(lambda x: x.square().flatten(1).mean(1), 1.5, -1.0), 2.0),
    "discriminator, a weight for each": Discrimination(LogRatio(lambda x: x.sin().flatten(1).sum(1)), EACH),
    "a reference for each": FromReference(0.1 * draws(4, 192, seed=3)),
}
OPERATORS = {
    "one for all": lambda shape: measure.Gaussian(shape, 50, seed=1),
    "one for each": lambda shape: Masks((draws(4, *shape, seed=2) > 0).double()),
}


def misfits(flow, operator):
    y = operator(flow.decode(draws(4, flow.latent_dim, seed=4)))
    noise = measure.GaussianNoise(0.5)
    return {"squared": SquaredMisfit(operator, y), "noise": NoiseMisfit(measure.Problem(operator, noise), y)}


def test_every_penalty_has_an_example():
    public = {
        c.__name__
        for c in kinds(Penalty, energies)
        if c.__module__.startswith("companion.") and not c.__name__.startswith("_")
    }
    lacking = public - {type(penalty).__name__ for penalty in PENALTIES.values()}
    assert not lacking, f"no example of {lacking} in PENALTIES of this file"


@pytest.mark.parametrize("space", ["z", "x"])
@pytest.mark.parametrize("penalty", [name for name in PENALTIES if PENALTIES[name]])
@pytest.mark.parametrize("size", [0.0, 0.5])
def test_a_penalty_gives_a_finite_value_and_gradient_and_leaves_the_point_alone(flow, penalty, space, size):
    """Also of images all black and of latents all zero, where many a norm has no derivative."""
    term = PENALTIES[penalty]
    shape = (flow.latent_dim,) if space == "z" else flow.shape
    variable = (size * draws(4, *shape, seed=7)).requires_grad_()
    point = Energy(flow, misfits(flow, OPERATORS["one for all"](flow.shape))["squared"], term, space).at(variable)
    x, z = point.x.detach().clone(), point.z.detach().clone()
    value = term(point)
    assert value.shape == (4,), f"{penalty}: got values of shape {tuple(value.shape)}; allowed: (4,)"
    (gradient,) = torch.autograd.grad(value.sum(), variable)
    assert value.isfinite().all() and gradient.isfinite().all(), f"{penalty}: a value or gradient is not finite"
    torch.testing.assert_close((point.x, point.z), (x, z), msg=f"{penalty} changes the point")


@pytest.mark.parametrize("space", ["z", "x"])
@pytest.mark.parametrize("penalty", [name for name in PENALTIES if PENALTIES[name]])
def test_a_penaltys_gradient_is_that_of_its_value(flow, penalty, space):
    """Along a random direction, by central differences."""
    energy = Energy(flow, misfits(flow, OPERATORS["one for all"](flow.shape))["squared"], PENALTIES[penalty], space)
    shape = (flow.latent_dim,) if space == "z" else flow.shape
    at, direction = 0.2 * draws(4, *shape, seed=7), draws(4, *shape, seed=8)
    at = at if space == "z" else 0.5 + 0.2 * at  # inside the flow's domain

    def value(variable):
        return PENALTIES[penalty](energy.at(variable))

    variable = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(variable).sum(), variable)
    by_hand = (value(at + 1e-6 * direction) - value(at - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("space", ["z", "x"])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("misfit", ["squared", "noise"])
def test_every_term_alone_is_what_it_is_in_a_batch(flow, misfit, operator, penalty, space):
    term = misfits(flow, OPERATORS[operator](flow.shape))[misfit]
    energy = Energy(flow, term, PENALTIES[penalty], space)
    z = 0.5 * draws(4, flow.latent_dim, seed=5)
    variable = z if space == "z" else flow.decode(z)
    value, gradient = energy.value_and_gradient(variable)
    torch.testing.assert_close(value, energy(variable))
    for index in ([0], [2, 1], torch.tensor([3, 0, 0])):
        own_value, own_gradient = energy.select(index).value_and_gradient(variable[index])
        torch.testing.assert_close(own_value, value[index])
        torch.testing.assert_close(own_gradient, gradient[index])
        again = energy.select([0, 3, 2, 1]).select([0, 3])
        torch.testing.assert_close(again(variable[[0, 1]]), value[[0, 1]])


@pytest.mark.parametrize("penalty", ["norm, a weight for each", "a reference for each"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_minimised_together_each_image_ends_where_it_does_alone(operator, penalty):
    flow = Affine()
    energy = Energy(flow, misfits(flow, OPERATORS[operator](flow.shape))["squared"], PENALTIES[penalty])
    start = draws(4, flow.latent_dim, seed=6)
    together = recover.minimise(energy, start)
    assert together.converged.all() and len(set(together.evaluations.tolist())) > 1  # finished images drop out
    for i in range(4):
        alone = recover.minimise(energy.select([i]), start[i : i + 1])
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone.energy[0], together.energy[i])


class Affine(torch.nn.Module):
    """x = (1 + k) z, pixel by pixel: every energy of a norm is convex."""

    shape, latent_dim = SHAPE, 192

    def decode(self, z):
        return (torch.linspace(0.5, 2, 192, dtype=torch.float64) * z).view(-1, *SHAPE)


def test_terms_are_a_weighted_sum_and_tempering_scales_the_misfits_alone(flow):
    operator, y, z = problem_of(flow)
    misfit, other = SquaredMisfit(operator, y), NoiseMisfit(measure.Problem(operator, measure.GaussianNoise(2.0)), y)
    energy = Energy(flow, terms=[(0.5, LatentNorm(2.0)), (3.0, misfit), (0.25, other), (2.0, FlowLikelihood(0.1))])
    x = flow.decode(z)
    prior = z.norm(dim=1) - 0.2 * flow.log_prob_latent(z) + 0.2 * (flow.log_prob_latent(z) - flow.log_prob(x))
    fit = 3 * misfit(x) + 0.25 * other(x)
    torch.testing.assert_close(energy(z), prior + fit)
    torch.testing.assert_close(energy.tempered(0.1)(z), prior + 0.1 * fit)
    torch.testing.assert_close(energy.tempered(0)(z), prior)
    torch.testing.assert_close(energy.tempered(0.5).select([2, 0])(z[[2, 0]]), (prior + 0.5 * fit)[[2, 0]])


def test_measurements_that_would_broadcast_are_refused():
    class Grey(measure.Operator):
        def apply(self, x):
            return x.mean(1, keepdim=True)

    x = torch.rand(4, *SHAPE)
    misfit = SquaredMisfit(Grey(SHAPE, (8, 8)), x.mean(1))
    with pytest.raises(ValueError, match=r"\(4, 1, 8, 8\).*allowed.*\(4, 8, 8\)"):
        misfit(x)


class Constant(Penalty):
    def __call__(self, point):
        return torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Energy(NoDensity(), misfit(), lambda p: p.z.sum(1)), "penalty: got function; allowed: an energy.M"),
        (lambda: Energy(NoDensity(), lambda x: x.sum(1)), "misfit: got function; allowed: an energy.Misfit"),
        (lambda: Energy(NoDensity(), misfit(), Constant())(torch.rand(2, 2)), r"Constant: got values of shape \(3,\)"),
        (
            lambda: Energy(NoDensity(), misfit(), LatentNorm(torch.ones(3)))(torch.rand(2, 2)),
            r"weights of LatentNorm: got values of shape \(3,\)",
        ),
        (lambda: SquaredMisfit(torch.nn.Linear(2, 2), torch.rand(2, 2)), "operator: got Linear; allowed: a measure.Op"),
        (lambda: NoiseMisfit(measure.Identity((2,)), torch.rand(2, 2)), "problem: got Identity; allowed: a measure.Pr"),
        (lambda: energies.ProbitMisfit(len, torch.rand(2, 2)), "problem: got builtin_function.*; allowed: a measure.P"),
        (
            lambda: energies.PerceptronMisfit(None, torch.rand(2, 2)),
            "problem: got NoneType; allowed: a measure.Problem",
        ),
        (lambda: Energy(lambda z: z, misfit()), "prior: got function, which has no shape and no latent_dim and no dec"),
        (lambda: LatentNorm(torch.tensor([1.0, -1.0])), "gamma: got -1.0"),
        (lambda: Energy(NoDensity(), terms=[(1.0, LatentNorm(1.0))]), r"terms: got misfits of \[\] images"),
        (lambda: Energy(NoDensity(), terms=[(1.0, misfit()), (1.0, misfit(3))]), r"terms: got misfits of \[2, 3\]"),
        (lambda: Energy(NoDensity(), terms=[(-1.0, misfit())]), "weight: got -1.0"),
        (lambda: Energy(NoDensity(), misfit(), terms=[(1.0, misfit())]), "terms: got some, and a misfit"),
        (lambda: Energy(NoDensity(), misfit()).tempered(-2), "beta: got -2"),
        (
            lambda: recover.flow_latent(load("glow-mnist"), measure.Identity((1, 28, 28)), draws(1, 1, 28, 28)),
            "y: got torch.float64 on cpu; allowed: torch.float32 on cpu, as the prior",
        ),
    ],
)
def test_terms_that_mix_images_or_dtypes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
