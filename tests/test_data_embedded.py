import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from companion import _support, data
from companion.data import _decode, _photos


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    parts = [data.load("digits", split) for split in ("train", "validation", "test")]
    grey = torch.cat([part[:] for part in parts])[:, 0].double()
    assert (grey - torch.from_numpy(load_digits().images) / 16).abs().max() <= 0.5 / 255 + 1e-7
    assert torch.cat([part.labels for part in parts]).tolist() == load_digits().target.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
def test_photos_are_varied_and_the_same_each_time(size: int) -> None:
    for name, split, least in (("photos", "train", 4000), ("photos", "validation", 24), ("china-coffee", "test", 48)):
        first, second = data.load(name, split, size), data.load(name, split, size)
        assert first.shape == (3, size, size) and len(first) >= least and first.labels is None
        assert torch.equal(first.images, second.images)
        deviation = first.images.double().var((2, 3), correction=0).mean(1).sqrt() / 255
        assert deviation.min() > 0.8 * _photos.FLAT


@pytest.mark.slow
def test_photos_of_a_split_come_from_photographs_of_their_own() -> None:
    groups = [{*_photos._VARIED, *_photos._UNIFORM}, {*_photos._VALIDATION}, {*_photos._TEST}]
    assert len(set.union(*groups)) == sum(map(len, groups))
    train, test = (
        {crop.numpy().tobytes() for crop in data.load("photos", split).images} for split in ("train", "test")
    )
    assert not train & test


@pytest.mark.parametrize("size", [32, 64])
def test_kodak_has_the_same_place_of_each_photograph_in_every_round(size: int) -> None:
    crops = data.load("kodak", "test", size)
    assert crops.photo.tolist() == [*range(24)] * 3
    for photo in (0, 23):
        with Image.open(_support.store() / "images" / f"kodim{photo + 1:02}.webp") as opened:
            whole = np.asarray(opened).transpose(2, 0, 1)
        top = 125 - size // 2
        for turn, middle in enumerate((125, 41, 208)):  # the centres of the thirds of 250 pixels, the middle one first
            expected = whole[:, top : top + size, middle - size // 2 :][:, :, :size]
            assert np.array_equal(crops.images[24 * turn + photo].numpy(), expected)


def test_kodak_is_at_half_size() -> None:
    middle = data.load("kodak", "test").images[0, :, 16, 16]
    original = torch.tensor([132.25, 134.5, 107.75])  # mean of the four middle pixels of the 500 x 500 file
    assert (middle - original).abs().max() <= 0.5


def places(crop: Tensor, photograph: Tensor) -> list[tuple[int, int]]:
    """Every place (row, column) of a crop in a photograph, by exhaustive search."""
    windows = photograph.unfold(1, 64, 1).unfold(2, 64, 1)
    candidates = (windows[:, :, :, 0, 0] == crop[:, None, None, 0, 0]).all(0).nonzero().tolist()
    return [(r, c) for r, c in candidates if torch.equal(photograph[:, r : r + 64, c : c + 64], crop)]


def test_china_coffee_crops_are_spread_over_both_photographs_without_overlap() -> None:
    crops = data.load("china-coffee", "test", 64).images
    photographs = [_photos._read(name) for name in ("china.jpg", "coffee.png")]
    found = [[(k, *place) for k, photo in enumerate(photographs) for place in places(crop, photo)] for crop in crops]
    assert all(len(where) == 1 for where in found)
    where = torch.tensor([place for (place,) in found])
    distance = (where[:, None] - where[None]).abs()
    apart = (distance[..., 0] > 0) | (distance[..., 1:] >= 64).any(-1)
    assert (apart | torch.eye(len(crops), dtype=torch.bool)).all()
    for k, photo in enumerate(photographs):
        rows, columns = where[:12][where[:12, 0] == k][:, 1:].T
        assert len(rows) == 6
        assert rows.max() - rows.min() >= photo.shape[1] / 3 and columns.max() - columns.min() >= photo.shape[2] / 3


def test_china_coffee_of_size_32_is_the_average_of_size_64() -> None:
    small, large = data.load("china-coffee", "test", 32), data.load("china-coffee", "test", 64)
    average = torch.nn.functional.avg_pool2d(large.images.double(), 2)
    assert (small.images.double() - average).abs().max() <= 0.5


@pytest.mark.slow
def test_photos_of_each_split_know_their_photographs() -> None:
    for split, number in (("train", 7), ("validation", 1), ("test", 24)):
        images = data.load("photos", split)
        assert images.photo.unique().tolist() == list(range(number)) and images.photo.shape == (len(images),)
    assert data.load("china-coffee", "test").photo[:6].tolist() == [0, 1] * 3
    assert torch.equal(data.load("kodak", "test").images, data.load("photos", "test").images)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_shrink_is_the_local_mean(factor: int) -> None:
    from skimage.transform import downscale_local_mean

    picture = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, 14, 11), dtype=np.uint8))
    cut = picture[:, : 14 // factor * factor, : 11 // factor * factor].numpy()
    expected = downscale_local_mean(cut.astype(float), (1, factor, factor))
    assert np.abs(_decode.shrink(picture, factor).numpy() - expected).max() <= 0.5


def test_indexing_gives_images_in_the_unit_interval() -> None:
    digits = data.load("digits", "test")
    assert digits[3].shape == (1, 8, 8) and digits[3].dtype == torch.float32
    assert torch.equal(digits[[3, 5]], torch.stack([digits[3], digits[5]])) and torch.equal(digits[3:5][1], digits[4])
    assert digits[:].min() >= 0 and digits[:].max() == 1
    batch = next(iter(torch.utils.data.DataLoader(digits, batch_size=4)))
    assert torch.equal(batch, digits[:4])
    assert repr(digits) == "Images('digits', split='test', 297 of [1, 8, 8])"


def test_images_refuses_other_tensors() -> None:
    with pytest.raises(ValueError, match=r"images: got torch.float32"):
        data.Images(torch.zeros(2, 1, 8, 8), None, "x", "train")
    with pytest.raises(ValueError, match="labels: got"):
        data.Images(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(3), "x", "train")
    with pytest.raises(ValueError, match="photo: got"):
        data.Images(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), None, "x", "train", torch.zeros(3))
