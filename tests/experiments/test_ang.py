"""Posterior sampling: problems, intervals, designs and light, against closed forms and scikit-learn."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize
from sklearn import metrics

from companion import energy, experiments, measure, priors, sample
from companion.experiments.ang import (
    adaptive,
    calibration,
    calibration_problems,
    discriminator,
    discriminator_flow,
    estimators,
    optimisation,
    problems,
)
from companion.experiments.parts import Part

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae():
    return priors.load("vae-mnist")


@pytest.mark.parametrize("name", ["prior", "digits"])
def test_the_first_truths_do_not_depend_on_how_many_follow(vae, name):
    part = Part(CPU, 3)
    many, few = (problems.truths(part, vae, name, number) for number in (5, 2))
    assert many.shape == (5, 1, 28, 28) and many.min() >= 0 and many.max() <= 1
    torch.testing.assert_close(many[:2], few)
    assert not torch.equal(many, problems.truths(part, vae, name, 5, "train"))


def test_digits_stand_in_mnists_frame(vae):
    x = problems.truths(Part(CPU, 0), vae, "digits", 20)
    assert (x[..., :4, :] == 0).all() and (x[..., -4:] == 0).all()
    assert x[..., 4:24, 4:24].amax((1, 2, 3)).min() > 0.9


def test_each_image_has_pixels_and_noise_of_its_own(vae):
    part, truth = Part(CPU, 0), torch.full((3, 1, 28, 28), 0.5)
    problem, y = problems.observed(part, truth, problems.Case("inpainting", 200, 0.1))
    assert problem.operator.mask.flatten(1).sum(1).tolist() == [200] * 3
    assert not torch.equal(problem.operator.mask[0], problem.operator.mask[1])
    assert abs((y - 0.5).std() / 0.1 - 1) < 0.1  # 600 draws: 3 standard errors
    for case in (problems.Case("compressed", 150, 0.2), problems.Case("denoising", 0, 0.2)):
        problem, y = problems.observed(part, truth, case)
        assert abs((y - problem.operator(truth)).std() / 0.2 - 1) < 0.15
    energy = problems.posterior(vae, problem, y)
    z = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    misfit = ((vae.decode(z) - y).square().sum((1, 2, 3)) - (vae.decode(0 * z) - y).square().sum((1, 2, 3))) / 0.08
    torch.testing.assert_close(energy(z) - energy(0 * z), misfit + z.square().sum(1) / 2, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("draws", [19, 39, 59])
def test_order_statistics_of_exact_draws_hold_nine_tenths(draws):
    source = torch.Generator().manual_seed(draws)
    x, truth = torch.randn(draws, 20_000, generator=source), torch.randn(20_000, generator=source)
    assert abs(float(calibration.within(x, truth).float().mean()) - 0.9) < 4 * (0.09 / 20_000) ** 0.5
    inside, counted = torch.tensor([[True, False, True, False]]), torch.tensor([[True, True, True, False]])
    assert calibration.share(inside, counted).tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize("data", ["digits", "prior"])
def test_a_fixed_design_knows_the_covariance_of_training_images_or_of_the_models_draws(vae, data):
    part = Part(CPU, 0)
    mean, covariance = adaptive.training_covariance(part, vae, data, 50)
    flat = problems.truths(part, vae, data, 50, "train").flatten(1).double().numpy()
    np.testing.assert_allclose(mean, flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(flat.T, bias=True), atol=1e-5)


def test_draws_given_rows_are_those_of_the_exact_posterior():
    weight, std, candidates = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double(), 0.2, 9
    rows = adaptive._rows(Part(CPU, 0), priors.Linear(weight, shape=(1, 2, 3)), candidates)
    x = (weight @ torch.tensor([0.5, -1.0]).double()).view(1, 1, 2, 3)
    torch.testing.assert_close(rows.images(rows.of(x)), x)
    seen = torch.zeros(1, *rows.shape, dtype=torch.bool)
    seen[0, 0, [1, 4, 7]] = True
    y = rows.of(x)[seen][None] + 0.1
    drawn = rows.images(sample.LatentPosterior(rows, std, chains=20, draws=60, search=40)(seen, y, 1)).flatten(1)
    given = rows.matrix[[1, 4, 7]] @ weight
    covariance = torch.linalg.inv(torch.eye(2) + given.T @ given / std**2)
    exact, widths = weight @ covariance @ given.T @ y[0] / std**2, (weight @ covariance @ weight.T).diagonal().sqrt()
    assert ((drawn.mean(0) - exact).abs() / widths).max() < 0.12
    assert (drawn.std(0) / widths - 1).abs().max() < 0.12


def test_the_printed_ucb_adds_variances(vae):
    def normal(mask, y, round_):
        return torch.randn(500, 2, 784, generator=torch.Generator().manual_seed(round_)) * 0.3 + 0.1

    x, squared = normal(None, None, 1), optimisation.squared_spread(normal)(None, None, 1)
    torch.testing.assert_close(squared.mean(0) + 50 * squared.std(0), x.mean(0) + 50 * x.var(0))


def test_light_falls_along_a_slope(vae):
    x = torch.zeros(40, 1, 28, 28)
    found = optimisation.lit(Part(CPU, 0), x, 2, "test")
    down, up = optimisation.slopes(2, (1, 28, 28))
    kinds = [torch.equal(image, down) for image in found]
    assert 8 < sum(kinds) < 32
    assert all(torch.equal(image, up) for image, is_down in zip(found, kinds, strict=True) if not is_down)
    sloped, z = optimisation.Sloped(vae, down), torch.zeros(2, 20)
    torch.testing.assert_close(sloped.decode(z), 0.5 * vae.decode(z) + down)


def matern(distance, length):
    """Matérn's covariance of smoothness 5/2 and variance 1 (Rasmussen and Williams 2006, eq. 4.17)."""
    scaled = 5**0.5 * distance / length
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)


