"""The one data set class of the package: all images of a split in memory as 8-bit values."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Images(Dataset[Tensor]):
    """Images of one split of one data set.

    ``len(d)`` images; ``d[i]`` is a float32 tensor [channels, height, width] in [0, 1] (8-bit value / 255), and
    ``d[3:9]`` or ``d[[0, 5]]`` a batch [batch, channels, height, width] of them. `images` holds them all as uint8
    [N, channels, height, width], `labels` their classes, int64 [N], and `photo` the number of the photograph that each
    crop comes from, int64 [N]; None where there are none. Crops of one photograph are one observation:
    `evaluate.interval` takes these numbers as its groups.
    """

    def __init__(
        self, images: Tensor, labels: Tensor | None, name: str, split: str, photo: Tensor | None = None
    ) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(f"images: got {images.dtype} {tuple(images.shape)}; allowed: uint8 [N, C, H, W]")
        for given, values in (("labels", labels), ("photo", photo)):
            if values is not None and values.shape != images.shape[:1]:
                raise ValueError(f"{given}: got {tuple(values.shape)}; allowed: one for each image, [{len(images)}]")
        self.images, self.labels, self.photo, self.name, self.split = images, labels, photo, name, split

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        return self.images[index].float() / 255

    def __repr__(self) -> str:
        return f"Images({self.name!r}, split={self.split!r}, {len(self)} of {list(self.shape)})"
