import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from companion import _support, sample
from companion.priors import GAN, VAE, Glow, PointFlow, Prior, RealNVP
from companion.training import (
    Adversarial,
    Criterion,
    DenoisingScoreMatching,
    Elbo,
    Likelihood,
    PointLikelihood,
    Schedule,
    SmoothedLikelihood,
    WeightNormLikelihood,
    fit,
)
from companion.training.criteria import sliced_wasserstein

SHORT = Schedule(steps=8, batch_size=6, warm_up=2, checkpoint_every=3, validate_every=4, average=0.5)


def images(number: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(number, *shape, generator=torch.Generator().manual_seed(0))


def adversarial() -> tuple[Prior, Criterion, torch.Tensor]:
    return GAN(latent_dim=4, width=2), Adversarial(), images(12, (1, 28, 28))


def elbo() -> tuple[Prior, Criterion, torch.Tensor]:
    vae = VAE((1, 4, 4), 2, (5,), likelihood="gaussian")
    return vae, Elbo(), images(12, (1, 4, 4))


def points() -> tuple[Prior, Criterion, torch.Tensor]:
    return PointFlow(2, 5), PointLikelihood(), images(12, (2,))


def weight_norm() -> tuple[Prior, Criterion, torch.Tensor]:
    flow = RealNVP((1, 4, 4), scales=2, blocks=1, width=3)
    return flow, WeightNormLikelihood(0.1), images(12, (1, 4, 4))


def score() -> tuple[Prior, Criterion, torch.Tensor]:
    return Glow((1, 4, 4), levels=1, steps=1, width=3), DenoisingScoreMatching(0.2), images(12, (1, 4, 4))


@pytest.mark.slow
@pytest.mark.parametrize("make", [adversarial, elbo, points, weight_norm, score])
def test_a_killed_training_ends_as_an_unbroken_one(make, tmp_path, monkeypatch):
    model, criterion, data = make()
    whole = fit(model, data, criterion, SHORT, validation=data, progress=False)
    again, criterion, _ = make()
    calls, losses = [], type(criterion).losses

    def killed(self, *inputs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return losses(self, *inputs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(criterion), "losses", killed)
        fit(again, data, criterion, SHORT, validation=data, checkpoint=tmp_path / "state", progress=False)
    third, criterion, _ = make()
    resumed = fit(third, data, criterion, SHORT, validation=data, checkpoint=tmp_path / "state", progress=False)
    assert resumed.score == whole.score and len(calls) == 6
    for (name, value), other in zip(model.state_dict().items(), third.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert not third.training and not any(p.requires_grad for p in third.parameters())


def test_both_players_move_as_in_a_plain_loop():
    """One update beside binary cross-entropy and Adam written out, in double precision."""
    data = images(6, (1, 28, 28)).double()
    schedule = Schedule(steps=1, batch_size=6, learning_rate=2e-4, warm_up=0, decay=False, average=0.0, clip=1e9)
    model, plain = (GAN(latent_dim=4, width=2).double() for _ in range(2))
    seen: list[torch.Tensor] = []

    class Watched(Adversarial):
        def inputs(self, model, batch, draw):
            seen.extend(super().inputs(model, batch, draw))
            return tuple(seen)

    fit(model, data, Watched(), schedule, progress=False)
    real, z = seen
    fake = plain.decode(z)
    one, zero = torch.ones(6).double(), torch.zeros(6).double()
    first = torch.optim.Adam(plain.discriminator.parameters(), 2e-4, (0.5, 0.999))
    loss = F.binary_cross_entropy_with_logits(plain.discriminate(real), one)
    (loss + F.binary_cross_entropy_with_logits(plain.discriminate(fake.detach()), zero)).backward()
    first.step()
    second = torch.optim.Adam(plain.generator.parameters(), 2e-4, (0.5, 0.999))
    F.binary_cross_entropy_with_logits(plain.discriminate(fake), one).backward()
    second.step()
    for (name, value), other in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-12, msg=name)


def test_the_penalty_acts_on_scale_factors_alone():
    flow, _, data = weight_norm()
    batch = flow.pixels.dequantise(data, 0)
    flow.initialise(batch)
    optimisers = [WeightNormLikelihood(decay).optimisers(flow, SHORT)[0] for decay in (0.0, 0.1)]
    before = {name: p.detach().clone() for name, p in flow.named_parameters()}
    after = []
    for optimiser in optimisers:
        flow.load_state_dict(flow.state_dict() | before)
        optimiser.zero_grad()
        WeightNormLikelihood().losses(flow, batch)[0]().backward()
        optimiser.step()
        after.append({name: p.detach().clone() for name, p in flow.named_parameters()})
    changed = {name for name in before if not torch.equal(after[0][name], after[1][name])}
    assert changed and all(name.endswith("original0") for name in changed)
    decay = optimisers[1].param_groups[1]
    assert decay["weight_decay"] == 0.1 and len(decay["params"]) == sum(n.endswith("original0") for n in before)


def test_elbo_is_the_mean_of_the_models_bound():
    for likelihood in ("bernoulli", "gaussian"):
        vae = VAE((1, 4, 4), 2, (5,), likelihood=likelihood)
        x = images(5, (1, 4, 4))
        inputs = Elbo().inputs(vae, x, torch.Generator().manual_seed(3))
        assert torch.equal(inputs[0], x) == (likelihood == "bernoulli")
        assert Elbo().losses(vae, *inputs)[0]() == -vae.elbo_with(*inputs).mean()
        assert Elbo().score(vae, x) == pytest.approx(
            -vae.elbo_with(*Elbo().inputs(vae, x, _support.generator(0, "validation"))).mean().item()
        )


def test_training_improves_the_scores():
    steps = Schedule(steps=60, batch_size=32, learning_rate=1e-2, warm_up=5, average=0.5, validate_every=20)
    vae, _, _ = elbo()
    ramp = torch.linspace(0, 1, 16).view(1, 1, 4, 4).expand(64, -1, -1, -1).contiguous()
    curve = fit(vae, ramp, Elbo(), steps, validation=ramp, progress=False)
    assert curve.score[-1] < curve.score[0] - 3
    assert (vae.decode(vae.encode(ramp[:1])) - ramp[:1]).square().mean() < 0.02  # the ramp's variance is 0.1


def test_sliced_wasserstein_is_scipys_distance_along_each_direction():
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    directions = F.normalize(torch.randn(3, 20, generator=torch.Generator().manual_seed(7), dtype=torch.float64), dim=0)
    by_scipy = [stats.wasserstein_distance(x @ d, y @ d) for d in directions.T]
    assert sliced_wasserstein(x, y, 20, seed=torch.Generator().manual_seed(7)) == pytest.approx(
        float(np.mean(by_scipy)), rel=1e-10
    )
    assert sliced_wasserstein(x, x.flip(0)) == 0
    with pytest.raises(ValueError, match="y: got shape"):
        sliced_wasserstein(x, y[:3])


def test_score_matching_measures_the_power_of_the_noise_that_tweedie_s_formula_leaves():
    flow, criterion, x = score()
    flow.double().initialise(x.double())
    noisy, noise = criterion.inputs(flow, x.double(), torch.Generator().manual_seed(0))
    clean = noisy - 0.2 * noise
    assert (clean - x).abs().max() < 1 / 255
    left = (sample.tweedie(flow, noisy, 0.2) - clean).square().flatten(1).mean(1)
    torch.testing.assert_close(criterion.surprise(flow, noisy, noise), left / 0.2**2)
    with torch.no_grad():  # as the score of validation is taken
        assert not criterion.surprise(flow, noisy, noise).requires_grad
    value = criterion.score(flow, x.double())
    assert value == criterion.score(flow, x.double())  # the noise of validation is fixed
    assert value > 0


def test_score_matching_is_least_at_the_density_of_noisy_images():
    """Clean ~ N(0, c), noisy ~ N(0, c + σ²): a model N(0, v) is best at v = c + σ² (Vincent 2011), by a closed form."""
    c, s, draw = 0.5, 0.4, torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, 1, generator=draw, dtype=torch.float64)
    noisy = c**0.5 * torch.randn(200_000, 1, generator=draw, dtype=torch.float64) + s * noise
    criterion = DenoisingScoreMatching(s)
    for v in (0.5, c + s**2, 0.9):
        spread = torch.tensor([[v**0.5]], dtype=torch.float64, requires_grad=True)
        mean = criterion.surprise(_Normal(spread), noisy, noise).mean()
        shrinkage = s**2 / v  # what Tweedie's formula takes away of the noisy value
        expected = (shrinkage**2 * (c + s**2) - 2 * shrinkage * s**2 + s**2) / s**2
        assert float(mean.detach()) == pytest.approx(expected, rel=0.02)
        (slope,) = torch.autograd.grad(mean, spread)  # through the gradient of log p
        by_hand = (2 * shrinkage * (c + s**2) / s**2 - 2) * (-2 * s**2 / v**1.5)
        assert float(slope) == pytest.approx(by_hand, abs=0.03)


class _Normal(torch.nn.Module):
    """N(0, spread²) with a spread that can be learned."""

    def __init__(self, spread: torch.Tensor) -> None:
        super().__init__()
        self.spread = spread

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return -0.5 * (x / self.spread).square().flatten(1).sum(1) - self.spread.log().squeeze()


def test_a_negative_penalty_is_refused():
    with pytest.raises(ValueError, match="decay"):
        WeightNormLikelihood(-1.0)


@pytest.mark.parametrize("criterion", [Likelihood(), SmoothedLikelihood()])
def test_a_flow_without_pixels_has_no_bits_per_dimension(criterion):
    message = rf"criterion: got {type(criterion).__name__} for a PointFlow without pixels; allowed: PointLikelihood"
    with pytest.raises(ValueError, match=message):
        fit(PointFlow(2, 5), images(12, (2,)), criterion, SHORT)
