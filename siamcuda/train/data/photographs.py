"""Photographs, textures and a stereo pair that the package scikit-image carries in its wheel.

Of different sizes, so each is a tensor of its own. Credits: astronaut and hubble_deep_field (NASA,
public domain), rocket (SpaceX, public domain), camera (Lav Varshney, CC0), chelsea (Stefan van der
Walt, CC0), coffee (Rachel Michetti, CC0), coins (Brooklyn Museum) and moon (no known restrictions),
brick, grass and gravel (CC0). The stereo pair is of D. Scharstein and others, Middlebury 2014.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from siamcuda.train.data.packages import find_in_package
from siamcuda.train.data.pictures import Decoder
from siamcuda.train.errors import InputError

__all__ = [
    "PHOTOGRAPHS",
    "TEXTURES",
    "StereoPair",
    "load_photographs",
    "load_stereo",
    "load_textures",
]

#: Photographs of things, people and places.
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "rocket.jpg",
)
#: Grey pictures of one material each, 512x512.
TEXTURES = ("brick.png", "grass.png", "gravel.png")


class StereoPair(NamedTuple):
    """Two views of a scene whose rows match: left[:, y, x] is right[:, y, x - disparity[y, x]]."""

    left: Tensor  # (3, H, W) uint8
    right: Tensor  # (3, H, W) uint8
    disparity: Tensor  # (H, W) float32, in columns; NaN where it isn't known


def load_photographs(names: Sequence[str] = PHOTOGRAPHS, channels: int = 3) -> dict[str, Tensor]:
    """Read photographs by the names of their files: (channels, H, W) uint8 each.

    Raises:
        InputError: the package is not installed, or lacks a file.
    """
    decoder = Decoder(channels=channels)
    return {name.partition(".")[0]: decoder.read(_find(name)) for name in names}


def load_textures(names: Sequence[str] = TEXTURES) -> dict[str, Tensor]:
    """Read textures by the names of their files: (1, 512, 512) uint8 each.

    Raises:
        InputError: the package is not installed, or lacks a file.
    """
    return load_photographs(names, channels=1)


def load_stereo() -> StereoPair:
    """Read the motorcycle of Middlebury 2014, 500x741, with its true disparity.

    Raises:
        InputError: the package is not installed, or a file is missing or broken.
    """
    decoder = Decoder(channels=3)
    left, right = (decoder.read(_find(f"motorcycle_{side}.png")) for side in ("left", "right"))
    path = _find("motorcycle_disp.npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found: Any = arrays["arr_0"]
        disparity = np.where(np.isfinite(found), found, np.nan).astype(np.float32)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"data: cannot read {path}: {error}") from error
    if not left.shape[1:] == right.shape[1:] == disparity.shape:
        raise InputError(f"data: {path}: its shape {disparity.shape} isn't that of the pictures")
    return StereoPair(left, right, torch.from_numpy(disparity))


def _find(name: str) -> Any:
    return find_in_package(
        "skimage", f"data/{name}", f"the picture {name}", "pip install --no-deps scikit-image"
    )