@pytest.mark.parametrize(
    ("truth", "rival"), [("gauss", "matern"), ("matern", "gauss")], ids=["squared exponential", "Matérn"]
)
def test_the_process_is_the_likeliest_by_hand(truth, rival):
    """Kernel, amplitude and length against SciPy's density, maximised by a search without gradients."""
    std, side = 0.05, 7
    covariances = {"gauss": lambda distance, length: np.exp(-(distance**2) / (2 * length**2)), "matern": matern}
    at = optimisation.places((1, side, side))
    assert at[side + 2].tolist() == [1.0, 2.0]  # row and column, as images are flattened
    distance = np.linalg.norm(at[:, None] - at[None], axis=2)
    true = 0.2**2 * covariances[truth](distance, 2.5) + std**2 * np.eye(len(at))
    values = np.random.default_rng(0).multivariate_normal(np.zeros(len(at)), true, size=12)
    found = optimisation.likeliest(at, values.T, std)

    def surprise(logs, name):
        covariance = np.exp(logs[0]) * covariances[name](distance, np.exp(logs[1])) + std**2 * np.eye(len(at))
        return -stats.multivariate_normal.logpdf(values, cov=covariance).sum()

    best = {name: minimize(surprise, [-3.0, 1.0], (name,), "Nelder-Mead") for name in covariances}
    assert best[truth].fun < best[rival].fun - 1
    assert found.log_marginal_likelihood_value_ == pytest.approx(-best[truth].fun, abs=1e-3)
    np.testing.assert_allclose(found.kernel_.theta, best[truth].x, atol=0.01)


