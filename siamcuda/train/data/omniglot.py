"""Omniglot: 1,623 characters of 50 alphabets, each drawn by 20 people.

B. M. Lake, R. Salakhutdinov and J. B. Tenenbaum, Human-level concept learning through probabilistic
program induction (2015). The archives images_background.zip and images_evaluation.zip unpack to the
tree that is read here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from siamcuda.train.data.folders import ImageFiles, list_folders, list_images
from siamcuda.train.data.pictures import Decoder, Fit
from siamcuda.train.errors import InputError

__all__ = ["load_omniglot"]


def load_omniglot(
    folder: Path,
    part: Literal["background", "evaluation"] = "background",
    size: tuple[int, int] = (105, 105),
    channels: int = 1,
    fit: Fit = "pad",
) -> ImageFiles:
    """List one part of Omniglot: images_PART/ALPHABET/CHARACTER/*.png.

    Args:
        folder: holds ``images_background`` or ``images_evaluation``.
        part: which of the two; they share no alphabet.
        size: (H, W) of every image that is loaded; the files have 105x105, black on white.
        channels: 1 for grey, 3 for RGB.
        fit: how an image of another shape comes to the size.

    Returns:
        Image files whose classes are called ALPHABET/CHARACTER, in natural order.

    Raises:
        InputError: names the folder that is missing or empty.
    """
    decoder = Decoder(size, channels, fit)
    if part not in ("background", "evaluation"):
        raise InputError(f"part: {part!r} is neither 'background' nor 'evaluation'")
    root = folder / f"images_{part}"
    if not root.is_dir():
        raise InputError(f"data: no such folder: {root} (unpack images_{part}.zip there)")
    characters = [
        character
        for alphabet in list_folders(root, "an alphabet")
        for character in list_folders(alphabet, "a character")
    ]
    files = [list_images(character) for character in characters]
    labels = torch.repeat_interleave(torch.tensor([len(images) for images in files]))
    names = tuple(f"{character.parent.name}/{character.name}" for character in characters)
    return ImageFiles(tuple(path for images in files for path in images), labels, names, decoder)
