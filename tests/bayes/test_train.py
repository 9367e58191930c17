"""Jeffreys divergence against closed forms, its gradients, the guard of the weights, moves, training stage by stage."""

import math

import pytest
import torch
from scipy import stats

from companion.bayes import Synthetic, Training, amortised_svgd, jeffreys, train, train_msign, weighted
from companion.bayes.divergence import reverse_term, stein_term
from companion.bayes.modes import aim
from companion.bayes.moved import moved
from companion.priors.bijections import ActNorm
from companion.priors.fields import GaussianField
from companion.priors.msign import Mirrored, MsIGN


def exact_jeffreys(p: GaussianField, q: GaussianField) -> float:
    """½ tr(Σq⁻¹Σp + Σp⁻¹Σq) − d for centred Gaussians."""
    a, b = p.covariance(), q.covariance()
    return float(torch.linalg.solve(a, b).trace() + torch.linalg.solve(b, a).trace()) / 2 - len(a)


def test_weights_and_samples_give_the_jeffreys_divergence_of_two_gaussians() -> None:
    p, q, proposal = GaussianField(2, beta=2.0), GaussianField(2, alpha=0.3, beta=2.2), GaussianField(2, beta=3.0)
    exact = exact_jeffreys(p, q)
    found = jeffreys(p.log_prob, lambda x: q.log_prob(x) + 1.7, p.sample(20_000, seed=1), q.sample(20_000, seed=2))
    assert found.value == pytest.approx(exact, abs=4.5 * found.error)
    assert found.error < 0.1 * exact
    x = proposal.sample(40_000, seed=3)
    pool = weighted(x, q.log_prob(x) + 1.7, proposal.log_prob(x))
    assert pool.log_evidence == pytest.approx(1.7, abs=0.03)
    forward = pool.weights * (q.log_prob(x) - p.log_prob(x))
    own = p.sample(40_000, seed=4)
    reverse = p.log_prob(own) - q.log_prob(own)
    error = math.sqrt(float(reverse.var()) / len(own) + float((forward * len(x)).var()) / pool.raw_ess)
    assert float(forward.sum() + reverse.mean()) == pytest.approx(exact, abs=4.5 * error)


def test_weights_are_tempered_just_enough_and_wild_samples_weigh_nothing() -> None:
    target = torch.linspace(0, 200, 1000, dtype=torch.float64)
    target[-1] = math.nan
    x, proposal = target[:, None].nan_to_num(), torch.zeros_like(target)
    pool = weighted(x, target, proposal, least_ess=300)
    assert pool.raw_ess < 20 and pool.ess == pytest.approx(300, rel=1e-6)
    assert float(pool.weights[-1]) == 0
    expected = (pool.power * target[:-1]).softmax(0)
    torch.testing.assert_close(pool.weights[:-1], expected)
    assert weighted(x, target, proposal, least_ess=5).power == 1
    with pytest.raises(ValueError, match=r"log_target: got no finite value; allowed: "):
        weighted(x, torch.full_like(target, math.nan), proposal)


def test_weights_are_tempered_by_however_small_a_power_that_takes() -> None:
    ratio = -1e17 * torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ratio[:200], ratio[-1] = 0, math.nan
    pool = weighted(torch.zeros(4000, 2), ratio, torch.zeros(4000), least_ess=300)
    assert pool.ess == pytest.approx(300, rel=1e-3) and 0 < pool.power < 1e-15
    assert float(pool.weights[-1]) == 0 and float(pool.weights.sum()) == pytest.approx(1, rel=1e-4)


def test_log_densities_that_would_broadcast_are_refused() -> None:
    problem, x = Synthetic(4), torch.zeros(5, 16).double()
    for log_prob, log_density, name in [
        (lambda x: problem.log_prob(x)[:, None], problem.log_density, "log_prob"),
        (problem.log_prob, lambda x: problem.log_density(x).sum(), "log_density"),
    ]:
        with pytest.raises(ValueError, match=rf"{name}: got values of shape .*; allowed: a tensor of shape \(5,\)"):
            jeffreys(log_prob, log_density, x, x)
    for target, proposal, name in [(7, 7, "log_target"), (5, 1, "log_proposal")]:
        with pytest.raises(ValueError, match=f"{name}: got values of shape"):
            weighted(x, torch.zeros(target), torch.zeros(proposal))


