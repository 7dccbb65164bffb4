"""Images in memory, and arrays on disk that become such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siamcuda._commands.inputs import read_labels
from siamcuda.train.data.classes import check_labels, digest_of, number_classes, rows_of
from siamcuda.train.errors import InputError

__all__ = ["ImageArray", "load_arrays"]


@dataclass(frozen=True, eq=False)
class ImageArray:
    """Images of one size, in memory, with the class of each.

    Args:
        images: (N, H, W) or (N, C, H, W) uint8.
        labels: (N,) int64; image i is of class ``names[labels[i]]``.
        names: what the classes are called.

    Raises:
        InputError: shapes, dtypes or labels don't fit.

    Example:
        >>> import torch
        >>> images = torch.zeros(4, 28, 28, dtype=torch.uint8)
        >>> digits = ImageArray(images, torch.tensor([0, 1, 1, 2]), ("0", "1", "2"))
        >>> digits.of(["2", "1"]).labels.tolist()
        [0, 1, 1]
        >>> digits.load(torch.tensor([3, 0])).shape
        torch.Size([2, 1, 28, 28])
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim not in (3, 4):
            raise InputError(
                "images: (N, H, W) or (N, C, H, W) uint8 is expected, got "
                f"{tuple(self.images.shape)} {self.images.dtype}"
            )
        check_labels(self.labels, self.names, len(self.images))

    def __len__(self) -> int:
        return len(self.images)

    def of(self, names: Sequence[str]) -> ImageArray:
        """Keep the images of the classes ``names``, in that order, with labels 0, 1, 2, ..."""
        rows, labels, kept = rows_of(self.labels, self.names, names)
        return ImageArray(self.images[rows], labels, kept)

    def at(self, rows: Tensor) -> ImageArray:
        """Keep ``rows`` (M,) int64, in that order; labels and names stay what they are."""
        return ImageArray(self.images[rows], self.labels[rows], self.names)

    def load(self, rows: Tensor) -> Tensor:
        """Images of ``rows`` (B,) int64: (B, C, H, W) uint8."""
        images = self.images[rows]
        return images[:, None] if images.ndim == 3 else images

    def digest(self) -> str:
        """SHA-256 of shape, names, labels and pixels."""
        described = [list(self.images.shape), list(self.names)]
        tensors = (self.images, self.labels)
        return digest_of(described, (t.contiguous().view(-1).numpy() for t in tensors))


def load_arrays(
    images: Path,
    labels: Path | Tensor | Sequence[int] | Sequence[str],
    names: Sequence[str] | None = None,
) -> ImageArray:
    """Read images of a .npy file, with labels of another.

    Args:
        images: .npy of uint8 (N, H, W), (N, C, H, W) or (N, H, W, C) with C 1 or 3; it is checked
            against its header before it is read and never unpickled.
        labels: one label an image: a .npy file of integers or strings, a text file with a label a
            line, or the labels themselves.
        names: of the classes 0, 1, 2, ... where labels are numbers; by default the classes are
            called by their labels, and numbered in natural order.

    Raises:
        InputError: names the file and what of it is not as it must be.
    """
    pixels = _read_images(images)
    if isinstance(labels, Path):
        words = read_labels(labels, len(pixels), "labels")
    else:
        listed = labels.tolist() if isinstance(labels, Tensor) else labels
        words = [str(label) for label in listed]
    if len(words) != len(pixels):
        raise InputError(f"labels: {len(words)} labels for {len(pixels)} images of {images}")
    if names is None:
        return ImageArray(pixels, *number_classes(words))
    try:
        numbers = torch.tensor([int(word) for word in words], dtype=torch.int64)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"labels: with names, labels are positions in them: {error}") from error
    return ImageArray(pixels, numbers, tuple(names))


def _read_images(path: Path) -> Tensor:
    try:
        # The map compares the header with the file's size before anything is allocated; what is
        # kept is read, since a file that shrinks under a map would end the process.
        described: Any = np.lib.format.open_memmap(path, mode="r")
        if described.dtype != np.uint8 or described.ndim not in (3, 4):
            raise ValueError(
                "uint8 (N, H, W), (N, C, H, W) or (N, H, W, C) is expected, got "
                f"{described.shape} {described.dtype}"
            )
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # NumPy's parser raises many kinds for a broken header
        raise InputError(f"data: cannot read the images {path}: {error}") from error
    pixels = torch.from_numpy(np.ascontiguousarray(array))
    if pixels.ndim == 4 and pixels.shape[1] not in (1, 3):
        if pixels.shape[3] not in (1, 3):
            raise InputError(f"data: {path}: no axis of {tuple(pixels.shape)} is 1 or 3 channels")
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
    return pixels
