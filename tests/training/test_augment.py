"""Augmentations: what each does to images, and that the seed of the step decides."""

import pytest
import torch
from flow_cases import rand

from companion import _support
from companion.training.augment import AUGMENTATIONS, augment


def augmented(images, *names, seed=0):
    return augment(images, names, _support.generator(seed, "test"))


def share_of(images, changed, candidates):
    """How many of `changed` equal each candidate of their image; every one must equal at least one."""
    hits = torch.stack([torch.isclose(changed, c).flatten(1).all(1) for c in candidates])
    assert hits.any(0).all()
    return hits.double().mean(1)


@pytest.mark.parametrize(
    "name, candidates",
    [
        ("flip", lambda x: [x, x[:, :, :, [3, 2, 1, 0]]]),
        ("turn", lambda x: [x, x.transpose(2, 3).flip(2), x.flip(2).flip(3), x.transpose(2, 3).flip(3)]),
        ("colours", lambda x: [x[:, list(o)] for o in torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2]]).tolist()]),
    ],
)
def test_images_are_rearranged_each_way_equally_often(name, candidates):
    images = rand(600, 3, 4, 4)
    ways = candidates(images)
    changed = augmented(images, name)
    if name == "colours":  # all six orders: each channel comes first equally often, and none is lost
        torch.testing.assert_close(changed.sort(1).values, images.sort(1).values)
        first = (changed[:, :1] == images).flatten(2).all(2).double().mean(0)
        assert (first - 1 / 3).abs().max() < 0.08
        return
    share = share_of(images, changed, ways)
    assert (share - 1 / len(ways)).abs().max() < 0.08


def test_brightness_keeps_pixels_in_range_and_is_affine_in_them():
    images = rand(200, 3, 4, 4)
    images[0], images[1] = 0.0, 1.0
    changed = augmented(images, "brightness")
    assert changed.min() >= 0 and changed.max() <= 1
    flat, now = images[2:].flatten(1), changed[2:].flatten(1)
    centred, moved = flat - flat.mean(1, keepdim=True), now - now.mean(1, keepdim=True)
    slope = (centred * moved).sum(1) / centred.square().sum(1)
    torch.testing.assert_close(moved, slope[:, None] * centred, rtol=0, atol=1e-9)
    assert 0.5 < slope.min() < 0.8 and 1.0 < slope.max() <= 1.25**2 and (changed[2:] != images[2:]).any(1).all()


def test_the_stream_of_the_step_alone_decides():
    images = rand(20, 3, 4, 4)
    everything = tuple(AUGMENTATIONS)
    state = torch.get_rng_state()
    assert torch.equal(augmented(images, *everything), augmented(images, *everything))
    assert not torch.equal(augmented(images, *everything), augmented(images, *everything, seed=1))
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(augmented(images), images)
