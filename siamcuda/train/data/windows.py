"""Pairs of windows of pictures: patches of a place, strips along an edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from siamcuda.train.data.classes import check_labels, digest_of
from siamcuda.train.errors import InputError

__all__ = ["WindowPairs"]


@dataclass(frozen=True, eq=False)
class WindowPairs:
    """Pairs of windows of one size, cut out of pictures when they are loaded.

    Args:
        pictures: (C, H, W) uint8 each, of any height and width, all with as many channels.
        places: (N, 2, 3) int64, for both windows of a pair: picture, top row, left column.
        labels: (N,) int64; pair i is of class ``names[labels[i]]``.
        names: what the classes are called.
        size: (h, w) of every window.

    Raises:
        InputError: shapes, dtypes or labels don't fit, or a window isn't within its picture.

    Example:
        >>> import torch
        >>> picture = torch.zeros(1, 40, 60, dtype=torch.uint8)
        >>> places = torch.tensor([[[0, 0, 0], [0, 8, 28]]])
        >>> y = torch.tensor([1])
        >>> pairs = WindowPairs([picture], places, y, ("similar", "dissimilar"), (32, 32))
        >>> pairs.load(torch.tensor([0])).shape
        torch.Size([1, 2, 1, 32, 32])
    """

    pictures: Sequence[Tensor]
    places: Tensor
    labels: Tensor
    names: tuple[str, ...]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        for number, picture in enumerate(self.pictures):
            if picture.dtype != torch.uint8 or picture.ndim != 3:
                raise InputError(
                    f"pictures: (C, H, W) uint8 is expected, number {number} is "
                    f"{tuple(picture.shape)} {picture.dtype}"
                )
        if len({len(picture) for picture in self.pictures}) > 1:
            raise InputError("pictures: all must have as many channels")
        if self.places.dtype != torch.int64 or self.places.shape[1:] != (2, 3):
            raise InputError(
                "places: (N, 2, 3) int64 is expected, got "
                f"{tuple(self.places.shape)} {self.places.dtype}"
            )
        check_labels(self.labels, self.names, len(self.places))
        shapes = torch.tensor([picture.shape[1:] for picture in self.pictures]).reshape(-1, 2)
        which, corner = self.places[..., 0], self.places[..., 1:]
        fine = (which >= 0) & (which < len(shapes))
        if bool(fine.all()):
            rest = shapes[which] - torch.tensor(self.size)
            fine = ((corner >= 0) & (corner <= rest)).all(-1)
        if not bool(fine.all()):
            pair, side = torch.nonzero(~fine)[0].tolist()
            raise InputError(
                f"places: pair {pair}: {self.places[pair, side].tolist()} (picture, row, column) "
                f"leaves no window of {self.size[0]} x {self.size[1]} in a picture"
            )

    def __len__(self) -> int:
        return len(self.places)

    def load(self, rows: Tensor) -> Tensor:
        """Windows of the pairs of ``rows`` (B,) int64: (B, 2, C, h, w) uint8."""
        height, width = self.size
        windows = [
            self.pictures[which][:, top : top + height, left : left + width]
            for which, top, left in self.places[rows].flatten(0, 1).tolist()
        ]
        return torch.stack(windows).reshape(len(rows), 2, -1, height, width)

    def digest(self) -> str:
        """SHA-256 of sizes, names, places, labels and pixels."""
        described = [[list(p.shape) for p in self.pictures], list(self.names), list(self.size)]
        tensors = (self.places, self.labels, *self.pictures)
        return digest_of(described, (t.contiguous().view(-1).numpy() for t in tensors))