@pytest.mark.parametrize("gradient", ["path", "score"])
def test_both_gradients_of_the_reverse_term_are_unbiased(gradient: str) -> None:
    norm, field = ActNorm(1).double(), GaussianField(2)
    with torch.no_grad():
        norm.bias.fill_(0.4)
        norm.log_scale.fill_(0.2)
    model = MsIGN(field, flows=[norm])  # R z/s − b: N(−b, Σ/s²), against N(0, Σ)
    scale, log_scale = norm.scale()
    exact = 2 * (scale**-2 - 1) + 4 * log_scale + 0.5 * norm.bias**2 * field.precision(torch.ones(1, 4).double()).sum()
    expected = torch.autograd.grad(exact, [norm.bias, norm.log_scale])
    z = torch.randn(200_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value, loss = reverse_term(model, field.log_prob, z, gradient)
    assert value.item() == pytest.approx(exact.item(), abs=0.01)
    for found, wanted in zip(torch.autograd.grad(loss, [norm.bias, norm.log_scale]), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.03)


@pytest.mark.parametrize("gradient", ["path", "score"])
def test_a_failed_simulation_is_left_out_of_the_reverse_term(gradient: str) -> None:
    model = MsIGN(GaussianField(2), steps=1, width=3)
    z = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wild = model.decode(z)[:, 0].detach() > 0.5
    assert 0 < int(wild.sum()) < 19

    def failing(x: torch.Tensor) -> torch.Tensor:
        return -x.square().sum(1) + 0 * torch.sqrt(0.5 - x[:, 0])  # NaN, and so is its gradient

    def gradients(latents: torch.Tensor, density) -> list[torch.Tensor]:
        return torch.autograd.grad(reverse_term(model, density, latents, gradient)[1], list(model.parameters()))

    wanted = gradients(z[~wild], lambda x: -x.square().sum(1))
    for found, right in zip(gradients(z, failing), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-10)


def test_the_gradient_of_the_stein_term_is_that_of_moving_particles() -> None:
    """Kernel and direction written out with loops (Liu & Wang 2016, eq. 8), chained through the model's Jacobian."""
    norm, field = ActNorm(1).double(), GaussianField(2)
    model = MsIGN(field, flows=[norm])
    z = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    log_density = GaussianField(2, beta=2.5).log_prob
    u = field.encode(model.decode(z)).detach()
    scores = torch.autograd.functional.jacobian(lambda v: log_density(field.decode(v)).sum(), u)
    distances = torch.stack([(a - b).square().sum() for a in u for b in u])
    width = distances.median() / math.log(8)
    moves = torch.zeros_like(u)
    for i in range(7):
        for j in range(7):
            kernel = torch.exp(-(u[i] - u[j]).square().sum() / width)
            moves[i] += kernel * (scores[j] + 2 / width * (u[i] - u[j])) / 7
    jacobian = torch.autograd.functional.jacobian(lambda b: field.encode(model.decode(z) - b), norm.bias.detach())
    expected = -(moves[:, :, None] * jacobian).sum((0, 1)) / 7
    (found,) = torch.autograd.grad(stein_term(model, log_density, z)[1], norm.bias)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_amortised_svgd_approaches_a_gaussian() -> None:
    problem = Synthetic(4, gamma=10.0)  # hardly any data: the posterior is the prior, nearly
    field = problem.coarsen().field
    norm = ActNorm(1).double()
    with torch.no_grad():
        norm.bias.fill_(1.0)
    model = MsIGN(field, flows=[norm])
    stage = amortised_svgd(problem.coarsen(), model, Training(iterations=150, rate=3e-2), seed=1)
    assert abs(float(norm.bias.detach())) < 0.2 and stage.simulations == 150 * 100 * 2
    with pytest.raises(ValueError, match=r"model: got Mirrored for 'stein'; allowed: "):
        train_msign(problem, Mirrored(MsIGN(problem.field, steps=1)), Training(objective="stein"))


def test_the_proposal_of_a_stage_is_the_conditioned_last_stage() -> None:
    problem = Synthetic(8)
    model = MsIGN(problem.field, steps=1, width=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    proposal = model.conditioned()
    x = proposal.sample(2)
    pooled = torch.nn.functional.avg_pool2d(x.view(-1, 1, 8, 8), 2).flatten(1)
    # realised density: p_{l−1}(A x) ρ(x | A x)
    expected = model.at(2).log_prob(pooled) + problem.field.log_prob(x) - problem.field.coarsen().log_prob(pooled)
    torch.testing.assert_close(proposal.log_prob(x), expected, rtol=1e-9, atol=1e-9)
    before = [p.clone() for p in proposal.parameters()]
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, proposal.parameters(), strict=True))


def test_training_can_go_on_at_any_stage_and_counts_simulations() -> None:
    how = Training(iterations=3, batch=10, pool=40, least_ess=5)
    problem = Synthetic(8)
    whole, parts = (MsIGN(problem.field, steps=1, width=4) for _ in range(2))
    stages = train_msign(problem, whole, how, seed=3)
    train_msign(problem, parts, how, scales=[1], seed=3)
    resumed = MsIGN(problem.field, steps=1, width=4)
    resumed.load_state_dict(parts.state_dict())
    train_msign(problem, resumed, how, scales=[2, 3], seed=3)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert [stage.simulations for stage in stages] == [40 + 3 * 10 * 2] * 3


