"""The one data set class of the package: all images of a split in memory as 8-bit values."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Images(Dataset[Tensor]):
    """Images of one split of one data set.

    ``len(d)`` images; ``d[i]`` is a float32 tensor [channels, height, width] in [0, 1] (8-bit value / 255), and
    ``d[3:9]`` or ``d[[0, 5]]`` a batch [batch, channels, height, width] of them. For bulk access,
    ``images`` holds all of them as uint8 [N, channels, height, width].

    Attributes
    ----------
    images
        uint8 tensor [N, channels, height, width].
    labels
        int64 tensor [N] of classes, or None where the set has none.
    photo
        int64 tensor [N]: the number of the photograph that each crop comes from, or None where images are no crops.
        Crops of one photograph are one observation: `evaluate.interval` takes these numbers as its groups.
    name, split
        Names of the data set and of the part, "train", "validation" or "test".
    """

    def __init__(
        self, images: Tensor, labels: Tensor | None, name: str, split: str, photo: Tensor | None = None
    ) -> None:
        """Wrap uint8 `images` [N, C, H, W] with int64 `labels` and `photo` [N] or None; else ValueError."""
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(f"images: got {images.dtype} {tuple(images.shape)}; allowed: uint8 [N, C, H, W]")
        for given, values in (("labels", labels), ("photo", photo)):
            if values is not None and values.shape != images.shape[:1]:
                raise ValueError(f"{given}: got {tuple(values.shape)}; allowed: one for each image, [{len(images)}]")
        self.images = images
        self.labels = labels
        self.photo = photo
        self.name = name
        self.split = split

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        """Return the number of images."""
        return self.images.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Image(s) as float32 in [0, 1]."""
        return self.images[index].float() / 255

    def __repr__(self) -> str:
        """Name, split, number and shape."""
        channels, height, width = self.shape
        return f"Images({self.name!r}, split={self.split!r}, {len(self)} of [{channels}, {height}, {width}])"