def test_a_refitted_process_predicts_from_the_measured_pixels_alone():
    """Means and deviations of its draws by the normal equations, with the likeliest kernel of those pixels."""
    shape, std, draws = (1, 6, 5), 0.05, 20_000
    mask = torch.zeros(2, *shape, dtype=torch.bool)
    mask.view(2, -1)[0, [1, 7, 13, 29]] = mask.view(2, -1)[1, [0, 3, 20, 22]] = True
    y = torch.tensor([[0.1, 0.5, 0.7, 0.2], [0.9, 0.8, 0.2, 0.3]])
    posterior, at = optimisation.refitted(shape, std, 0, draws), optimisation.places(shape)
    x = posterior(mask, y, 4).numpy()
    for k in range(2):
        seen, level = mask[k].flatten().numpy(), float(y[k].mean())
        covariance = optimisation.likeliest(at[seen], y[k].double().numpy() - level, std).kernel_(at)
        gain = covariance[:, seen] @ np.linalg.inv(covariance[seen][:, seen] + std**2 * np.eye(4))
        mean = level + gain @ (y[k].double().numpy() - level)
        deviation = np.sqrt((covariance - gain @ covariance[seen]).diagonal())
        assert (np.abs(x[:, k].mean(0) - mean) / deviation).max() < 4.5 / draws**0.5
        np.testing.assert_allclose(x[:, k].std(0), deviation, rtol=4.5 / (2 * draws) ** 0.5)
    np.testing.assert_allclose(posterior(mask[:1], y[:1], 4)[:, 0], x[:, 0], rtol=1e-5)  # whoever else is in the batch
    before = posterior(torch.zeros_like(mask), y[:, :0], 0)
    assert len(set(before.mean(0).argmax(1).tolist())) == 2  # every pixel is as good: a different one for each image
    assert (before.mean((0, 2)) - 0.5).abs().max() < 0.01


@pytest.mark.parametrize("kind", optimisation.PRIORS)
def test_a_rule_searches_with_the_generator_that_it_names(kind):
    settings = optimisation.Settings(data="prior", images=1, training=1, rounds=1, chains=2)
    found = optimisation._posterior(settings, Part(CPU, 0), torch.zeros(1, 1, 28, 28), kind, 2)
    prior = priors.load(f"{kind}-mnist")
    z = torch.randn(3, prior.latent_dim, generator=torch.Generator().manual_seed(0))
    for hypothesis, slope in zip(found.priors, optimisation.slopes(2, (1, 28, 28)), strict=True):
        torch.testing.assert_close(hypothesis.decode(z), 0.5 * prior.decode(z) + slope)


def test_truths_rank_evenly_among_draws_that_are_exact(monkeypatch):
    """Laplace's draws of a linear prior's posterior are: every rank of 0 … 19 then has the same chance."""
    weight = 0.05 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    prior = priors.Linear(weight, torch.full((6,), 0.5), (1, 2, 3))
    monkeypatch.setattr(calibration.shared, "prior", lambda part, name: prior)
    case, problems_ = ("inpainting", 3, 0.1), 300
    settings = calibration.Ranks(problems=problems_, budget=30, search=15, draws=19, cases=(case,))
    arrays = calibration._rank(settings, Part(CPU, 0), (case, "laplace"))[1]
    for column in arrays["rank"].values.T:
        assert stats.chisquare(np.bincount(column, minlength=20)).pvalue > 1e-3
    inside = arrays["coverage"].values
    assert abs(np.nanmean(inside) - 0.9) < 4 * np.nanstd(inside) / problems_**0.5


def tilted_settings(**changes):
    sizes = {"calibration": 1, "labelled": 1, "draws": 1, "budget": 1, "images": 1, "chains": 1, "posterior": 1}
    return discriminator.Settings(data="tilted", runs=(), **(sizes | changes))


@pytest.mark.slow
def test_the_log_loss_falls_when_it_is_descended_and_the_prior_keeps_its_discriminator():
    part, gan, vae = Part(CPU, 0), priors.load("gan-mnist"), priors.load("vae-mnist")
    settings = replace(tilted_settings(tuning=20), data="digits")
    held_out = discriminator.real_images(settings, part, 200, "test"), problems.truths(part, vae, "prior", 200)
    losses = {}
    for how in ("as trained", "logistic", "theorem 2"):
        judge = discriminator.judge(settings, part, vae, how, partial(discriminator.real_images, settings, part))
        with torch.no_grad():
            losses[how] = float(discriminator.log_loss(judge, *held_out))
    assert losses["logistic"] < losses["as trained"] < losses["theorem 2"]
    with torch.no_grad():
        assert float(discriminator.log_loss(gan.discriminate, *held_out)) == pytest.approx(losses["as trained"])


