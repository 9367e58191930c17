import math

import numpy as np
import pytest
import torch

from companion import _support, data, experiments, priors
from companion.experiments.hand.score import tightened
from companion.experiments.hand.typicality import families


def test_typicality_quick_profile():
    result = experiments.load("hand.typicality", "quick")  # test_verify.py asks whether today\'s code gives it
    for kind in ("drawings", "photographs"):
        names = result.axes(f"{kind} bits")["family"]
        bits = {name: result.take(f"{kind} bits", family=name) for name in names}
        assert all(np.isfinite(values).all() and values.shape == (12,) for values in bits.values())
        # what the chapter teaches: constant images are the likeliest, noise the least likely
        assert bits["constant"].min() == min(values.min() for values in bits.values())
        assert bits["snow"].min() > bits["own samples"].max()
        assert result.arrays[f"{kind} examples"].shape[:2] == (len(names), 3)


@pytest.mark.slow
def test_families_are_what_their_names_say():
    flow = priors.load("glow-photos32")
    shown = families(flow, ("photos",), 3, seed=0)
    base = data.load("photos", "test", size=32)[:3]
    assert torch.equal(shown["photos"], base) and torch.equal(shown["inverted"], 1 - base)
    assert torch.equal(shown["shuffled pixels"].flatten(2).sort().values, base.flatten(2).sort().values)
    assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x in shown.values())
    assert float(shown["constant"].flatten(1).std(1).max()) == 0


def test_families_refuse_too_few_images():
    with pytest.raises(ValueError, match="images: got 2"):
        families(priors.load("glow-photos32"), ("photos",), 2, seed=0)


def test_test_score_quick_profile():
    result = experiments.load("hand.test-score", "quick")  # test_verify.py asks whether today\'s code gives it
    flow, x = priors.load("glow-photos32"), data.load("photos", "test", size=32)[:16]
    draw = _support.generator(0, "dequantisation", "test")
    np.testing.assert_allclose(result.take("bits", split="test"), flow.bits_per_dim(x, draw), atol=1e-3)
    assert result.take("tighter", draws=4).mean() <= result.take("tighter", draws=1).mean()


def test_tightened_bound_of_many_draws_is_the_mean_density():
    flow = priors.Glow(shape=(1, 8, 8), levels=1, steps=1, width=4, bits=4).double()
    x = data.load("digits")[:2].double()
    draw = _support.generator(3, "dequantisation")
    densities = [flow.log_prob(flow.pixels.dequantise(x, draw)) for _ in range(5)]
    expected = torch.logsumexp(torch.stack(densities), 0) - math.log(5)
    expected = -(expected - 64 * math.log(15)) / (64 * math.log(2))
    assert torch.allclose(tightened(flow, x, 5, seed=3)[-1], expected)
