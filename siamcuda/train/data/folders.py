"""Images in files: listed at once, decoded when a batch asks for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from siamcuda.train.data.arrays import ImageArray
from siamcuda.train.data.classes import check_labels, digest_of, natural, rows_of
from siamcuda.train.data.pictures import IMAGE_TYPES, Decoder, Fit
from siamcuda.train.errors import InputError

__all__ = ["ImageFiles", "ImageFolder"]


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files with the class of each; nothing is open or decoded between two calls.

    Args:
        paths: N files.
        labels: (N,) int64; file i is of class ``names[labels[i]]``.
        names: what the classes are called.
        decoder: what becomes of a file; it has a size.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    names: tuple[str, ...]
    decoder: Decoder

    def __post_init__(self) -> None:
        if self.decoder.size is None:
            raise InputError("size: (H, W) is needed where images come in batches")
        check_labels(self.labels, self.names, len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def of(self, names: Sequence[str]) -> ImageFiles:
        """Keep the images of the classes ``names``, in that order, with labels 0, 1, 2, ..."""
        rows, labels, kept = rows_of(self.labels, self.names, names)
        return ImageFiles(tuple(self.paths[r] for r in rows.tolist()), labels, kept, self.decoder)

    def at(self, rows: Tensor) -> ImageFiles:
        """Keep ``rows`` (M,) int64, in that order; labels and names stay what they are."""
        paths = tuple(self.paths[row] for row in rows.tolist())
        return ImageFiles(paths, self.labels[rows], self.names, self.decoder)

    def load(self, rows: Tensor) -> Tensor:
        """Decode the images of ``rows`` (B,) int64: (B, C, H, W) uint8.

        Raises:
            InputError: names the file that is missing, empty, cut short or no image.
        """
        return decode(self.decoder, [self.paths[row] for row in rows.tolist()])

    def in_memory(self) -> ImageArray:
        """Decode every image now, for data that fits."""
        return ImageArray(self.load(torch.arange(len(self))), self.labels, self.names)

    def digest(self) -> str:
        """SHA-256 of settings, names, labels and the bytes of every file, each read once."""
        described = [repr(self.decoder), list(self.names), self.labels.tolist()]
        return digest_of(described, map(read_bytes, self.paths))


class ImageFolder(ImageFiles):
    """A folder with one sub-folder an identity, which holds that identity's images of any size.

    The folder is listed and checked at once: identities and files in natural order (s2 before
    s10), hidden files and files of other types passed over.

    Args:
        folder: holds two sub-folders or more; their names are the identities.
        size: (H, W) of every image that is loaded.
        channels: 1 for grey, 3 for RGB.
        fit: how an image of another shape comes to the size: "pad", "crop" or "stretch".

    Raises:
        InputError: names the folder that is missing, empty, or has a single identity.
    """

    def __init__(
        self, folder: Path, size: tuple[int, int], channels: int = 1, fit: Fit = "pad"
    ) -> None:
        decoder = Decoder(size, channels, fit)
        names, paths, labels = list_identities(folder)
        if len(names) == 1:
            raise InputError(
                f"data: {folder} has the identity {names[0]} alone; to tell identities apart "
                "takes two or more"
            )
        super().__init__(paths, labels, names, decoder)


def list_identities(
    folder: Path, types: Sequence[str] = IMAGE_TYPES
) -> tuple[tuple[str, ...], tuple[Path, ...], Tensor]:
    """List a folder of one sub-folder an identity: its names, the files, the label of each."""
    folders = list_folders(folder, "an identity")
    files = [list_images(identity, types) for identity in folders]
    labels = torch.repeat_interleave(torch.tensor([len(paths) for paths in files]))
    paths = tuple(path for images in files for path in images)
    return tuple(identity.name for identity in folders), paths, labels


def list_folders(folder: Path, what: str) -> list[Path]:
    """The sub-folders of a folder, each ``what``, in natural order; none is an InputError."""
    _, folders = _scan(folder)
    if not folders:
        raise InputError(f"data: {folder} has no sub-folders; one sub-folder {what} is expected")
    return [folder / name for name in folders]


def list_images(folder: Path, types: Sequence[str] = IMAGE_TYPES) -> list[Path]:
    """The images of a folder in natural order; none at all is an InputError."""
    files, _ = _scan(folder)
    images = [folder / name for name in files if Path(name).suffix.lower() in types]
    if not images:
        raise InputError(f"data: {folder} holds no image ({', '.join(types)})")
    return images


def _scan(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files and of the sub-folders of a folder, in natural order, none hidden."""
    if not folder.is_dir():
        raise InputError(f"data: no such folder: {folder}")
    try:
        with os.scandir(folder) as entries:
            kinds = {e.name: e.is_dir() for e in entries if not e.name.startswith(".")}
    except OSError as error:
        raise InputError(f"data: cannot list {folder}: {error.strerror or error}") from error
    names = sorted(kinds, key=natural)
    return [n for n in names if not kinds[n]], [n for n in names if kinds[n]]


def decode(decoder: Decoder, paths: Sequence[Path]) -> Tensor:
    """Decode files into one tensor, (B, C, H, W) uint8."""
    assert decoder.size is not None
    images = torch.empty((len(paths), decoder.channels, *decoder.size), dtype=torch.uint8)
    for image, path in zip(images, paths, strict=True):
        image.copy_(decoder.read(path))
    return images


def read_bytes(path: Path) -> bytes:
    """The content of a file, or an InputError that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"data: cannot read {path}: {error.strerror or error}") from error
