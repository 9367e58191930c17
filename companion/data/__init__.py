"""Data sets of the book: `load` gives a torch Dataset of images in [0, 1].

============= ============ =========== ===================================================================
name          shape        from        train / validation / test
============= ============ =========== ===================================================================
digits        [1, 8, 8]    embedded    scikit-learn's 1,797 in their order: first 1,300 / 200 / last 297
photos        [3, 32, 32]  embedded    crops of different photographs, see `companion.data._photos`
mnist         [1, 28, 28]  downloaded  first 55,000 / last 5,000 of the 60,000 / 10,000
fashion-mnist [1, 28, 28]  downloaded  as mnist
eurosat       [3, 64, 64]  user's file index.csv: nine tenths of train / every tenth / test
flowers       [3, 64, 64]  user's file as eurosat, with the train and test images of Asim et al. 2020
celeba        [3, 64, 64]  user's file CelebA's own partition
============= ============ =========== ===================================================================

``photos`` also has size 64; the sets of size 64 also have size 32, by averaging 2 x 2 pixels.
Files are looked for in the folder that the environment variable COMPANION_DATA names, then in the user's cache, then
downloaded with a checksum. Layout, sources and licences are in ``data/README.md``.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from companion._support import one_of
from companion.data import _decode, _photos
from companion.data._dataset import Images
from companion.data._sources import SOURCES, cache_folder, given_folder, locate

__all__ = ["Images", "fetch", "licence", "load", "names"]

SPLITS = ("train", "validation", "test")
_Read = Callable[[str, str, int], tuple[Tensor, Tensor | None]]


def names() -> tuple[str, ...]:
    """Names of the data sets, embedded ones first."""
    return tuple(_SETS)


def load(name: str, split: str = "train", size: int | None = None) -> Images:
    """Images of one split, float32 [channels, height, width] in [0, 1] each, in the same order every time.

    Args:
        name: one of `names`.
        split: "train", "validation" or "test".
        size: height and width in pixels; by default the set's own (32 for photos).

    Raises:
        ValueError: an unknown name, split or size, or a file that is damaged.
        FileNotFoundError: the set is not on this machine and could not be downloaded.
    """
    one_of("name", name, _SETS)
    one_of("split", split, SPLITS)
    sizes, read = _SETS[name]
    size = sizes[0] if size is None else size
    one_of("size", size, sorted(sizes))
    images, labels = read(name, split, size)
    return Images(images, labels, name, split)


def fetch(name: str) -> list[Path]:
    """Make sure that every file of a data set is on this machine, and return their paths; [] for an embedded set.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: a file is not on this machine and could not be downloaded.
    """
    one_of("name", name, _SETS)
    if name == "celeba":
        return [_faces_folder()]
    return [locate(name, file) for file in SOURCES[name].files] if name in SOURCES else []


def licence(name: str) -> str:
    """Licence of a data set in a few words; the details are in ``data/README.md``. ValueError for an unknown name."""
    one_of("name", name, _SETS)
    return _LICENCES[name]


def _digits(name: str, split: str, size: int) -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits: 17 grey levels (counts of 0 to 16 dark pixels), spread over 0 to 255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = {"train": slice(0, 1300), "validation": slice(1300, 1500), "test": slice(1500, None)}[split]
    grey = torch.from_numpy(digits.images[part]).mul(255 / 16).round().to(torch.uint8)
    return grey[:, None], torch.from_numpy(digits.target[part]).long()


def _crops(name: str, split: str, size: int) -> tuple[Tensor, None]:
    return _photos.crops(split, size), None


def _idx(name: str, split: str, size: int) -> tuple[Tensor, Tensor]:
    """LeCun's four files; the last twelfth of the training images validates."""
    prefix = "t10k" if split == "test" else "train"
    files = [locate(name, f"{prefix}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")]
    images, labels = map(_decode.read_idx, files)
    if images.dim() != 3 or images.shape[1:] != (size, size) or labels.shape != images.shape[:1]:
        given = f"images {tuple(images.shape)} with labels {tuple(labels.shape)}"
        raise ValueError(f"{files[0]}: got {given}; allowed: [N, {size}, {size}] with one label for each")
    fitted = len(images) - len(images) // 12
    part = {"train": slice(0, fitted), "validation": slice(fitted, None), "test": slice(None)}[split]
    return images[part, None], labels[part].long()


def _zip(name: str, split: str, size: int) -> tuple[Tensor, Tensor]:
    columns = {"eurosat": ("class", "split"), "flowers": ("class_1to102", "asim2020_split")}[name]
    images, labels = _decode.read_zip(locate(name, *SOURCES[name].files), split, *columns)
    return _resized(images, size), labels


def _faces(name: str, split: str, size: int) -> tuple[Tensor, None]:
    return _resized(_decode.read_faces(_faces_folder(), split, cache_folder("celeba")), size), None


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


_SETS: dict[str, tuple[tuple[int, ...], _Read]] = {
    "digits": ((8,), _digits),
    "photos": (_photos.SIZES, _crops),
    "mnist": ((28,), _idx),
    "fashion-mnist": ((28,), _idx),
    "eurosat": ((64, 32), _zip),
    "flowers": ((64, 32), _zip),
    "celeba": ((64, 32), _faces),
}

_LICENCES = {
    "digits": "CC BY 4.0 (UCI Machine Learning Repository)",
    "photos": "public domain, CC0 or CC BY 2.0; for the motorcycle none is stated",
    "mnist": "CC BY-SA 3.0",
    "fashion-mnist": "MIT",
    "eurosat": "MIT",
    "flowers": "none stated; offered for research",
    "celeba": "non-commercial research only",
}
