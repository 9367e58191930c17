"""The variants' maps against autograd's Jacobian; the rivals' errors of exact draws, and of draws that lack a mode."""

import pytest
import torch

from companion import _support
from companion.bayes import Synthetic
from companion.experiments import registry
from companion.experiments.msign import ablation, rivals
from companion.experiments.parts import Part

SETTINGS = registry.get("msign.ablation").settings["quick"]


@pytest.mark.parametrize("layer", ["prior", "nearest", "split"])
def test_a_variant_is_a_density_whatever_stands_between_its_scales(layer: str) -> None:
    problems = Synthetic(4).scales()
    model = ablation._model(SETTINGS, ablation.Variant(layer, "kl", False), problems, seed=1)
    with torch.no_grad():
        for index, weights in enumerate(model.parameters()):
            weights.add_(0.1 * _support.normal(weights.shape, 3, weights, "shake", index))
    z = _support.normal((2, 16), 2, problems[-1].field.like, "latents")
    x, log_prob = model.decode_with_log_prob(z)
    torch.testing.assert_close(model.encode(x), z)
    slopes = [torch.autograd.functional.jacobian(lambda one: model.decode(one[None])[0], each) for each in z]
    own = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(log_prob, own - torch.stack([slope.slogdet()[1] for slope in slopes]))


def test_exact_draws_are_without_error_and_one_half_of_them_is_half_a_unit_wrong() -> None:
    settings, part = registry.get("msign.rivals").settings["quick"], Part(torch.device("cpu"), 0)
    problem = Synthetic(4)
    x = problem.sample(4000, seed=5)
    whole = rivals._errors(settings, part, problem, x)
    half = rivals._errors(
        settings, part, problem, x.where((x @ problem.direction > 0)[:, None], problem.field.mirror(x))
    )
    value = {key: float(one.values) for key, one in whole.items()}
    assert value["share"] == pytest.approx(0.5, abs=0.03)
    assert value["distance"] < 0.06 and value["folded distance"] < 0.02
    assert value["variance"] == pytest.approx(1, abs=0.05)
    # all the mass of one mode has to go from −1 to 1, in units of the mean |c|
    assert float(half["distance"].values) == pytest.approx(1, abs=0.05)
    assert float(half["folded distance"].values) == pytest.approx(value["folded distance"], abs=1e-9)
