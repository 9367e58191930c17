"""Mask makers: what is hidden, how much of it, and bad input."""

import pytest
import torch

from companion.measure import masks


def test_centre_hides_the_published_rows_and_columns():
    mask = masks.centre((3, 64, 64), 0.3)
    expected = torch.ones(3, 64, 64, dtype=torch.bool)
    expected[:, 22:41, 22:41] = False  # rows and columns of the published experiments
    assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    ("hidden", "slices"),
    [
        ("left", (slice(None), slice(0, 3))),
        ("right", (slice(None), slice(7, 10))),
        ("top", (slice(0, 2), slice(None))),
        ("bottom", (slice(4, 6), slice(None))),
    ],
)
def test_side_hides_one_band(hidden, slices):
    expected = torch.ones(2, 6, 10, dtype=torch.bool)
    expected[:, slices[0], slices[1]] = False
    assert torch.equal(masks.side((2, 6, 10), hidden, 0.3), expected)


@pytest.mark.parametrize("missing", [0.0, 0.25, 0.9])
def test_random_masks_hide_the_exact_number(missing):
    pixels, values = masks.random_pixels((3, 10, 20), missing, 1), masks.random_subpixels((3, 10, 20), missing, 1)
    assert int((~pixels).sum()) == 3 * round(missing * 200)
    assert int((~values).sum()) == round(missing * 600)
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])
    assert missing == 0 or not torch.equal(values[0], values[1])


def test_random_masks_follow_their_seed():
    one, same, other = (masks.random_subpixels((1, 16, 16), 0.5, seed) for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_text_hides_strokes_all_over_the_image():
    mask = masks.text((3, 64, 64), "flow")
    assert torch.equal(mask[0], mask[1]) and torch.equal(mask, masks.text((3, 64, 64), "flow"))
    hidden = (~mask[0]).float()
    assert 0.05 < float(hidden.mean()) < 0.5
    for quarter in (hidden[:32, :32], hidden[:32, 32:], hidden[32:, :32], hidden[32:, 32:]):
        assert quarter.any()
    assert not torch.equal(mask, masks.text((3, 64, 64), "prior"))


def test_text_reaches_the_last_row_of_a_narrow_image():
    hidden = ~masks.text((1, 64, 8), "i", size=2)[0]
    assert hidden[-8:].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masks.centre((3, 8, 8), 1.0), "missing: got 1.0"),
        (lambda: masks.centre((8, 8)), "shape: got"),
        (lambda: masks.random_pixels((1, 8, 8), -0.1), "missing: got -0.1"),
        (lambda: masks.random_pixels((1, 2, 2), 0.99), "hides every pixel"),
        (lambda: masks.side((1, 8, 8), "middle"), "hidden: got 'middle'"),
        (lambda: masks.text((1, 8, 8), "  "), "words: got"),
        (lambda: masks.text((1, 8, 8), size=0.1), "size: got 0.1; allowed: a number of pixels from 1 to"),
        (lambda: masks.text((1, 8, 8), size=1e6), "size: got 1000000.0; allowed: .* height, 8"),
        (lambda: masks.text((1, 4, 4), "abc"), "size: got 1.0, at which the strokes are too fine"),
        (lambda: masks.random_pixels((1, 8, 8), 0.5, -1), "seed: got -1; allowed"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
