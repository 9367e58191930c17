"""Data sets of the book: `load` gives a torch Dataset of images in [0, 1], `folder` the same of a user's pictures.

============= ============ =========== ===================================================================
name          shape        from        train / validation / test
============= ============ =========== ===================================================================
digits        [1, 8, 8]    embedded    scikit-learn's 1,797 in their order: first 1,300 / 200 / last 297
photos        [3, 32, 32]  embedded    crops of seven photographs / of one / those of kodak
kodak         [3, 32, 32]  embedded    test only: three crops each of the 24 Kodak photographs at half size
china-coffee  [3, 32, 32]  embedded    test only: tiles of two photographs
photographs   [3, 32, 32]  user's file crops of 892 / 46 photographs of ImageNet, train with those of photos / kodak
mnist         [1, 28, 28]  downloaded  first 55,000 / last 5,000 of the 60,000 / 10,000
fashion-mnist [1, 28, 28]  downloaded  as mnist
eurosat       [3, 64, 64]  user's file index.csv: nine tenths of train / every tenth / test
flowers       [3, 64, 64]  user's file as eurosat, with the train and test images of Asim et al. 2020
celeba        [3, 64, 64]  user's file CelebA's own partition
============= ============ =========== ===================================================================

Sets of photographs also have size 64; the sets of size 64 also have size 32, by averaging 2 x 2 pixels.
Files are looked for in the folder that the environment variable COMPANION_DATA names, then in the user's cache, then
downloaded with a checksum. Layout, sources and licences are in ``data/README.md``.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from companion._support import count, one_of, sha256
from companion.data import _decode, _photos
from companion.data._dataset import Images
from companion.data._sources import SOURCES, cache_folder, given_folder, locate

__all__ = ["Images", "fetch", "folder", "licence", "load", "names"]

SPLITS = ("train", "validation", "test")

_Read = Callable[[str, str, int], tuple[Tensor, Tensor | None, Tensor | None]]


@dataclass(frozen=True)
class _Set:
    """One data set: sizes (the default first), and the reader of (images, labels, photo)."""

    sizes: tuple[int, ...]
    read: _Read
    licence: str
    splits: tuple[str, ...] = SPLITS


def names() -> tuple[str, ...]:
    """Names of the data sets, embedded ones first."""
    return tuple(_SETS)


def load(name: str, split: str = "train", size: int | None = None) -> Images:
    """Images of one split, float32 [channels, height, width] in [0, 1] each, in the same order every time.

    `name` is one of `names`, `split` "train", "validation" or "test", `size` the height and width in pixels, by default
    the set's own (32 for photographs). ValueError for another name, split or size, or a file that is damaged;
    FileNotFoundError where the set is not on this machine and could not be downloaded.
    """
    chosen = _chosen(name)
    one_of("split", split, chosen.splits)
    size = chosen.sizes[0] if size is None else size
    one_of("size", size, sorted(chosen.sizes))
    images, labels, photo = chosen.read(name, split, size)
    return Images(images, labels, name, split, photo)


def folder(path: str | Path, split: str = "train", size: int = 32) -> Images:
    """Crops of the JPEG, PNG, TIFF and WebP pictures in a folder and its subfolders, a data set like those of `load`.

    Hidden files and folders are left out, and links to folders are not followed. Pictures are turned as their EXIF data
    say; 16 bits become 8; transparent ones lie on white; grey ones are given
    three equal channels. Each is shrunk by averaging f x f pixels, f the largest whole number that leaves its shorter
    side at least five times `size`, and by 2f, and cut by sliding windows, [3, size, size], with strides of 3/4 and 1/2
    of `size` and a last window at the far edge; nearly constant windows are left out. In the order of the hashes of the
    pictures' paths below the folder (SHA-256), the first twentieth is for validation, the last for testing, one at
    least, the rest for training: so hardly any picture changes sides where others are added. The first crops are one of
    each picture, then another of each; `Images.photo` is the picture's number in the order of the paths.

    Raises ValueError for a path that is no folder or holds no picture of the split, and, naming the file, for a picture
    that can't be read, is smaller than `size`, or where every crop of the split is nearly constant.
    """
    one_of("split", split, SPLITS)
    size, root = count("size", size), Path(path).expanduser()
    files = _decode.pictures_in(root)
    n = len(files)
    hashed = sorted(range(n), key=lambda k: sha256(os.fsencode(files[k].relative_to(root).as_posix())))
    first, last = max(n // 20, min(1, n - 1)), n - max(n // 20, min(1, n - 2))
    wanted = sorted({"train": hashed[first:last], "validation": hashed[:first], "test": hashed[last:]}[split])
    if not wanted:
        raise ValueError(
            f"path: got {path} with {n} pictures; allowed: at least {SPLITS.index(split) + 1} for {split!r}"
        )
    windows = [_photos.windows(_decode.picture(files[k]), size, files[k], flush=True) for k in wanted]
    images, photo = _photos.interleave(windows, wanted)
    if not len(images):
        raise ValueError(f"path: got {path} with nearly constant pictures only; allowed: pictures that show something")
    return Images(images, None, root.resolve().name, split, photo)


def fetch(name: str) -> list[Path]:
    """Make sure that every file of a data set is on this machine and whole; return their paths; [] for an embedded set.

    A damaged file in the cache is downloaded anew. ValueError for an unknown name or a damaged file of the user's;
    FileNotFoundError for one that is not on this machine and could not be downloaded.
    """
    _chosen(name)
    if name == "celeba":
        faces = _faces_folder()
        for split in _decode.face_splits(faces):
            _decode.read_faces(faces, split, cache_folder("celeba"))
        return [faces]
    return [locate(name, file) for file in SOURCES[name].files] if name in SOURCES else []


def licence(name: str) -> str:
    """Licence of a data set in a few words; the details are in ``data/README.md``. ValueError for an unknown name."""
    return _chosen(name).licence


def _chosen(name: str) -> _Set:
    if name not in _SETS and isinstance(name, str | Path) and Path(name).expanduser().is_dir():
        raise ValueError(
            f"name: got the folder {name}; allowed: a name; for a folder of pictures data.folder({name!r})"
        )
    one_of("name", name, _SETS)
    return _SETS[name]


def _digits(name: str, split: str, size: int) -> tuple[Tensor, Tensor, None]:
    """Scikit-learn's digits: 17 grey levels (counts of 0 to 16 dark pixels), spread over 0 to 255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = {"train": slice(0, 1300), "validation": slice(1300, 1500), "test": slice(1500, None)}[split]
    grey = torch.from_numpy(digits.images[part]).mul(255 / 16).round().to(torch.uint8)
    return grey[:, None], torch.from_numpy(digits.target[part]).long(), None


