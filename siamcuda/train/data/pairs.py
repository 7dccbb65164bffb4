"""Pairs of image files in a table, each with its verdict."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from siamcuda.train.data.classes import digest_of
from siamcuda.train.data.folders import decode, read_bytes
from siamcuda.train.data.pictures import Decoder, Fit
from siamcuda.train.data.tables import read_columns
from siamcuda.train.errors import InputError

__all__ = ["PairFile"]

_VERDICTS = {
    "0": 0, "same": 0, "similar": 0, "genuine": 0,
    "1": 1, "different": 1, "dissimilar": 1, "impostor": 1,
}  # fmt: skip


class PairFile:
    """Pairs of images listed in a CSV or TSV file; the images are decoded when they are loaded.

    The first row names the columns ``left``, ``right`` (paths) and ``label`` (0, same, similar or
    genuine; 1, different, dissimilar or impostor), in any order; others are ignored. Every file
    must be there at once; whether it can be decoded shows when it is loaded.

    Args:
        path: the table; its name ends in .tsv where tabs part its fields.
        root: what the paths in it are relative to; by default the table's folder.
        size: (H, W) of every image that is loaded.
        channels: 1 for grey, 3 for RGB.
        fit: how an image of another shape comes to the size: "pad", "crop" or "stretch".

    Attributes:
        labels: (N,) int64, y of each pair: 0 similar, 1 dissimilar.
        names: ("similar", "dissimilar").

    Raises:
        InputError: names the file and the line that can't be used.
    """

    labels: Tensor
    names: tuple[str, ...] = ("similar", "dissimilar")

    def __init__(
        self,
        path: Path,
        root: Path | None = None,
        *,
        size: tuple[int, int],
        channels: int = 1,
        fit: Fit = "pad",
    ) -> None:
        self.decoder = Decoder(size, channels, fit)
        root = path.parent if root is None else root
        lines, rows = read_columns(path, ("left", "right", "label"))
        present: dict[str, bool] = {}
        verdicts = []
        for line, (left, right, label) in zip(lines, rows, strict=True):
            for name in (left, right):
                if name not in present:
                    present[name] = bool(name) and (root / name).is_file()
                if not present[name]:
                    raise InputError(f"data: {path}: line {line}: no such image: {root / name}")
            verdict = _VERDICTS.get(label.lower())
            if verdict is None:
                raise InputError(
                    f"data: {path}: line {line}: the label {label!r} is none of "
                    f"{', '.join(_VERDICTS)}"
                )
            verdicts.append(verdict)
        self.pairs = tuple((root / left, root / right) for left, right, _ in rows)
        self.labels = torch.tensor(verdicts, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, rows: Tensor) -> Tensor:
        """Decode the pairs of ``rows`` (B,) int64: (B, 2, C, H, W) uint8, left and right.

        Raises:
            InputError: names the file that is missing, empty, cut short or no image.
        """
        paths = [path for row in rows.tolist() for path in self.pairs[row]]
        images = decode(self.decoder, paths)
        return images.reshape(len(rows), 2, *images.shape[1:])

    def digest(self) -> str:
        """SHA-256 of settings, pairs, labels and the bytes of every file, each read once."""
        files = {path: None for pair in self.pairs for path in pair}
        places = {path: place for place, path in enumerate(files)}
        pairs = [[places[left], places[right]] for left, right in self.pairs]
        return digest_of([repr(self.decoder), pairs, self.labels.tolist()], map(read_bytes, files))
