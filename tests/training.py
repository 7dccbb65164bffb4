"""A small system to train in the tests: noisy points of a few classes, a network with dropout.

And digits for those recipes that read MNIST's files.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from siamcuda.train import trainer
from siamcuda.train.config import TrainConfig
from siamcuda.train.objectives import Triplets
from siamcuda.train.samplers import PKSampler
from siamcuda.train.system import Objective, System


class Points:
    """Examples in memory: (N, 6) floats around the centre of their class."""

    def __init__(self, classes: int = 6, of_a_class: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(classes).repeat_interleave(of_a_class)
        centres = torch.randn(classes, 6, generator=generator)
        noise = torch.randn(len(self.labels), 6, generator=generator)
        self.points = centres[self.labels] + 0.5 * noise
        self.names = tuple(map(str, range(classes)))

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, rows: Tensor) -> Tensor:
        return self.points[rows]

    def digest(self) -> str:
        return hashlib.sha256(self.points.numpy().tobytes()).hexdigest()


def shaken(points: Tensor, generator: torch.Generator | None) -> Tensor:
    """A random view."""
    if generator is None:
        return points
    return points + 0.1 * torch.randn(points.shape, generator=generator)


def network(seed: int = 0, dropout: float = 0.2, norm: bool = True) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = nn.BatchNorm1d(16) if norm else nn.LayerNorm(16)
        return nn.Sequential(
            nn.Linear(6, 16), middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4)
        )


def spread(model: nn.Module) -> dict[str, float]:
    """A validation figure that changes from epoch to epoch, not always to the better."""
    points = Points(seed=1)
    z = model(points.points)
    same = points.labels[:, None] == points.labels
    distances = torch.cdist(z, z)
    return {"eer": float(distances[same].mean() / distances[~same].mean()), "other": 1.0}


def system(
    objective: Objective | None = None, validate: bool = False, model: nn.Module | None = None,
    rank: int = 0, ranks: int = 1, batches: int = 3, still: bool = False,
) -> System:  # fmt: skip
    points = Points()
    sampler = PKSampler(points.labels, 4, 4, seed=5, rank=rank, ranks=ranks)
    sampler.batches = batches
    return System(
        model=model or network(),
        objective=objective or Triplets(margin=0.5, reduction="mean"),
        examples=points,
        sampler=sampler,
        transform=(lambda points, _: points) if still else shaken,
        validate=spread if validate else None,
    )


def train(state: Path | None = None, listener: Any = None, **options: Any) -> dict[str, Tensor]:
    """The weights after training, with options of the system and of TrainConfig."""
    own = ("objective", "validate", "model", "rank", "ranks", "batches", "still")
    made = system(**{name: options.pop(name) for name in own if name in options})
    config = TrainConfig(**{"epochs": 3, "device": "cpu", **options})
    trainer.fit(made, config, state=state, listener=listener)
    return {name: tensor.clone() for name, tensor in made.model.state_dict().items()}


def write_digits(folder: Path) -> Path:
    """MNIST's four files with four classes of noisy bars: 120 to learn from, 40 to test on."""
    random = np.random.default_rng(0)
    for part, count in (("train", 120), ("t10k", 40)):
        labels = np.arange(count) % 4
        images = random.integers(0, 60, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[:, 6 * label + 2 : 6 * label + 6] += 180
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())
    return folder
