"""Checks of arguments: what is allowed passes unchanged, all else is refused in one line that names it."""

import math

import numpy as np
import pytest
import torch

from companion import _support


def refused(call, *parts):
    with pytest.raises(ValueError) as refusal:
        call()
    message = str(refusal.value)
    assert "\n" not in message and message.count("; allowed: ") == 1
    for part in parts:
        assert part in message


def test_one_of():
    assert _support.one_of("kind", "a", ["a", "b"]) == "a"
    assert _support.one_of("kind", 3, range(5)) == 3
    assert _support.one_of("kind", None, iter([None])) is None
    refused(lambda: _support.one_of("kind", "c", ["a", "b"]), "kind: got 'c'", "a, b")
    refused(lambda: _support.one_of("kind", "c", []), "nothing yet")
    refused(lambda: _support.one_of("kind", ["a"], ["a", "b"]), "got ['a']")


@pytest.mark.parametrize("value", [1, 0.5, 1e-300, 10**9])
def test_positive_passes_numbers_above_zero(value):
    assert _support.positive("size", value) is value


@pytest.mark.parametrize(
    "value", [0, -1, 0.0, -1e-9, math.nan, math.inf, -math.inf, True, "1", None, [1], 1j, torch.tensor([1.0, 2.0])]
)
def test_positive_refuses_the_rest(value):
    refused(lambda: _support.positive("size", value), "size: got", "a finite number > 0")


def test_zero_passes_where_it_is_allowed():
    assert _support.positive("size", 0, zero=True) == 0 and _support.positive("size", 0.0, zero=True) == 0
    refused(lambda: _support.positive("size", -1e-9, zero=True), ">= 0")
    refused(lambda: _support.positive("size", math.nan, zero=True), ">= 0")
    refused(lambda: _support.positive("size", False, zero=True), ">= 0")


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "3", None, math.nan, math.inf])
def test_count_refuses_all_but_whole_numbers(value):
    refused(lambda: _support.count("steps", value), "steps: got", "a whole number >= 1")


def test_count_passes_whole_numbers():
    assert _support.count("steps", 1) == 1 and _support.count("steps", 0, least=0) == 0
    refused(lambda: _support.count("steps", 1, least=2), ">= 2")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_passes_floating_point_tensors_unchanged(dtype):
    x = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    assert _support.finite("x", x) is x
    empty = torch.ones(0, dtype=dtype)
    assert _support.finite("x", empty) is empty


@pytest.mark.parametrize(
    "value, given",
    [
        (torch.tensor([1.0, math.nan, math.inf]), "x: got 2 NaN or infinite values of 3"),
        (torch.tensor([1, 2]), "torch.int64 tensor"),
        (torch.tensor([True]), "torch.bool tensor"),
        (np.ones(3), "ndarray"),
        ([1.0], "list"),
        (None, "NoneType"),
    ],
)
def test_finite_refuses_the_rest(value, given):
    refused(lambda: _support.finite("x", value), "x: got", given)


def test_batch_of():
    x = torch.ones(5, 3, 2)
    assert _support.batch_of("x", x, (3, 2)) is x and _support.batch_of("x", x, [3, 2]) is x
    single = torch.ones(4)
    assert _support.batch_of("x", single, ()) is single
    for wrong in (torch.ones(3, 2), torch.ones(0, 3, 2), torch.ones(5, 2, 3), torch.ones(5, 3, 2, 1)):
        refused(lambda w=wrong: _support.batch_of("x", w, (3, 2)), f"got shape {tuple(wrong.shape)}", "[batch, 3, 2]")
    refused(lambda: _support.batch_of("x", np.ones((5, 3, 2)), (3, 2)), "got shape ndarray")


def test_images():
    x = torch.rand(2, 3, 4, 5)
    assert _support.images("x", x) is x and _support.images("x", x, (3, 4, 5)) is x
    assert _support.images("x", torch.tensor([[[[0.0, 1.0]]]])).numel() == 2
    refused(lambda: _support.images("x", x, (3, 5, 4)), "[batch, 3, 5, 4]")
    refused(lambda: _support.images("x", x[0]), "got (3, 4, 5)")
    refused(lambda: _support.images("x", x[:0]), "got (0, 3, 4, 5)")
    refused(lambda: _support.images("x", [x]), "got list")
    refused(lambda: _support.images("x", 255 * x.round()), "pixels from 0 to 255")
    refused(lambda: _support.images("x", x - 1), "pixels in [0, 1]")
    refused(lambda: _support.images("x", (255 * x).to(torch.uint8)), "torch.uint8 tensor")
    refused(lambda: _support.images("x", x * math.nan), "120 NaN")
    refused(lambda: _support.images("x", torch.full((1, 1, 1, 1), 1 + 1e-6)), "allowed: pixels in [0, 1]")


def test_generators_come_from_seeds_or_pass_through():
    assert torch.equal(torch.rand(3, generator=_support.generator(7)), torch.rand(3, generator=_support.generator(7)))
    given = torch.Generator()
    assert _support.generator(given) is given
    for wrong in (None, -1, 1.5, True, "0", np.int64(3).item() * 1.0, 2**64):
        refused(lambda w=wrong: _support.generator(w), "seed: got", "a whole number >= 0 and < 2**64")
    assert _support.generator(2**64 - 1).initial_seed() % 2**64 == 2**64 - 1


def test_normal_draws_depend_on_the_seed_alone_and_follow_the_dtype():
    like = torch.zeros((), dtype=torch.float64)
    torch.manual_seed(0)
    first = _support.normal((1000, 3), 4, like)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(first, _support.normal((1000, 3), 4, like)) and torch.equal(state, torch.get_rng_state())
    assert first.dtype == torch.float64 and first.shape == (1000, 3)
    assert abs(float(first.mean())) < 0.1 and abs(float(first.std()) - 1) < 0.1
    draw = torch.Generator().manual_seed(4)
    assert torch.equal(first, _support.normal((1000, 3), draw, like))
    assert not torch.equal(first, _support.normal((1000, 3), draw, like))  # a generator moves on
    assert _support.normal((2,), 4, like.float()).dtype == torch.float32


def test_the_store_is_the_folder_of_the_checkout():
    assert _support.store().name in ("data", "_stored")
