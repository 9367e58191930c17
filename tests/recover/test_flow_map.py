"""MAP estimates: the Wiener filter for a Gaussian prior, the papers' losses as special cases, and the starts."""

import pytest
import torch
from operator_cases import Masks, PerImageNoise
from test_estimators import LinearPrior, normal

from companion import measure, priors, recover
from companion.energy import Energy, FlowLikelihood, LatentNorm, NoiseMisfit, SquaredMisfit

OPERATOR = measure.Gaussian((1, 3, 4), 7, seed=1)
WHITE = measure.Problem(OPERATOR, measure.GaussianNoise(0.4))
WAVES = measure.Problem(OPERATOR, measure.SinusoidalNoise(0.6, mean=0.2))
Y = normal(3, 7, seed=2)


def gaussian(prior):
    return prior.weight, prior.bias.view(prior.shape)


@pytest.mark.parametrize("problem", [WHITE, WAVES])
@pytest.mark.parametrize("space", ["z", "x"])
@pytest.mark.parametrize("start", ["zero", "normal", None])
def test_for_a_gaussian_prior_it_is_the_wiener_solution(problem, space, start):
    prior = LinearPrior()
    covariance, matrix = prior.weight @ prior.weight.T, OPERATOR.matrix(Y)
    noise = problem.noise.std_map((7,)).square() * torch.ones(7, dtype=torch.float64)
    gain = covariance @ matrix.T @ torch.linalg.inv(matrix @ covariance @ matrix.T + noise.diag())
    expected = prior.bias + (Y - problem.noise.mean - prior.bias @ matrix.T) @ gain.T
    found = recover.flow_map(prior, problem, Y, space=space, start=start, max_iterations=2000)
    assert (found.x.flatten(1) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("space", ["z", "x"])
def test_of_a_linear_flow_it_is_the_gaussian_map(space):
    weight, mean = normal(12, 12, seed=5) / 4 + torch.eye(12).double(), normal(1, 3, 4, seed=6)
    exact = recover.gaussian_map(OPERATOR, Y, weight, mean, 0.4)
    prior = priors.Linear(weight, mean, (1, 3, 4))
    found = recover.flow_map(prior, WHITE, Y, space=space, start="zero", max_iterations=2000)
    assert (found.x - exact.x).abs().max() < 1e-4
    known = recover.flow_map(prior, WHITE, Y, space=space, gaussian=(weight, mean), max_iterations=2000)
    assert known.evaluations.max() < 10 and (known.x - exact.x).abs().max() < 1e-6


def flow():
    return priors.Glow((1, 4, 4), levels=1, steps=2, width=8).double().eval().requires_grad_(False)


def perturbed():
    model = flow()
    for k, p in enumerate(model.parameters()):
        p.add_(0.1 * normal(*p.shape, seed=k))
    return model


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_white_noise_gives_asims_loss_and_volume_preserving_flows_boras(beta):
    """Whang et al. 2020, sec. 3.3: equal up to a factor and a constant, so that minimisers are the same."""
    std, operator = 0.3, measure.Gaussian((1, 4, 4), 6)
    problem, y = measure.Problem(operator, measure.GaussianNoise(std)), normal(3, 6, seed=1)
    z = normal(3, 16, seed=3), normal(3, 16, seed=4)

    def change(energy):
        return energy(z[0]) - energy(z[1])

    model = perturbed()
    whang = change(Energy(model, NoiseMisfit(problem, y), FlowLikelihood(beta)))
    asim = change(Energy(model, SquaredMisfit(operator, y), FlowLikelihood(2 * std**2 * beta)))
    torch.testing.assert_close(2 * std**2 * whang, asim)
    additive = priors.Glow((1, 4, 4), levels=1, steps=2, width=8, coupling="additive", conv1x1="rotation")
    additive = additive.double().eval().requires_grad_(False)
    whang = change(Energy(additive, NoiseMisfit(problem, y), FlowLikelihood(beta)))
    bora = change(Energy(additive, SquaredMisfit(operator, y), LatentNorm(std**2 * beta, squared=True)))
    torch.testing.assert_close(2 * std**2 * whang, bora)


def test_the_starts_are_what_they_say():
    prior, images = LinearPrior(), measure.Problem(measure.Identity((1, 3, 4)), measure.GaussianNoise(0.3))
    y = normal(3, 1, 3, 4, seed=7)

    def first(**options):
        return recover.flow_map(prior, images, y, max_evaluations=1, **options)

    torch.testing.assert_close(first(start="y").x, y)
    assert not first().z.any() and not first(start="zero").z.any()
    wiener = recover.gaussian_map(images.operator, y, *gaussian(prior), 0.3).x
    for space in ("z", "x"):
        torch.testing.assert_close(first(gaussian=gaussian(prior), space=space).x, wiener)
    camera = measure.Problem(images.operator, measure.PoissonGaussianNoise())
    unused = recover.flow_map(prior, camera, y, gaussian=gaussian(prior), max_evaluations=1)
    assert not unused.z.any() and all("started from zero, as there is no Gaussian" in why for why in unused.reason)
    levels = measure.Problem(images.operator, PerImageNoise(torch.tensor([0.1, 0.2, 0.3])))
    masks = measure.Problem(Masks(torch.ones_like(y, dtype=torch.bool)), images.noise)
    for each in (levels, masks):  # data of one image say nothing of another's
        unused = recover.flow_map(prior, each, y, gaussian=gaussian(prior), max_evaluations=1)
        assert not unused.z.any() and all("as there is no Gaussian" in why for why in unused.reason)
        with pytest.raises(ValueError, match="linear operator and normal noise that all images share"):
            recover.flow_map(prior, each, y, gaussian=gaussian(prior), start="gaussian")
    given = normal(3, 12, seed=1)
    torch.testing.assert_close(first(start=given).z, given)
    few = [first(start="normal", seed=3, restarts=k) for k in (1, 4)]
    assert (few[1].energy <= few[0].energy).all() and (few[1].evaluations == 4).all()


def test_a_start_that_the_flow_cannot_represent_is_moved_inside():
    model = priors.Glow((1, 4, 4), levels=1, steps=1, width=4, pixels="logit").double().eval().requires_grad_(False)
    problem = measure.Problem(measure.Identity(model.shape), measure.GaussianNoise(0.3))
    y = normal(2, *model.shape)
    assert y.min() < 0 and recover.flow_map(model, problem, y, start="y", max_evaluations=1).x.isfinite().all()


def test_an_image_is_found_alone_as_in_its_batch():
    prior = LinearPrior()
    options = {"gaussian": gaussian(prior), "start": "normal", "restarts": 2, "seed": 5}
    together = recover.flow_map(prior, WAVES, Y, **options)
    alone = recover.flow_map(prior, WAVES, Y[:1], **options)
    torch.testing.assert_close(together.x[:1], alone.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "mean"}, "start: got 'mean'; allowed: gaussian, zero, y, normal"),
        ({"start": "gaussian"}, "start: got 'gaussian'; allowed: with a Gaussian prior"),
        ({"start": "y"}, r"y: got shape \(3, 7\)"),
        ({"start": "normal", "restarts": 0}, "restarts: got 0"),
        ({"start": normal(3, 11)}, "z0: got shape"),
        ({"beta": -1.0}, "beta: got -1.0"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        recover.flow_map(LinearPrior(), WHITE, Y, **options)
