"""Pictures of a user's own, in every format, and the zip of photographs."""

import hashlib
import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from companion import data
from companion.data import _decode, _photos

RANDOM = np.random.default_rng(0)


def noise(height: int, width: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


def read(file: Path) -> np.ndarray:
    return _decode.picture(file).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_lossless_pictures_keep_their_pixels(name: str, tmp_path: Path) -> None:
    pixels = noise(40, 50)
    Image.fromarray(pixels).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    assert np.array_equal(read(tmp_path / name), pixels)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_become_eight(name: str, tmp_path: Path) -> None:
    ramp = np.array([[0, 16705, 33410, 49858, 65535]], np.uint16)
    Image.fromarray(ramp).save(tmp_path / name)
    assert read(tmp_path / name)[0, :, 0].tolist() == [0, 65, 130, 194, 255]


def test_hidden_folders_and_folders_named_like_pictures_are_no_pictures(tmp_path: Path) -> None:
    for name in (".thumbnails/a.png", ".a.png", "album.jpg/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(40, 40)).save(tmp_path / name)
    seen = [file.relative_to(tmp_path).as_posix() for file in _decode.pictures_in(tmp_path)]
    assert seen == ["album.jpg/b.png", "c.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_name_that_is_no_text_is_a_name(tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"b.png", b"c.png"):
        Image.fromarray(noise(40, 40)).save(tmp_path / os.fsdecode(name))
    assert len(data.folder(tmp_path, "train").photo.unique()) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(orientation: int, tmp_path: Path) -> None:
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:10, :15] = 255  # white in the upper left
    upright[:10, 15:] = 128  # grey in the upper right
    undo = {  # how a camera held otherwise has stored it (EXIF 2.3, tag 274)
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    for name in ("a.png", "a.jpg"):
        Image.fromarray(np.ascontiguousarray(undo(upright))).save(tmp_path / name, exif=exif, quality=95)
        assert np.abs(read(tmp_path / name).astype(int) - upright).mean() < 5


def test_transparent_pixels_lie_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (200, 100, 0, 255)
    pixels[:, 4:] = (200, 100, 0, 102)  # 40 %
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0, [0, 7]].tolist() == [[200, 100, 0], [233, 193, 153]]
    clear = Image.fromarray(np.zeros((8, 8), np.uint8), "P")
    clear.save(tmp_path / "b.png", transparency=0)
    assert (read(tmp_path / "b.png") == 255).all()


def test_a_folder_is_split_by_picture_in_the_order_of_hashes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for k in range(23):
        Image.fromarray(noise(16, 16)).save(tmp_path / ("sub" if k % 2 else ".") / f"{k:02}.{'PNG' if k else 'tiff'}")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._00.png").write_bytes(b"what macOS leaves behind")
    paths = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("[0-9]*"))
    parts = {split: data.folder(tmp_path, split, size=16) for split in ("train", "validation", "test")}
    hashes = [hashlib.sha256(path.encode()).hexdigest() for path in paths]
    assert [hashes[k] for k in parts["validation"].photo] == [min(hashes)]
    assert [hashes[k] for k in parts["test"].photo] == [max(hashes)]
    assert sorted(k for part in parts.values() for k in part.photo.tolist()) == list(range(23))
    for part in parts.values():
        for crop, photo in zip(part.images, part.photo, strict=True):
            assert np.array_equal(crop.permute(1, 2, 0).numpy(), read(tmp_path / paths[photo]))
    assert repr(parts["test"]) == f"Images({tmp_path.name!r}, split='test', 1 of [3, 16, 16])"


def test_large_pictures_are_shrunk_and_cut_at_two_scales(tmp_path: Path) -> None:
    pixels = noise(16 * 5 * 2, 16 * 5 * 2 + 6)  # 160 x 166: halved, then quartered
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(noise(80, 80)).save(tmp_path / "z.png")
    crops = data.folder(tmp_path, size=16)
    assert crops.photo[:1].tolist() == [0] and crops.photo.unique().tolist() == [0]  # the second validates
    means = [torch.from_numpy(pixels).permute(2, 0, 1).float()]
    half, quarter = (torch.nn.functional.avg_pool2d(means[0], f) for f in (2, 4))
    places = [half[:, i : i + 16, j : j + 16] for i in (*range(0, 65, 12), 64) for j in (*range(0, 68, 12), 67)]
    places += [quarter[:, i : i + 16, j : j + 16] for i in range(0, 25, 8) for j in (*range(0, 26, 8), 25)]
    kept = [place for place in places if (place / 255).var((1, 2), correction=0).mean().sqrt() >= _photos.FLAT]
    assert len(crops) == len(kept) > 40
    gaps = torch.stack([(crops.images.float() - place).abs().amax((1, 2, 3)).min() for place in kept])
    assert gaps.max() <= 0.5


def test_the_first_crops_are_one_of_each_picture(tmp_path: Path) -> None:
    for k in (1, 2, 4):  # all for training
        Image.fromarray(noise(40 + 8 * k, 64)).save(tmp_path / f"{k}.png")
    for k in (0, 3):
        Image.fromarray(noise(40, 40)).save(tmp_path / f"{k}.png")
    crops = data.folder(tmp_path, size=16)
    assert crops.photo[:9].tolist() == [1, 2, 4] * 3
    assert torch.equal(crops.images, data.folder(tmp_path, size=16).images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.unlink(), r"path: got .* with 0 pictures; allowed: at least 1 for 'train'"),
        (lambda f: f.write_bytes(b"<html>"), r"a.png: got a damaged file .*; allowed: a whole JPEG, PNG, TIFF or WebP"),
        (lambda f: f.write_bytes(f.read_bytes()[:900]), r"a.png: got a damaged file"),
        (lambda f: Image.fromarray(noise(20, 40)).save(f), r"a.png: got a picture of 40x20 pixels; allowed: .* 32x32"),
        (lambda f: Image.new("RGB", (40, 40)).save(f), r"path: got .* with nearly constant pictures only"),
        (lambda f: Image.fromarray(RANDOM.random((40, 40), np.float32)).save(f, "TIFF"), r"a.png: got another kind"),
    ],
)
def test_pictures_that_cannot_be_used_are_named(make, message: str, tmp_path: Path) -> None:
    Image.fromarray(noise(40, 40)).save(tmp_path / "a.png")
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message) as caught:
        data.folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_paths_and_splits_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    Image.fromarray(noise(40, 40)).save(tmp_path / "a.png")
    for call, message in (
        (lambda: data.folder(tmp_path / "none"), "path: got .*none, which is no folder"),
        (lambda: data.folder(tmp_path, "test"), "with 1 pictures; allowed: at least 3 for 'test'"),
        (lambda: data.folder(tmp_path, "dev"), "split: got 'dev'"),
        (lambda: data.folder(tmp_path, size=0), "size: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def write_photographs(file: Path, splits: list[str]) -> list[np.ndarray]:
    file.parent.mkdir()
    pictures = [noise(160, 176) for _ in splits]
    with zipfile.ZipFile(file, "w") as archive:
        rows = [f"{k}.webp,176,160,{split}" for k, split in enumerate(splits)]
        archive.writestr("index.csv", "\n".join(["file,width,height,split", *rows]))
        for k, pixels in enumerate(pictures):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "WEBP", lossless=True)
            archive.writestr(f"{k}.webp", stream.getvalue())
    return pictures


@pytest.mark.slow
def test_photographs_are_cut_by_split_and_trained_on_with_the_embedded_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    file = tmp_path / "imagenet1000" / "imagenet1000_160.zip"
    pictures = write_photographs(file, ["train", "validation", "train"])
    validation, train = data.load("photographs", "validation"), data.load("photographs")
    assert validation.photo.unique().tolist() == [0] and train.photo[:9].tolist() == list(range(9))
    whole = torch.from_numpy(pictures[1]).permute(2, 0, 1)
    corners = [whole[:, i : i + 32, j : j + 32] for i in range(0, 129, 24) for j in range(0, 145, 24)]
    assert all((validation.images == corner).all((1, 2, 3)).sum() == 1 for corner in corners)
    own = data.load("photos")
    assert (train.photo >= 2).sum() == len(own)
    for photo in (0, 6):
        mine, theirs = own.images[own.photo == photo].long(), train.images[train.photo == photo + 2].long()
        assert torch.equal(mine.sum(0), theirs.sum(0))  # the same crops in another order
    assert torch.equal(data.load("photographs", "test").images, data.load("kodak", "test").images)
    file.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"imagenet1000_160.zip: got a damaged file"):
        data.load("photographs", "validation")
