"""Signatures, or fingerprints: what each writer wrote, and what others forged of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from siamcuda.train.data.classes import natural, number_classes
from siamcuda.train.data.folders import ImageFiles, list_folders, list_images
from siamcuda.train.data.pictures import Decoder, Fit
from siamcuda.train.errors import InputError

__all__ = ["SignaturePairs", "Signatures", "load_signatures"]

_GENUINE = ("genuine", "original", "originals", "org")
_FORGED = ("forged", "forgery", "forgeries", "forg")
#: CEDAR's names: full_org/original_WRITER_NUMBER.png, full_forg/forgeries_WRITER_NUMBER.png.
_CEDAR = re.compile(r"(original|forgeries)_(\d+)_(\d+)", re.IGNORECASE)
_SUFFIX = " (forged)"


class SignaturePairs(NamedTuple):
    """Rows of pairs to verify a writer by."""

    left: Tensor  # (P,) int64, genuine
    right: Tensor  # (P,) int64, genuine or forged, of the same writer
    labels: Tensor  # (P,) int64, y: 0 both genuine, 1 the right one forged


@dataclass(frozen=True, eq=False)
class Signatures(ImageFiles):
    """Image files of writers: what writer W wrote is class "W", what was forged "W (forged)"."""

    @property
    def forged(self) -> Tensor:
        """(N,) bool: whether an image was forged."""
        kinds = torch.tensor([name.endswith(_SUFFIX) for name in self.names], dtype=torch.bool)
        return kinds[self.labels]

    @property
    def writers(self) -> tuple[str, ...]:
        """Who wrote, or was imitated, in natural order."""
        return tuple(sorted({name.removesuffix(_SUFFIX) for name in self.names}, key=natural))

    def by(self, writers: Sequence[str]) -> Signatures:
        """Keep what these writers wrote and what was forged of it."""
        unknown = next((writer for writer in writers if writer not in self.writers), None)
        if unknown is not None:
            raise InputError(f"data: no writer is called {unknown!r}")
        names = [n for w in writers for n in (w, w + _SUFFIX) if n in self.names]
        part = self.of(names)
        return Signatures(part.paths, part.labels, part.names, part.decoder)

    def genuine(self) -> ImageFiles:
        """Keep what was not forged: the classes to learn writers by."""
        return self.of([name for name in self.names if not name.endswith(_SUFFIX)])

    def pairs(self) -> SignaturePairs:
        """Every two genuine images of a writer, and every genuine one with every forged one."""
        left: list[Tensor] = []
        right: list[Tensor] = []
        for label, name in enumerate(self.names):
            if name.endswith(_SUFFIX):
                continue
            own = torch.nonzero(self.labels == label)[:, 0]
            i, j = torch.triu_indices(len(own), len(own), offset=1)
            left.append(own[i])
            right.append(own[j])
            if name + _SUFFIX in self.names:
                imitation = self.names.index(name + _SUFFIX)
                forged = torch.nonzero(self.labels == imitation)[:, 0]
                left.append(own.repeat_interleave(len(forged)))
                right.append(forged.repeat(len(own)))
        if not left:
            raise InputError("data: no signature is genuine")
        second = torch.cat(right)
        return SignaturePairs(torch.cat(left), second, self.forged[second].long())


def load_signatures(
    folder: Path, size: tuple[int, int], channels: int = 1, fit: Fit = "pad"
) -> Signatures:
    """List signatures, by names as CEDAR's or by folders; which of the two is seen by itself.

    - CEDAR: ``full_org/original_WRITER_NUMBER.png`` and ``full_forg/forgeries_WRITER_NUMBER.png``.
    - Folders: ``WRITER/genuine/*`` and ``WRITER/forged/*`` (or original, forgeries).

    Args:
        folder: holds ``full_org`` and ``full_forg``, or a sub-folder a writer.
        size: (H, W) of every image that is loaded.
        channels: 1 for grey, 3 for RGB.
        fit: how an image of another shape comes to the size.

    Raises:
        InputError: names the folder that is missing, empty or neither, or the file whose name
            doesn't tell its writer.
    """
    decoder = Decoder(size, channels, fit)
    folders = list_folders(folder, "a writer")
    cedar = {path.name.lower(): path for path in folders}
    if {"full_org", "full_forg"} <= set(cedar):
        found = [*_cedar(cedar["full_org"]), *_cedar(cedar["full_forg"])]
    else:
        found = [item for writer in folders for item in _of_writer(writer)]
    labels, names = number_classes([name for name, _ in found])
    return Signatures(tuple(path for _, path in found), labels, names, decoder)


def _cedar(folder: Path) -> list[tuple[str, Path]]:
    found = []
    for path in list_images(folder):
        match = _CEDAR.fullmatch(path.stem)
        if match is None:
            raise InputError(
                f"data: {path}: original_WRITER_NUMBER or forgeries_WRITER_NUMBER is expected"
            )
        forged = match[1].lower() == "forgeries"
        found.append((match[2] + (_SUFFIX if forged else ""), path))
    return found


def _of_writer(folder: Path) -> list[tuple[str, Path]]:
    found = []
    for kind in list_folders(folder, "genuine and one forged"):
        name = kind.name.lower()
        if name not in (*_GENUINE, *_FORGED):
            raise InputError(f"data: {kind}: a writer's sub-folders are called genuine and forged")
        suffix = _SUFFIX if name in _FORGED else ""
        found += [(folder.name + suffix, path) for path in list_images(kind)]
    return found
