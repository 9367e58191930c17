"""Files of images to uint8 tensors [N, C, H, W]: idx, a zip with an index, a folder of photographs."""

import csv
import gzip
import hashlib
import io
import os
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Last number of each part of CelebA's own partition (Liu et al. 2015, list_eval_partition.txt)
CELEBA_PARTS = {"train": (1, 162770), "validation": (162771, 182637), "test": (182638, 202599)}


def read_idx(file: Path) -> Tensor:
    """A gzipped idx file of unsigned bytes (LeCun's format) as a uint8 tensor of its own shape.

    Raises:
        ValueError: `file` is not such a file, or is damaged.
    """
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

    "validation" is every tenth row of the index's train rows (the 10th, 20th, ...), "train" the others.

    Raises:
        ValueError: `file` is no such zip, is damaged, or an image in it is not 64 x 64.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            rows = list(csv.DictReader(io.StringIO(archive.read("index.csv").decode())))
            part = [row for row in rows if row[split_column] == ("test" if split == "test" else "train")]
            if split != "test":
                part = [row for k, row in enumerate(part, 1) if (k % 10 == 0) == (split == "validation")]
            images = [_rgb(io.BytesIO(archive.read(row["file"]))) for row in part]
            labels = torch.tensor([int(row[class_column]) for row in part])
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, zlib.error) as error:
        raise ValueError(f"{file}: got a damaged or different file ({error}); allowed: a zip with index.csv") from None
    wrong = next((image.shape for image in images if image.shape != (64, 64, 3)), None)
    if wrong or not images:
        given = f"an image of shape {wrong}" if wrong else f"no image of split {split!r}"
        raise ValueError(f"{file}: got {given}; allowed: images of 64 x 64 pixels in every split")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), labels


def read_faces(folder: Path, split: str, cache: Path) -> Tensor:
    """CelebA's faces, uint8 [N, 3, 64, 64]: the largest centred square of each, shrunk to 64 x 64 (Lanczos).

    The decoded split is kept in `cache` and read from there as long as the folder's files keep their names and sizes.

    Raises:
        ValueError: a file of `folder` is not named by CelebA's number, or there is none of `split`.
    """
    first, last = CELEBA_PARTS[split]
    files = sorted(folder.glob("*.jpg"))
    unnumbered = next((file.name for file in files if not file.stem.isdecimal()), None)
    if unnumbered:
        raise ValueError(f"{folder}: got {unnumbered}; allowed: CelebA's own names, 000001.jpg to 202599.jpg")
    files = [file for file in files if first <= int(file.stem) <= last]
    if not files:
        raise ValueError(f"{folder}: got no file of split {split!r}; allowed: some of {first:06}.jpg to {last:06}.jpg")
    state = "".join(f"{file.name} {file.stat().st_size}\n" for file in files)
    stored = cache / f"{split}-{hashlib.sha256(state.encode()).hexdigest()[:16]}.npy"
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
    from tqdm.auto import tqdm

    stored.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=stored.parent, suffix=".npy")
    os.close(handle)
    try:
        faces = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(files), 3, 64, 64))
        for k, file in enumerate(tqdm(files, desc="celeba", unit="image")):
            with Image.open(file) as picture:
                side = min(picture.size)
                left, top = ((length - side) // 2 for length in picture.size)
                square = picture.convert("RGB").crop((left, top, left + side, top + side))
            faces[k] = np.asarray(square.resize((64, 64), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
        faces.flush()
        os.replace(temporary, stored)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _rgb(stream: io.BytesIO) -> np.ndarray:
    from PIL import Image

    with Image.open(stream) as picture:
        return np.asarray(picture.convert("RGB"))
