"""What a trainer trains: examples that are drawn, a model that encodes them, a loss of a batch.

A recipe puts these together; nothing here knows about pictures, text or any one loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Examples", "Objective", "Outcome", "Sampler", "System", "Transform"]


class Examples(Protocol):
    """Examples with the class of each, in memory or on disk."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, the class of each example: a position in ``names``."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called."""

    def __len__(self) -> int:
        """N."""

    def load(self, rows: Tensor) -> Tensor:
        """Examples as they are stored, rows (B,) int64 -> (B, ...): uint8 (B, C, H, W) for images.

        May run in a worker process. Raises InputError that names what can't be read.
        """

    def digest(self) -> str:
        """Something short that differs for other examples; a run is resumed on the same alone."""


class Sampler(Protocol):
    """Which examples make a batch; each epoch depends on (seed, epoch) alone."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def epoch(self, epoch: int) -> Sequence[Tensor]:
        """Rows of each batch of this process, (B,) int64."""


class Outcome(NamedTuple):
    """What the loss of a batch says."""

    loss: Tensor  # 0-d, with a graph
    figures: Mapping[str, Tensor]  # 0-d, detached; their means over an epoch are reported


class Objective(Protocol):
    """The loss of a batch; a module where it has parameters of its own."""

    def __call__(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        """``outputs`` (B, ...) of the model for examples of classes ``labels`` (B,).

        Figures beside the loss are wanted where ``tell`` says so: they may cost time.
        """


#: Stored examples to what the model takes; random views where a generator is given.
Transform = Callable[[Tensor, "torch.Generator | None"], Tensor]


@dataclass(frozen=True)
class System:
    """Everything that :func:`siamcuda.train.trainer.fit` needs beside its config."""

    model: nn.Module
    objective: Objective
    examples: Examples
    sampler: Sampler
    transform: Transform
    #: Figures of the model on examples kept for validation; ``figure`` is the one to be small.
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None
    figure: str = "eer"
