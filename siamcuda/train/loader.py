"""Batches of an epoch, read ahead by worker processes where asked, in the order of the sampler."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from siamcuda.train.system import Examples

__all__ = ["batches"]


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """One item is one batch: its rows and its examples."""

    def __init__(self, examples: Examples, rows: Sequence[Tensor]) -> None:
        self.examples, self.rows = examples, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.rows[index], self.examples.load(self.rows[index])


def _settle(_: int) -> None:
    """Ctrl-C reaches every process of a terminal, but the training process alone decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def batches(
    examples: Examples, rows: Sequence[Tensor], workers: int, pin: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (rows, examples) of each batch, the same whatever the number of workers.

    An error of a worker is raised here, as itself where it can be.
    """
    if not workers:
        for one in rows:
            yield one, examples.load(one)
        return
    loader = DataLoader(
        _Batches(examples, rows),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_settle,
        # Workers draw nothing; this keeps the loader from drawing of torch's own generator.
        generator=torch.Generator().manual_seed(0),
    )
    yield from loader