def _crops(name: str, split: str, size: int) -> tuple[Tensor, None, Tensor]:
    images, photo = _photos.crops(name, split, size)
    return images, None, photo


def _idx(name: str, split: str, size: int) -> tuple[Tensor, Tensor, None]:
    """LeCun's four files; the last twelfth of the training images validates."""
    prefix = "t10k" if split == "test" else "train"
    files = [locate(name, f"{prefix}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")]
    images, labels = map(_decode.read_idx, files)
    if images.dim() != 3 or images.shape[1:] != (size, size) or labels.shape != images.shape[:1]:
        given = f"images {tuple(images.shape)} with labels {tuple(labels.shape)}"
        raise ValueError(f"{files[0]}: got {given}; allowed: [N, {size}, {size}] with one label for each")
    fitted = len(images) - len(images) // 12
    part = {"train": slice(0, fitted), "validation": slice(fitted, None), "test": slice(None)}[split]
    return images[part, None], labels[part].long(), None


def _zip(name: str, split: str, size: int) -> tuple[Tensor, Tensor, None]:
    columns = {"eurosat": ("class", "split"), "flowers": ("class_1to102", "asim2020_split")}[name]
    images, labels = _decode.read_zip(locate(name, *SOURCES[name].files), split, *columns)
    return _resized(images, size), labels, None


def _faces(name: str, split: str, size: int) -> tuple[Tensor, None, None]:
    return _resized(_decode.read_faces(_faces_folder(), split, cache_folder("celeba")), size), None, None


def _resized(images: Tensor, size: int) -> Tensor:
    """Images of 64 x 64 averaged to `size`, some thousand at a time: the averaging needs floating-point copies."""
    if size == 64:
        return images
    return torch.cat([_decode.shrink(some, 64 // size) for some in images.split(4096)])


def _faces_folder() -> Path:
    folder = given_folder("celeba")
    if folder is None or not folder.is_dir():
        given = "no COMPANION_DATA" if folder is None else f"no folder {folder}"
        raise FileNotFoundError(
            f"celeba: got {given}; put CelebA's aligned faces, 000001.jpg to 202599.jpg, in the folder celeba of the "
            'one that COMPANION_DATA names, or use the embedded data set "photos"'
        )
    return folder


_PUBLIC = "public domain, CC0 or CC BY 2.0; for the motorcycle none is stated"
_SETS = {
    "digits": _Set((8,), _digits, "CC BY 4.0 (UCI Machine Learning Repository)"),
    "photos": _Set(_photos.SIZES, _crops, _PUBLIC),
    "kodak": _Set(_photos.SIZES, _crops, "released by Eastman Kodak for unrestricted use", ("test",)),
    "china-coffee": _Set(_photos.SIZES, _crops, "CC BY 2.0 and CC0", ("test",)),
    "photographs": _Set(
        _photos.SIZES, _crops, "none stated; ImageNet's pictures are offered for non-commercial research"
    ),
    "mnist": _Set((28,), _idx, "CC BY-SA 3.0"),
    "fashion-mnist": _Set((28,), _idx, "MIT"),
    "eurosat": _Set((64, 32), _zip, "MIT"),
    "flowers": _Set((64, 32), _zip, "none stated; offered for research"),
    "celeba": _Set((64, 32), _faces, "non-commercial research only"),
}
