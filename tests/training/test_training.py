"""Training: exact resumption after a kill at any moment, best weights, averages, schedules, refusals."""

import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flow_cases import rand, tiny
from scipy import stats
from training_cases import SMALL, die, die_within, model, photos, same_weights, start, train

from companion import _support, data, priors, training
from companion.priors import PointFlow
from companion.priors.checkpoint import read_tensors
from companion.training import Likelihood, PointLikelihood, Schedule, recipes
from companion.training.precision import conditioners, mixed_precision
from companion.training.state import as_pixels

# --- killed and continued


def _train(folder, kill=None, seed=0):
    """Train to the end, unless `kill` says when to die: in which act, or within how many seconds."""
    torch.set_num_threads(1)
    if isinstance(kill, float):
        die_within(kill, seed)
    elif kill is not None:
        _die_in_the_second_writing(kill)
    began = time.monotonic()
    flow, _ = train(checkpoint=folder / "run.training")
    priors.save(flow, folder / "trained.safetensors", {"seconds": time.monotonic() - began})


def _die_in_the_second_writing(moment):
    import companion.priors.checkpoint as module

    calls = []

    def second(function):
        def run(*args, **kwargs):
            calls.append(1)
            if len(calls) < 2:
                return function(*args, **kwargs)
            if moment == "in the middle of the file":
                part = args[1]
                function(*args, **kwargs)
                part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
            die()

        return run

    if moment == "before it is renamed":
        os.replace = second(os.replace)
    else:
        module.save_file = second(module.save_file)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    child = start(_train, folder)
    child.join()
    assert child.exitcode == 0
    return priors.load(folder / "trained.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in the middle of the file", "before it is renamed"])
def test_a_run_killed_while_writing_its_checkpoint_ends_as_an_unbroken_one(tmp_path, unbroken, moment):
    child = start(_train, tmp_path, moment)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert read_tensors(tmp_path / "run.training")[1]["progress"]["step"] == SMALL.checkpoint_every
    child = start(_train, tmp_path)
    child.join()
    assert same_weights(priors.load(tmp_path / "trained.safetensors"), unbroken)


@pytest.mark.slow
def test_a_run_killed_again_and_again_at_random_moments_ends_as_an_unbroken_one(tmp_path, unbroken):
    for attempt in range(5):
        child = start(_train, tmp_path, unbroken.card["seconds"], attempt)
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
    child = start(_train, tmp_path)
    child.join()
    assert same_weights(priors.load(tmp_path / "trained.safetensors"), unbroken)


class Stops(Likelihood):
    """Likelihood whose loss, or its gradient, turns into NaN at one step."""

    def __init__(self, at=None, where="loss"):
        self.at, self.where, self.calls = at, where, 0

    def losses(self, model, *inputs):
        self.calls += 1
        (loss,) = super().losses(model, *inputs)
        if self.calls != self.at:
            return [loss]
        if self.where == "loss":
            return [lambda: loss() * math.nan]
        return [lambda: loss() + torch.sqrt(0 * model.like.sum())]  # finite, with the derivative 0 · ∞


@pytest.mark.slow
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_nan_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, where):
    path = tmp_path / "run.training"
    flow = model()
    with pytest.raises(FloatingPointError, match=r"step 10: the loss is .*, the norm of its gradient nan"):
        train(checkpoint=path, criterion=Stops(11, where), flow=flow)  # right after the second checkpoint
    tensors, about = read_tensors(path)
    assert about["progress"]["step"] == 10
    assert all(torch.isfinite(t).all() for t in tensors.values())
    assert all(torch.isfinite(p).all() for p in flow.parameters())
    again, _ = train(checkpoint=path, criterion=Stops())
    assert same_weights(again, train(criterion=Stops())[0])


def test_a_finished_run_is_not_run_again(tmp_path):
    path = tmp_path / "run.training"
    flow, curve = train(checkpoint=path)
    criterion = Stops()
    again, same = train(checkpoint=path, criterion=Likelihood())
    assert same_weights(flow, again) and same.score == curve.score and same.validated == [7, 14, 21, 24]
    with pytest.raises(ValueError, match="another criterion"):
        train(checkpoint=path, criterion=criterion)
    assert criterion.calls == 0