@pytest.mark.slow
def test_the_corrector_tells_the_two_generators_apart():
    part, gan, vae = Part(CPU, 0), priors.load("gan-mnist"), priors.load("vae-mnist")
    settings = tilted_settings(tuning=20)
    corrected = discriminator.judge(
        settings, part, vae, "corrected", partial(discriminator.real_images, settings, part)
    )
    held_out = [problems.truths(part, prior, "prior", 200).detach() for prior in (gan, vae)]
    with torch.no_grad():
        found = discriminator.log_loss(lambda x: corrected(x) - gan.discriminate(x), *held_out)
        before = discriminator.log_loss(gan.discriminate, *held_out)
    assert float(found) < min(float(before), 0.69)  # a coin's is log 2


def test_the_log_loss_is_scikit_learns():
    d = torch.randn(7, generator=torch.Generator().manual_seed(0))
    expected = metrics.log_loss([1, 1, 1, 1, 0, 0, 0, 0], d.sigmoid()[[0, 1, 2, 3, 4, 5, 6, 6]], labels=[0, 1])
    found = discriminator.log_loss(lambda x: x, d[:4], d[[4, 5, 6, 6]])
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_energy_distance_of_numbers_is_scipys(weighted):
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, generator=source), 0.5 + torch.randn(20, generator=source)
    weights = torch.rand(30, generator=source).softmax(0) if weighted else None
    found = discriminator.energy_distance(x.view(-1, 1, 1, 1), y.view(-1, 1, 1, 1), weights)
    assert found == pytest.approx(stats.energy_distance(x, y, weights), rel=1e-5)


def test_what_is_measured_for_a_smoothed_flow_has_its_noise_too():
    sizes = {"data": "digits", "runs": (), "calibration": 1, "labelled": 1, "draws": 1, "budget": 1, "chains": 1}
    settings = discriminator_flow.Settings(**sizes, images=9, posterior=1, m=300, std=0.2, leapfrogs=1, smoothing=0.3)
    truth, problem, y = discriminator_flow.measured(settings, Part(CPU, 0))
    known = discriminator_flow.noisy(settings, Part(CPU, 0), 9, "test")
    assert (known - truth).std() == pytest.approx(0.3, rel=0.05)
    assert (y - problem.operator.forward(known)).std() == pytest.approx(0.2, rel=0.05)  # 2,700 draws


@pytest.mark.slow
def test_tilted_images_have_the_log_ratio_that_they_are_said_to_have():
    """Then log E_G exp(d) = −log E exp(−d) over them: either side estimates the constant of the ratio."""
    part, gan, settings = Part(CPU, 0), priors.load("gan-mnist"), tilted_settings()
    tilted = discriminator.real_images(settings, part, 200, "test")
    generated = problems.truths(part, gan, "prior", 1000)
    with torch.no_grad():
        d, before = gan.discriminate(tilted).double(), gan.discriminate(generated).double()
    back, there = (-d).exp(), before.exp()
    error = (back.std() / back.mean() / 200**0.5).hypot(there.std() / there.mean() / 1000**0.5)
    assert abs(float(there.mean().log() + back.mean().log())) < 3 * float(error)
    assert d.mean() > before.mean() + 0.5


