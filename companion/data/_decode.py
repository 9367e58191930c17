"""Files of images to uint8 tensors [N, C, H, W]: single pictures, idx, a zip with an index, a folder of photographs."""

import csv
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion import _support

_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}

# Last number of each part of CelebA's own partition (Liu et al. 2015, list_eval_partition.txt)
CELEBA_PARTS = {"train": (1, 162770), "validation": (162771, 182637), "test": (182638, 202599)}


def pictures_in(folder: Path) -> list[Path]:
    """Files of pictures in a folder and its subfolders, hidden ones left out, in the order of their paths.

    ValueError for no folder.
    """
    if not folder.is_dir():
        raise ValueError(f"path: got {folder}, which is no folder; allowed: a folder of JPEG, PNG, TIFF or WebP files")
    files = (file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    seen = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    return sorted(seen, key=lambda file: file.relative_to(folder).as_posix())


def picture(source: Path | io.BytesIO, name: object = None) -> Tensor:
    """One picture as uint8 [3, height, width], turned as its EXIF data say.

    16 bits become 8 (grey: v / 257, rounded; colours: the upper 8, as Pillow reads them); transparent pixels lie on
    white. ValueError naming the file (or `name`) for one that is damaged or no picture of 8 or 16 bits.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(source) as opened:
            turned = ImageOps.exif_transpose(opened)
            if turned.mode.startswith("I"):
                grey = np.asarray(turned)
                if grey.min() < 0 or grey.max() > 65535:
                    raise ValueError(f"values from {grey.min()} to {grey.max()}")
                turned = Image.fromarray(np.rint(grey / 257).astype(np.uint8))
            elif turned.mode == "F":
                raise ValueError("values that are no whole numbers")
            elif turned.has_transparency_data:
                turned = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned.convert("RGBA"))
            pixels = np.array(turned.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        why = "a damaged file" if isinstance(error, OSError) else "another kind of file"
        allowed = "a whole JPEG, PNG, TIFF or WebP picture of 8 or 16 bits"
        raise ValueError(f"{name or source}: got {why} ({error}); allowed: {allowed}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def check(file: Path) -> None:
    """Read a gzipped idx file or a zip with an index from beginning to end; ValueError where that fails."""
    if file.suffix == ".gz":
        read_idx(file)
        return
    with _archive(file) as archive:
        if broken := archive.testzip() if archive.getinfo("index.csv") else None:
            raise ValueError(broken)


def read_idx(file: Path) -> Tensor:
    """A gzipped idx file of unsigned bytes (LeCun's format) as a uint8 tensor of its own shape; else ValueError."""
    try:
        with gzip.open(file) as stream:
            content = stream.read()
        zero, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{file}: got a damaged file ({error}); allowed: a gzipped idx file") from None
    start = 4 + 4 * dimensions
    if (zero, kind) != (0, 8) or len(content) != start + int(np.prod(shape)):
        raise ValueError(f"{file}: got {len(content)} bytes that are no idx of bytes; allowed: a gzipped idx file")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def read_zip(file: Path, split: str, class_column: str, split_column: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 64, 64] and classes int64 [N] of one split of a zip of images with an ``index.csv``.

    "validation" is every tenth row of the index's train rows (the 10th, 20th, ...), "train" the others. ValueError
    where `file` is no such zip, is damaged, or an image in it is not 64 x 64.
    """
    with _archive(file) as archive:
        part = [row for row in _index(archive) if row[split_column] == ("test" if split == "test" else "train")]
        if split != "test":
            part = [row for k, row in enumerate(part, 1) if (k % 10 == 0) == (split == "validation")]
        images = [picture(io.BytesIO(archive.read(row["file"])), row["file"]) for row in part]
        labels = torch.tensor([int(row[class_column]) for row in part])
    wrong = next((tuple(image.shape) for image in images if image.shape != (3, 64, 64)), None)
    if wrong or not images:
        given = f"an image of shape {wrong}" if wrong else f"no image of split {split!r}"
        raise ValueError(f"{file}: got {given}; allowed: images of 64 x 64 pixels in every split")
    return torch.stack(images), labels


def read_photographs(file: Path, split: str) -> Iterator[Tensor]:
    """Photographs uint8 [3, height, width] of one split of a zip with an ``index.csv`` (columns file, split), in turn.

    ValueError naming `file` where it is no such zip, is damaged, or has no photograph of the split.
    """
    with _archive(file) as archive:
        rows = [row["file"] for row in _index(archive) if row["split"] == split]
        if not rows:
            raise ValueError(f"no photograph of split {split!r}")
        for row in rows:
            yield picture(io.BytesIO(archive.read(row)), row)


@contextmanager
def _archive(file: Path) -> Iterator[zipfile.ZipFile]:
    """A zip; whatever is wrong with it and its content becomes a ValueError that names it."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file}: got a damaged file ({error}); allowed: a zip with index.csv") from None


def face_splits(folder: Path) -> list[str]:
    """Splits of which a folder of CelebA's faces holds some; ValueError for a file without one of CelebA's numbers."""
    files = [file.stem for file in folder.glob("*.jpg")]
    numbers = [int(stem) for stem in files if stem.isdecimal()]
    if len(numbers) < len(files) or not numbers:
        other = next((f"{stem}.jpg" for stem in files if not stem.isdecimal()), "no jpg")
        raise ValueError(f"{folder}: got {other}; allowed: CelebA's own names, 000001.jpg to 202599.jpg")
    return [split for split, (first, last) in CELEBA_PARTS.items() if any(first <= n <= last for n in numbers)]


def read_faces(folder: Path, split: str, cache: Path) -> Tensor:
    """CelebA's faces, uint8 [N, 3, 64, 64]: the largest centred square of each, shrunk to 64 x 64 (Lanczos).

    The decoded split is kept in `cache` and read from there as long as the folder's files keep their names and sizes.
    ValueError where a file of `folder` is damaged or not named by CelebA's number, or there is none of `split`.
    """
    first, last = CELEBA_PARTS[split]
    if split not in face_splits(folder):
        raise ValueError(f"{folder}: got no file of split {split!r}; allowed: some of {first:06}.jpg to {last:06}.jpg")
    files = [file for file in sorted(folder.glob("*.jpg")) if first <= int(file.stem) <= last]
    state = "".join(f"{file.name} {file.stat().st_size}\n" for file in files)
    stored = cache / f"{split}-{_support.sha256(state)[:16]}.npy"
    if not stored.is_file():
        _decode_faces(files, stored)
    return torch.from_numpy(np.load(stored, mmap_mode="c"))


def shrink(pictures: Tensor, factor: int) -> Tensor:
    """Average blocks of factor x factor pixels of uint8 [..., height, width] and round to 8 bits.

    A remainder at the right and bottom is cut off.
    """
    if factor == 1:
        return pictures
    height, width = (side // factor for side in pictures.shape[-2:])
    whole = pictures[..., : height * factor, : width * factor].float()
    blocks = whole.unflatten(-1, (width, factor)).unflatten(-3, (height, factor))
    return blocks.mean((-3, -1)).round().to(torch.uint8)


def _decode_faces(files: list[Path], stored: Path) -> None:
    """Write the decoded faces to `stored`, whole or not at all."""
    from PIL import Image
    from tqdm import tqdm

    with _support.atomic(stored) as part:
        faces = np.lib.format.open_memmap(part, "w+", np.uint8, (len(files), 3, 64, 64))
        for k, file in enumerate(tqdm(files, desc="celeba", unit="image")):
            face = picture(file)
            side = min(face.shape[1:])
            top, left = ((length - side) // 2 for length in face.shape[1:])
            square = face[:, top : top + side, left : left + side].permute(1, 2, 0).numpy()
            faces[k] = np.asarray(Image.fromarray(square).resize((64, 64), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
        faces.flush()


def _index(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    """Rows of a zip's ``index.csv``, which spreadsheets may have given a byte-order mark."""
    return list(csv.DictReader(io.StringIO(archive.read("index.csv").decode("utf-8-sig"))))