OTHERS = {
    "schedule": (
        {"schedule": replace(SMALL, learning_rate=1e-3, clip=5.0)},
        r"another schedule \(clip: 100.0, now 5.0, learning_rate: 0.002, now 0.001\)",
    ),
    "model": ({"flow": priors.RealNVP(shape=(1, 4, 4), scales=1, blocks=1, width=2)}, "another model"),
    "config": ({"flow": model(width=5)}, r"another config \(width: 4, now 5\)"),
    "seed of the model": ({"flow": model(seed=3)}, r"another config \(seed: 0, now 3\)"),
    "dtype": ({"flow": model(torch.float64)}, "another dtype"),
    "data": ({"images": photos(40, seed=8)}, "another data"),
    "data of another dtype": ({"images": photos() / 255}, "another data"),
    "fewer data": ({"images": photos()[:-1]}, "another data"),
    "criterion": ({"criterion": Stops()}, "another criterion"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run.training"
    train(checkpoint=path)
    return path


@pytest.mark.parametrize("other, message", OTHERS.values(), ids=OTHERS.keys())
def test_the_state_of_another_run_is_refused_and_left_alone(finished, other, message):
    before = finished.read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint: run.training was written with " + message):
        train(**({"schedule": SMALL} | other), checkpoint=finished)
    assert finished.read_bytes() == before


def test_a_damaged_state_is_refused(finished, tmp_path):
    damaged = tmp_path / "run.training"
    damaged.write_bytes(finished.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"checkpoint: got run.training, which is corrupt"):
        train(checkpoint=damaged)
    priors.save(model(), damaged)
    with pytest.raises(ValueError, match=r"checkpoint: run.training was written with another dtype"):
        train(checkpoint=damaged)


def test_a_run_depends_on_its_seed_and_on_no_global_state():
    torch.manual_seed(1)
    first, _ = train()
    torch.manual_seed(2)
    flow = model()
    state = torch.get_rng_state()
    second, _ = train(flow=flow)
    assert torch.equal(state, torch.get_rng_state())
    other, _ = train(replace(SMALL, seed=1))
    assert same_weights(first, second) and not same_weights(first, other)


# --- the best weights


class Scripted(Likelihood):
    """Likelihood with given validation scores, that keeps the weights it was asked to score."""

    def __init__(self, scores, nan_at=None):
        self.scores, self.seen, self.calls, self.nan_at = scores, [], 0, nan_at

    def losses(self, model, *inputs):
        self.calls += 1
        (loss,) = super().losses(model, *inputs)
        return [lambda: loss() * (math.nan if self.calls == self.nan_at else 1.0)]

    def score(self, model, images):
        assert not model.training and images.min() >= 0 and images.max() <= 1
        self.seen.append({k: v.clone() for k, v in model.named_parameters()})
        return self.scores[len(self.seen) - 1]


def equals(flow, weights):
    return all(torch.equal(p, weights[k]) for k, p in flow.named_parameters())


PATIENT = replace(SMALL, steps=60, validate_every=4, patience=2)


@pytest.mark.parametrize(
    "scores, stops_after, best",
    [
        ([3.0, 2.0, 2.5, 2.6, 1.0], 4, 1),
        ([3.0, 3.0, 3.0, 1.0], 3, 0),  # an equal score is no better one
        ([3.0, math.nan, 2.0, 2.5, math.nan, 1.0], 5, 2),
        ([3.0 - 0.1 * i for i in range(14)] + [9.0], 15, 13),  # the last step comes before patience runs out
    ],
)
def test_patience_stops_and_the_model_gets_its_best_averaged_weights(scores, stops_after, best):
    criterion = Scripted(scores)
    flow, curve = train(PATIENT, criterion=criterion)
    assert len(curve.score) == stops_after and curve.stopped_early == (stops_after < 15)
    assert equals(flow, criterion.seen[best])
    assert not flow.training and not any(p.requires_grad for p in flow.parameters())


def test_without_patience_the_model_gets_its_last_averaged_weights():
    criterion = Scripted([1.0, 2.0, 3.0, 4.0])
    flow, curve = train(criterion=criterion)
    assert equals(flow, criterion.seen[-1]) and not curve.stopped_early


def test_the_best_weights_survive_an_interruption(tmp_path):
    path = tmp_path / "run.training"
    whole = Scripted([3.0, 2.0, 2.5, 2.6])
    train(PATIENT, criterion=whole)
    first = Scripted([3.0, 2.0], nan_at=12)
    with pytest.raises(FloatingPointError):  # last checkpoint at step 10, best validation at step 8
        train(PATIENT, criterion=first, checkpoint=path)
    second = Scripted([2.5, 2.6])
    flow, curve = train(PATIENT, criterion=second, checkpoint=path)
    assert curve.score == [3.0, 2.0, 2.5, 2.6] and curve.stopped_early
    assert equals(flow, whole.seen[1])
    third, again = train(PATIENT, criterion=Scripted([]), checkpoint=path)  # stopped for good
    assert same_weights(third, flow) and again.stopped_early


# --- averages, clipping, rates, batches


class Watched(Likelihood):
    """Likelihood by gradient descent, that keeps weights and batches."""

    def __init__(self, factor=1.0, descent=False):
        self.factor, self.descent, self.weights, self.batches = factor, descent, [], []

    def optimisers(self, model, schedule):
        return [torch.optim.SGD(model.parameters(), 1.0)] if self.descent else super().optimisers(model, schedule)

    def inputs(self, model, batch, draw):
        self.batches.append(batch)
        return super().inputs(model, batch, draw)

    def losses(self, model, *inputs):
        self.weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        (loss,) = super().losses(model, *inputs)
        return [lambda: self.factor * loss()]


def flat(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


def test_the_model_gets_the_moving_average_of_its_weights():
    criterion = Watched()
    last, _ = train(replace(SMALL, average=0.0), flow=model(torch.float64), criterion=criterion)
    trajectory = [*criterion.weights[1:], flat(last)]
    averaged, _ = train(flow=model(torch.float64))
    expected = criterion.weights[0]
    for step, weights in enumerate(trajectory):
        keep = min(SMALL.average, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * weights
    torch.testing.assert_close(flat(averaged), expected, rtol=1e-12, atol=1e-12)
    assert (flat(last) - flat(averaged)).abs().max() > 1e-4


@pytest.mark.parametrize("clip", [0.5, 3.0])
def test_the_gradient_is_clipped_to_its_largest_norm(clip):
    criterion = Watched(factor=1e6, descent=True)
    schedule = replace(SMALL, steps=5, clip=clip, learning_rate=1e-3)
    train(schedule, flow=model(torch.float64), criterion=criterion)
    moves = [float((b - a).norm()) for a, b in zip(criterion.weights, criterion.weights[1:], strict=False)]
    assert moves == pytest.approx([schedule.rate(step) * clip for step in range(4)], rel=1e-6)


def test_the_rate_rises_linearly_and_falls_along_a_cosine():
    schedule = Schedule(steps=100, learning_rate=0.5, warm_up=10)
    assert [schedule.rate(s) for s in (0, 4)] == pytest.approx(
        [0.05, 0.25 * 0.5 * (1 + math.cos(0.04 * math.pi))], rel=1e-9
    )
    assert schedule.rate(50) == pytest.approx(0.25) and 0 < schedule.rate(99) < 2e-4
    constant = Schedule(steps=100, learning_rate=0.5, warm_up=0, decay=False)
    assert {constant.rate(s) for s in range(100)} == {0.5}


def test_training_lowers_the_bits_per_dimension():
    flow = model(width=8)
    data = photos(200)
    flow.initialise(flow.pixels.dequantise(as_pixels(data, flow.like), 0))
    criterion = Likelihood()
    before = criterion.score(flow, as_pixels(photos(50, seed=6), flow.like))
    _, curve = train(replace(SMALL, steps=80, learning_rate=5e-3, batch_size=32), flow=flow, images=data)
    assert curve.score[-1] < before - 0.2
    assert curve.steps == [20, 40, 60, 80] and curve.loss[-1] < curve.loss[0] and curve.seconds > 0
    assert curve.validated == [*range(7, 80, 7), 80]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_and_fractions_are_the_same_images(dtype):
    like = torch.zeros((), dtype=dtype)
    as_bytes, as_fractions = as_pixels(photos(), like), as_pixels(photos().double() / 255, like)
    assert as_bytes.dtype == dtype
    torch.testing.assert_close(as_bytes, as_fractions)


def test_progress_is_shown_when_asked_for(capfd):
    training.fit(model(), photos(), Likelihood(), replace(SMALL, steps=20))
    shown = capfd.readouterr().err
    assert "bits/dim" in shown and "images/s" in shown and "20/20" in shown
    train(replace(SMALL, steps=20))
    assert capfd.readouterr().err == ""


# --- refusals, all before the first step


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": 0}, "steps: got 0"),
        ({"batch_size": 2.5}, "batch_size: got 2.5"),
        ({"learning_rate": math.nan}, "learning_rate: got nan"),
        ({"learning_rate": -1.0}, "learning_rate: got -1.0"),
        ({"warm_up": -1}, "warm_up: got -1"),
        ({"clip": 0.0}, "clip: got 0.0"),
        ({"average": 1.0}, "average: got 1.0"),
        ({"patience": 0}, "patience: got 0"),
        ({"precision": "half"}, "precision: got 'half'; allowed: float32, mixed"),
        ({"checkpoint_every": 0}, "checkpoint_every: got 0"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_settings_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**wrong)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"images": photos()[:0]}, r"images: got shape \(0, 1, 4, 4\); allowed: \[batch, 1, 4, 4\]"),
        ({"images": photos()[:, :, :3]}, r"images: got shape \(40, 1, 3, 4\)"),
        ({"images": photos().float()}, "images: got pixels from .* to 2"),
        ({"images": photos().long()}, "images: got torch.int64 tensor"),
        ({"images": torch.full((4, 1, 4, 4), math.nan)}, "images: got 64 NaN"),
        ({"images": [1]}, "images: got shape list"),
        ({"validation": photos()[0]}, r"validation: got shape \(1, 4, 4\)"),
        ({"validation": photos() / 100}, "validation: got pixels"),
        ({"images": torch.full((9, 1, 4, 4), 0.5), "criterion": PointLikelihood()}, "first batch: got .* constant"),
        ({"schedule": replace(SMALL, patience=1), "validation": None}, "patience: got 1 without validation images"),
        (
            {
                "flow": priors.VAE((1, 4, 4), 2, (5,)),
                "criterion": training.Elbo(),
                "schedule": replace(SMALL, precision="mixed"),
            },
            "precision: got 'mixed' for VAE",
        ),
        (
            {"flow": PointFlow(couplings=2, width=2), "images": torch.rand(9, 2), "validation": None},
            r"augment: got \('flip',\) for data of shape \(2,\)",
        ),
    ],
)
def test_bad_input_is_refused_before_the_first_step(options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        train(**({"schedule": SMALL} | options))
    assert "\n" not in str(refusal.value)


def test_a_gaussian_is_computed_from_images_and_their_mirror_images(tmp_path, monkeypatch):
    monkeypatch.setitem(recipes.GAUSSIANS, "gaussian-digits", recipes.Covariance("digits", None))
    path = training.train_recipe("gaussian-digits", out=tmp_path)
    found, images = priors.load(path), data.load("digits").images.float() / 255
    rows = torch.cat([images, images.flip(-1)]).flatten(1).double().numpy()
    spread = np.eye(64) / (12 * 255**2)  # some border pixels are black in all digits
    half = 2**-11  # the relative error of half precision, in which it is stored
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=half, atol=1e-6)
    np.testing.assert_allclose(found.weight @ found.weight.T, np.cov(rows.T, bias=True) + spread, atol=half / 5)
    x = data.load("digits", "test").images[:200].double() / 255
    law = stats.multivariate_normal(rows.mean(0), np.cov(rows.T, bias=True) + spread)
    rng = np.random.default_rng(0)
    noisy = x.flatten(1).numpy() + (rng.random((200, 64)) - 0.5) / 255
    bits = -law.logpdf(noisy) / (64 * math.log(2)) + math.log2(255)
    assert abs(found.card["test score"] - bits.mean()) < 0.1
    assert training.quality(path) == f"{found.card['test score']} bits/dim on 297 test images"
    for option in ({"start": "glow-mnist"}, {"export": True}):
        with pytest.raises(ValueError, match="start, export: got one for gaussian-digits; allowed: neither"):
            training.train_recipe("gaussian-digits", out=tmp_path, **option)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A store of its own, with a recipe of three steps and its checkpoint of the laptop profile."""
    few = Schedule(steps=3, batch_size=5, warm_up=1)
    small = recipes.Recipe(
        data="photos",
        size=None,
        criterion=Likelihood,
        model=model,
        schedule=few,
        budgets=dict.fromkeys(recipes.PROFILES, ({}, {})),
    )
    monkeypatch.setitem(recipes.RECIPES, "small", small)
    monkeypatch.setattr(_support, "store", lambda: tmp_path)
    monkeypatch.setattr(data, "load", lambda name, split, size: SimpleNamespace(images=photos()))
    path = tmp_path / "checkpoints" / "small.safetensors"
    priors.save(model(), path, {"profile": "laptop"})
    return path


def test_a_stored_checkpoint_is_replaced_by_a_lesser_one_only_when_asked_to(shop, tmp_path):
    before = shop.read_bytes()
    with pytest.raises(
        ValueError, match="profile: got 'quick', but the stored small is of 'laptop'; allowed: laptop, "
    ):
        training.train_recipe("small", "quick", progress=False)
    assert shop.read_bytes() == before and [path.name for path in shop.parent.iterdir()] == [shop.name]
    mine = training.train_recipe("small", "laptop", out=tmp_path / "mine", progress=False)
    assert shop.read_bytes() == before
    with pytest.raises(ValueError, match="the stored small is of 'laptop'"):  # hours of work, not only in the store
        training.train_recipe("small", "quick", out=tmp_path / "mine", progress=False)
    assert priors.load(mine).card["profile"] == "laptop"
    for profile, options in (("laptop", {}), ("quick", {"replace": True}), ("quick", {}), ("paper", {})):
        assert training.train_recipe("small", profile, progress=False, **options) == shop
        assert priors.load("small").card["profile"] == profile


def test_a_damaged_checkpoint_is_replaced(shop):
    shop.write_bytes(shop.read_bytes()[:-9])
    assert priors.load(training.train_recipe("small", "quick", progress=False)).card["profile"] == "quick"


@pytest.mark.parametrize("out", ["/dev/null", "/proc/self", "/proc/x"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_training(shop, monkeypatch, out):
    monkeypatch.setattr(recipes, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=rf"out: got {out} \(.*Error\); allowed: a folder that can be written"):
        training.train_recipe("small", "quick", out=Path(out))


def test_points_are_trained_too():
    flow = PointFlow(couplings=2, width=4)
    points = 5 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) - 7
    schedule = replace(SMALL, augment=(), steps=10)
    training.fit(flow, points, PointLikelihood(), schedule, validation=points, progress=False)
    assert torch.isfinite(flow.log_prob(points)).all()


# --- data sets, smoothed images, and starts from averaged weights


def test_a_data_set_is_taken_and_another_is_refused_by_name():
    images = data.Images(photos(), None, "mine", "train")
    flow, _ = train(images=images, validation=images)
    assert same_weights(flow, train(validation=photos())[0])
    with pytest.raises(ValueError, match=r"images: got a TensorDataset; allowed: a data set of companion.data, or a"):
        train(images=torch.utils.data.TensorDataset(photos()))


def test_a_smoothed_likelihood_is_that_of_noisy_images():
    flow, std = tiny(dtype=torch.float64), 0.2
    x = as_pixels(photos(400), flow.like)
    (noisy,) = training.SmoothedLikelihood(std).inputs(flow, x, torch.Generator().manual_seed(0))
    excess = noisy - x
    assert float(excess.var()) == pytest.approx(std**2 + 1 / (12 * 255**2), rel=0.05)
    score = training.SmoothedLikelihood(std).score(flow, x)
    assert score == training.SmoothedLikelihood(std).score(flow, x)  # the noise of validation is fixed
    expected = flow.pixels.bits_per_dim(flow.log_prob(noisy), 16).mean()  # other noise of the same kind
    assert score == pytest.approx(float(expected.detach()), abs=0.05)
    with pytest.raises(ValueError, match="model: got a flow with logit pixels"):
        train(flow=model(pixels="logit"), criterion=training.SmoothedLikelihood(std))


def test_training_starts_from_the_averaged_weights_of_another(tmp_path):
    path = tmp_path / "run.training"
    first, _ = train(checkpoint=path)
    exported = training.averaged(path)
    assert same_weights(exported, first) and exported.card == {"step": SMALL.steps}
    saved = priors.save(first, tmp_path / "first.safetensors")
    still = replace(SMALL, steps=1, learning_rate=1e-30, average=0.0)
    for source in (path, saved, str(saved)):
        flow, _ = train(still, flow=model(seed=9), start=source)
        assert same_weights(flow, first)
    for other in (model(width=5), model(squeeze="haar")):  # the weights of the second fit, and mean something else
        with pytest.raises(ValueError, match=r"start: got a Glow with .*; allowed: the model's own architecture"):
            train(flow=other, start=path)
    again, _ = train(checkpoint=path, start=tmp_path / "missing.training")  # continued: no start is needed
    assert same_weights(again, first)


def test_a_running_training_is_exported(shop, monkeypatch):
    running = shop.parent / "small.laptop.training"
    criterion = Stops(3)
    monkeypatch.setitem(recipes.RECIPES, "small", replace(recipes.RECIPES["small"], criterion=lambda: criterion))
    few = replace(recipes.RECIPES["small"].schedule, checkpoint_every=1)
    monkeypatch.setitem(recipes.RECIPES, "small", replace(recipes.RECIPES["small"], schedule=few))
    with pytest.raises(FloatingPointError):
        training.train_recipe("small", "laptop", progress=False)
    training.train_recipe("small", "laptop", export=True)
    exported = priors.load("small")
    assert exported.card["steps"] == 2 and same_weights(exported, training.averaged(running)) and running.exists()
    assert training.quality(shop).endswith("after 2 steps")
    monkeypatch.setattr(data, "load", lambda name, split, size: SimpleNamespace(images=photos()[1:]))
    with pytest.raises(ValueError, match=r"export: small\.laptop\.training was written with another data"):
        training.train_recipe("small", "laptop", export=True)


# --- mixed precision


def test_mixed_precision_runs_the_networks_alone_in_bfloat16():
    flow, x = tiny(dtype=torch.float32, steps=4), rand(4, 1, 4, 4, dtype=torch.float32)
    exact = flow.log_prob(x)
    seen = []
    networks = conditioners(flow)
    hooks = [n[2].register_forward_hook(lambda module, given, answer: seen.append(answer.dtype)) for n in networks]
    with mixed_precision(networks, "cpu"):
        z = flow.encode(x)
        rough = flow.log_prob(x)
        torch.testing.assert_close(flow.decode(z), x, rtol=0, atol=1e-5)  # exactly invertible all the same
        rough.sum().backward()
    assert len(networks) == 8 and set(seen) == {torch.bfloat16}
    assert z.dtype == rough.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in flow.parameters())
    assert 0 < float((rough - exact).detach().abs().max()) < 0.5
    for hook in hooks:
        hook.remove()
    assert torch.equal(flow.log_prob(x), exact)  # and nothing stays behind


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_trains_on_cuda():
    schedule = replace(SMALL, steps=60, learning_rate=5e-3)
    plain, mixed = (
        train(replace(schedule, precision=precision), device="cuda")[1].score[-1] for precision in ("float32", "mixed")
    )
    assert mixed == pytest.approx(plain, abs=0.1)
