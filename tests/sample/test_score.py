"""Tweedie's formula and the average of a score over symmetries, against Gaussians' closed forms."""

import numpy as np
import pytest
import torch

from companion import priors, sample

ALL = ("flip", "turn", "colours")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_tweedie_is_the_mean_of_the_clean_image_given_the_noisy_one():
    """Clean ~ N(0, C), noisy = clean + N(0, s² I): E[clean | noisy] = C (C + s² I)⁻¹ noisy."""
    weight, s = normal(4, 4), 0.4
    clean = weight @ weight.T
    noisy = clean + s**2 * torch.eye(4, dtype=torch.float64)
    x = normal(3, 4, seed=1)
    found = sample.tweedie(priors.Linear(torch.linalg.cholesky(noisy)), x, s)
    torch.testing.assert_close(found, x @ torch.linalg.solve(noisy, clean))


@pytest.mark.parametrize(
    ("symmetries", "changes"), [((), 1), (("flip",), 2), (("turn",), 4), (("colours",), 6), (ALL, 48)]
)
def test_an_orbit_is_a_group_of_images_the_first_of_which_is_as_it_was(symmetries, changes):
    x = normal(2, 3, 4, 4)
    orbit = sample.orbit(x, symmetries)
    assert torch.equal(orbit[0], x)

    def seen(images):
        return {tuple(each.flatten().tolist()) for each in images}

    assert len(orbit) == len(seen(orbit)) == changes
    assert all(seen(sample.orbit(each, symmetries)) == seen(orbit) for each in orbit)  # closed: changes of changes


def test_an_orbit_s_changes_are_those_that_training_draws():
    """Every image that the random augmentations of training make of one is in its orbit, and all of it is drawn."""
    from companion.training.augment import augment

    x = normal(1, 3, 2, 2).sigmoid()
    drawn = augment(x.expand(2000, 3, 2, 2), ALL, torch.Generator().manual_seed(0))
    orbit = torch.cat(sample.orbit(x, ALL))
    assert np.array_equal(np.unique(drawn.flatten(1).numpy(), axis=0), np.unique(orbit.flatten(1).numpy(), axis=0))


def test_the_averaged_score_is_the_mean_of_those_of_the_changed_densities():
    """p(g x) of N(μ, C) is N(gᵀμ, gᵀC g): the mean of their scores by matrices of the changes."""
    root, mean, s = normal(12, 12), normal(12, seed=1), 0.3
    cov = root @ root.mT + torch.eye(12)
    flow = priors.Linear(torch.linalg.cholesky(cov), mean, (3, 2, 2))
    x = normal(5, 3, 2, 2, seed=2)
    places = [each.flatten() for each in sample.orbit(torch.arange(12).view(1, 3, 2, 2), ALL)]
    score = 0
    for place in places:
        change = torch.eye(12, dtype=torch.float64)[place]  # (g x)_i = x_{place i}
        score -= (x.flatten(1) - mean @ change) @ (change.T @ torch.linalg.inv(cov) @ change) / len(places)
    found = sample.tweedie(flow, x, s, ALL)
    torch.testing.assert_close(found, x + s**2 * score.view_as(x))
    # and the estimate of a changed image is the changed estimate
    for changed, expected in zip(sample.orbit(x, ALL), sample.orbit(found, ALL), strict=True):
        torch.testing.assert_close(sample.tweedie(flow, changed, s, ALL), expected)


def test_averaging_brings_a_wrong_score_nearer_to_a_symmetric_truth():
    """Clean images of one variance everywhere, a model that believes in other ones: the expected error falls."""
    clean, s = 1.0, 0.5
    noisy = (clean + s**2) ** 0.5 * normal(4000, 1, 2, 2)  # has every symmetry
    believed = torch.tensor([0.5, 0.9, 1.4, 2.5], dtype=torch.float64)
    flow = priors.Linear((believed + s**2).sqrt().diag(), shape=(1, 2, 2))
    right = noisy * clean / (clean + s**2)
    alone, averaged = (
        (sample.tweedie(flow, noisy, s, symmetries) - right).square().mean() for symmetries in ((), ("flip", "turn"))
    )
    shrinkage = believed / (believed + s**2)
    power = (clean + s**2) * (shrinkage - 0.8).square().mean()
    assert alone == pytest.approx(float(power), rel=0.05)
    assert averaged == pytest.approx((clean + s**2) * float(shrinkage.mean() - 0.8) ** 2, rel=0.05)


def test_bad_input_is_refused_with_what_is_allowed():
    flow, x = priors.Linear(torch.eye(12).double(), shape=(3, 2, 2)), normal(1, 3, 2, 2)
    for call, message in [
        (lambda: sample.tweedie(priors.GAN(), normal(1, 3), 0.1), "flow: got GAN, which has no density"),
        (lambda: sample.tweedie(flow, x, 0.0), "std: got 0"),
        (lambda: sample.tweedie(flow, x, 0.1, ("flips",)), "symmetries: got .*did you mean flip"),
        (lambda: sample.tweedie(flow, x, 0.1, "flip"), "symmetries: got 'flip'; allowed: a tuple"),
        (lambda: sample.orbit(normal(2, 12), ("flip",)), r"x: got shape \(2, 12\); allowed: images"),
        (lambda: sample.orbit(normal(1, 3, 2, 4), ("turn",)), "square ones for 'turn'"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