@pytest.mark.parametrize("metrical", [False, True])
def test_a_step_without_noise_draws_a_normal_posterior_together(metrical):
    """With precision P, a latent z becomes μ + (I − h²/2 P)(z − μ); with the metric C = P⁻¹, μ + (1 − h²/2)(z − μ)."""
    weight = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()
    prior = priors.Linear(weight, shape=(1, 2, 3))
    problem = measure.Problem(measure.Identity((1, 2, 3), domain="real"), measure.GaussianNoise(0.5))
    y = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    target = energy.Energy(prior, energy.NoiseMisfit(problem, y), energy.LatentNorm(0.5, squared=True))
    precision = torch.eye(2) + weight.T @ weight / 0.25
    mode = torch.linalg.solve(precision, weight.T @ y.flatten(1).T / 0.25).T
    z = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(2)).double()
    step, metric = torch.tensor([0.3, 0.7]).double(), sample.gauss_newton(target, mode) if metrical else None
    x = prior.decode(z.flatten(0, 1)).view(5, 2, 1, 2, 3)
    last, latent, image = estimators.estimates(target, z, x, step, metric)
    shrink = torch.eye(2) - (step.square() / 2)[:, None, None] * (torch.eye(2).double() if metrical else precision)
    for found, before in ((last, z[-1]), (latent, z.mean(0))):
        after = mode + torch.einsum("kij,kj->ki", shrink, before - mode)
        torch.testing.assert_close(found[0], prior.decode(before))
        torch.testing.assert_close(found[1], prior.decode(after), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(image[0], latent[0])  # a linear prior's mean image is the image of the mean


def test_searches_and_restarts_are_judged_by_the_best_end_that_any_found():
    found = experiments.load("ang.modes", "quick")
    ends = np.concatenate([found.take("restart gap")[0], found.take("gap")[0]])
    assert (ends >= 0).all()
    assert (found.take("gap")[0].min(0) < 0.5).all()  # some search finds the best energy of three digits, or nearly
    here = found.take("restart gap") == 0
    assert (found.take("apart")[here] == 0).all()
    assert (found.take("informed") <= 20).all()


def test_the_model_list_is_greedy_on_the_models_draws_whatever_the_digits_are(vae):
    options = {"images": 2, "training": 60, "rounds": 2, "chains": 2, "draws": 10, "search": 3}
    _, covariance = adaptive.training_covariance(Part(CPU, 0), vae, "prior", 60)
    best = sample.greedy(covariance, 10, 0.1).tolist()
    _, arrays = adaptive._sense(adaptive.Settings(data="digits", **options), Part(CPU, 0), "fixed, model")
    assert arrays["place"].values.tolist() == [best, best]
    _, other = adaptive._sense(adaptive.Settings(data="digits", **options), Part(CPU, 0), "fixed, conditional")
    assert other["place"].values.tolist()[0] != best


def test_bits_have_the_chances_with_which_they_are_drawn():
    settings = calibration_problems.Settings(problems=1, budget=1, draws=19, side=2, bits=40)
    prior, problem, told = calibration_problems.posed(settings, Part(CPU, 0), "one bit")
    x = prior.decode(torch.zeros(1, 20))
    linear, std = problem.operator(x), settings.before
    drawn = torch.cat([told.observe(x, seed) for seed in range(2000)])
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    chance = stats.norm.cdf(linear[0].detach().numpy() / std)
    assert np.abs((drawn > 0).float().mean(0).numpy() - chance).max() < 4.5 * 0.5 / 2000**0.5
    found = told.log_likelihood(x.expand(2000, -1, -1, -1), drawn).detach().numpy()
    expected = np.where(drawn > 0, np.log(chance), np.log1p(-chance)).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_stripes_called_white_have_the_mean_variance():
    settings = calibration_problems.Settings(problems=1, budget=1, draws=19, side=2)
    prior, true, told = calibration_problems.posed(settings, Part(CPU, 0), "stripes, called white")
    assert true.noise.std_map(prior.shape).square().mean() == pytest.approx(told.noise.std**2)
    assert isinstance(true.noise, measure.SinusoidalNoise)


def test_mirrored_draws_are_even_between_a_field_and_its_mirror_image():
    field = priors.GaussianField(4)
    x = field.sample(1, seed=0).expand(400, 3, -1)
    found = calibration_problems.mirrored(field, x, 0)
    turned = (found == field.mirror(x[0])).all(2)
    assert torch.equal(turned | (found == x).all(2), torch.ones(400, 3, dtype=torch.bool))
    assert (turned.float().mean(0) - 0.5).abs().max() < 4 * 0.5 / 20
    assert not torch.equal(turned[:, 0], turned[:, 1])