def test_each_round_of_a_stage_proposes_with_the_model_as_it_has_become(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Synthetic(4)
    model = MsIGN(problem.field, steps=1, width=4)
    weights, pools, draw = [], [], train._pool

    def noted(*arguments):
        weights.append(torch.cat([each.detach().flatten() for each in model.parameters()]))
        pools.append(draw(*arguments))
        return pools[-1]

    monkeypatch.setattr(train, "_pool", noted)
    how = Training(iterations=5, rounds=2, pool=400, least_ess=5.0)
    (stage,) = train_msign(problem, model, how, [1])
    assert len(weights) == 2 and not torch.equal(*weights)
    assert len(stage.loss) == 5 and stage.raw_ess == pools[1].raw_ess != pools[0].raw_ess
    with pytest.raises(ValueError, match="rounds: got 0"):
        train_msign(problem, model, Training(rounds=0), [1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": -3},
        {"iterations": 2.5},
        {"batch": 0},
        {"clip": -5.0},
        {"rate": math.nan},
        {"last_rate": -3},
        {"objective": "mle"},
        {"gradient": "foo"},
    ],
)
def test_settings_are_checked_before_anything_is_paid_for(wrong: dict) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}: got .*; allowed: "):
        Training(**wrong)


def test_a_scale_that_the_model_has_not_is_refused() -> None:
    problem = Synthetic(4)
    other = Synthetic(2 * problem.side)
    with pytest.raises(
        ValueError, match=f"model: got one of fields of side {other.side}; allowed: {problem.side}, the"
    ):
        train_msign(problem, MsIGN(other.field, steps=1, width=4))
    with pytest.raises(ValueError, match="scale: got 9; allowed: 1 to 2"):
        train_msign(problem, MsIGN(problem.field, steps=1, width=4), scales=[9])


@pytest.mark.slow
def test_moved_samples_follow_the_posterior_from_right_and_from_wrong_places() -> None:
    problem = Synthetic(4)
    model = Mirrored(MsIGN(problem.field, 1, steps=1, width=4, rank=2, seed=1))
    aim(problem, model, 2000)
    exact, other = problem.sample(800, seed=1), problem.sample(800, seed=2)
    found = {name: moved(problem, model, x, 12) for name, x in (("right", other), ("wrong", 1.3 * other))}
    expected = problem.log_density(exact)
    assert stats.ks_2samp(problem.log_density(1.3 * other), expected).pvalue < 1e-9
    for x in found.values():
        assert stats.ks_2samp(problem.log_density(x), expected).pvalue > 0.01
        # squares do not ask which of the two mirror images a sample is; four standard errors of two means of 800
        spreads = [problem.field.encode(each).square().mean(0) for each in (x, exact)]
        torch.testing.assert_close(*spreads, rtol=4 * (4 / 800) ** 0.5, atol=0)


class Failing(Synthetic):
    """A simulation that fails for bright fields."""

    def log_likelihood(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.mean(1) > 0.2, torch.nan, super().log_likelihood(x))


def test_fields_whose_simulation_fails_are_not_moved() -> None:
    problem = Failing(4, "isometric")
    model, x = MsIGN(problem.field, 1, steps=1, width=4), problem.field.sample(40)
    fine = x.mean(1) <= 0.2
    assert 0 < int(fine.sum()) < 40
    assert torch.equal(moved(problem, model, x, 2), moved(problem, model, x[fine], 2))
    assert moved(problem, model, x, 2).mean(1).max() <= 0.2
    with pytest.raises(ValueError, match="z0: got 2 of 2 chains whose energy is not finite"):
        moved(problem, model, x[~fine][:2], 2)


@pytest.mark.slow
def test_the_coarsest_posterior_is_learned_with_both_modes() -> None:
    problem = Synthetic(8)
    coarsest, model = problem.coarsen().coarsen(), MsIGN(problem.field, steps=4, width=16)
    reference = coarsest.sample(4000, seed=8)
    start = jeffreys(model.at(1).log_prob, coarsest.log_density, model.at(1).sample(4000, seed=9), reference)
    how = Training(iterations=250, rate=3e-3)
    train_msign(problem, model, how, scales=[1], first_samples=coarsest.sample(4000, seed=7))
    own = model.at(1).sample(4000, seed=9)
    found = jeffreys(model.at(1).log_prob, coarsest.log_density, own, reference)
    share = float((own @ coarsest.direction > 0).double().mean())
    assert start.value > 3 and found.value < start.value / 4, (start, found)
    assert 0.1 < share < 0.9  # reverse KL alone loses one of them; their balance takes longer


@pytest.mark.slow
def test_a_mirrored_model_needs_no_bridge() -> None:
    problem = Synthetic(8)
    coarsest, model = problem.coarsen().coarsen(), Mirrored(MsIGN(problem.field, steps=3, width=16))
    how = Training(iterations=320, rate=3e-3)
    train_msign(problem, model, how, scales=[1], first_samples=coarsest.sample(4000, seed=7))
    own = model.at(1).sample(4000, seed=9)
    found = jeffreys(model.at(1).log_prob, coarsest.log_density, own, coarsest.sample(4000, seed=8))
    assert found.value < 0.3, found
