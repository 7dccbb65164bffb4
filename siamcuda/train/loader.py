"""Batches of an epoch, read ahead by worker processes where asked, in the order of the sampler."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from siamcuda.train.errors import InputError
from siamcuda.train.system import Examples

__all__ = ["batches"]


_Batch = tuple[Tensor, Tensor]


class _Batches(Dataset[_Batch | InputError]):
    """One item is one batch, its rows and its examples, or why it cannot be read.

    The loader would put a traceback into the message of what a worker raises.
    """

    def __init__(self, examples: Examples, rows: Sequence[Tensor]) -> None:
        self.examples, self.rows = examples, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> _Batch | InputError:
        try:
            return self.rows[index], self.examples.load(self.rows[index])
        except InputError as error:
            return error


def _settle(_: int) -> None:
    """Ctrl-C reaches every process of a terminal, but the training process alone decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def batches(
    examples: Examples, rows: Sequence[Tensor], workers: int, pin: bool = False
) -> Iterator[_Batch]:
    """Yield (rows, examples) of each batch, the same whatever the number of workers.

    Raises:
        InputError: an example that cannot be read, with the same words whoever read it.
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
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch
