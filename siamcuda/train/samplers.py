"""Which examples a step encodes: all in turn, P×K of some classes, or pairs, half of them genuine.

Everything is drawn lazily and follows (seed, epoch) alone, so a resumed run sees what an
uninterrupted one sees; with several ranks each takes every W-th row of the joined batch, which is
the batch that one process would draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from siamcuda.train.errors import InputError
from siamcuda.train.placement import rank_and_ranks

__all__ = ["PKSampler", "PairSampler", "ShuffledSampler", "epoch_seed"]


def epoch_seed(seed: int, epoch: int) -> int:
    """Seeds of different runs and epochs that do not meet for epochs below 100,000."""
    return seed * 100_003 + epoch


def _rows_by_class(labels: Tensor) -> list[Tensor]:
    order = torch.argsort(labels, stable=True)
    counts = torch.unique_consecutive(labels[order], return_counts=True)[1]
    return list(order.split(counts.tolist()))


class ShuffledSampler:
    """Every example once an epoch, in an order of its own, in batches that differ by one at most.

    For examples that are pairs with a verdict each (:class:`siamcuda.train.data.PairFile`), and for
    others whose classes no batch need have a share of.

    Args:
        count: N examples.
        batch: most rows of the joined batch. No short one is left at the end: batch norm would take
            its statistics of that.
        seed: of all epochs.
        rank: this process; by default as torchrun, or the process group, says.
        ranks: processes that share a batch; likewise.

    Raises:
        InputError: no examples, a batch of none, or batches with less than a row for each rank.

    Example:
        >>> [len(rows) for rows in ShuffledSampler(10, 4, seed=0).epoch(0)]
        [4, 3, 3]
    """

    def __init__(
        self, count: int, batch: int, seed: int, rank: int | None = None, ranks: int | None = None
    ) -> None:
        if count < 1:
            raise InputError("examples: there is none to learn from")
        if batch < 1:
            raise InputError(f"batch: must be at least 1, got {batch}")
        self.count, self.batches, self.seed = count, -(-count // batch), seed
        self.rank, self.ranks = _placed(rank, ranks)
        if count // self.batches < self.ranks:
            raise InputError(
                f"batch: {count // self.batches} rows are too few for {self.ranks} processes"
            )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.batches

    def epoch(self, epoch: int) -> list[Tensor]:
        """Rows of each batch, (B,) int64."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        order = torch.randperm(self.count, generator=generator)
        return [rows[self.rank :: self.ranks] for rows in order.tensor_split(self.batches)]


class PKSampler:
    """Batches of P classes x K examples; one epoch shows about as many examples as there are.

    Hermans, Beyer and Leibe 2017, "In Defense of the Triplet Loss", section 2.

    Args:
        labels: (N,) integers, the class of each example.
        classes: P of the joined batch; where there are fewer classes, all of them.
        examples: K; a class with fewer repeats some. 1 is for examples that are pairs themselves.
        seed: of all epochs.
        rank: this process; by default as torchrun, or the process group, says.
        ranks: processes that share a batch; likewise.

    Raises:
        InputError: fewer than two classes, or with K above 1 no class with two examples.
    """

    def __init__(
        self, labels: Tensor, classes: int, examples: int, seed: int,
        rank: int | None = None, ranks: int | None = None,
    ) -> None:  # fmt: skip
        self.rows = _rows_by_class(labels)
        _check_classes(self.rows, min(examples, 2))
        self.classes = min(classes, len(self.rows))
        self.examples, self.seed = examples, seed
        self.rank, self.ranks = _placed(rank, ranks)
        self.batches = max(1, round(len(labels) / (self.classes * self.examples)))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.batches

    def epoch(self, epoch: int) -> list[Tensor]:
        """Rows of each batch, (P*K,) int64 over all ranks."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        return [self._batch(generator)[self.rank :: self.ranks] for _ in range(self.batches)]

    def _batch(self, generator: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(self.rows), generator=generator)[: self.classes]
        return torch.cat([self._draw(self.rows[p], generator) for p in chosen.tolist()])

    def _draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        order = torch.randperm(len(rows), generator=generator)
        return rows[order.repeat(-(-self.examples // len(rows)))[: self.examples]]


class PairSampler:
    """Batches of pairs, half of them genuine, as Chopra, Hadsell and LeCun (2005) ask.

    A batch of M pairs is (2M,) rows: M left ones, then M right ones. Genuine: an example of a class
    that has two, with another of its class. Impostor: an example with one of another class. No list
    of pairs is made; a pair may come twice.

    Args:
        labels: (N,) integers, the class of each example.
        pairs: M of the joined batch.
        batches: of an epoch; by default as many as show N examples.
        seed: of all epochs.
        rank: this process; by default as torchrun, or the process group, says.
        ranks: processes that share a batch; likewise.

    Raises:
        InputError: fewer than two classes, or no class with two examples.
    """

    def __init__(
        self, labels: Tensor, pairs: int, seed: int, batches: int = 0,
        rank: int | None = None, ranks: int | None = None,
    ) -> None:  # fmt: skip
        by_class = _rows_by_class(labels)
        _check_classes(by_class)
        self.order = torch.cat(by_class)  # (N,) rows, class by class
        sizes = torch.tensor([len(rows) for rows in by_class])
        starts = sizes.cumsum(0) - sizes
        self.start, self.size = starts.repeat_interleave(sizes), sizes.repeat_interleave(sizes)
        self.paired = torch.nonzero(self.size > 1)[:, 0]  # places in order
        self.pairs, self.seed = pairs, seed
        self.rank, self.ranks = _placed(rank, ranks)
        self.batches = batches or max(1, round(len(labels) / (2 * pairs)))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.batches

    def epoch(self, epoch: int) -> Sequence[Tensor]:
        """Rows of each batch, drawn when it is asked for."""
        return _LazyPairs(self, epoch)

    def batch(self, epoch: int, number: int) -> Tensor:
        """Rows of one batch of an epoch."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        seed = int(torch.randint(2**62, (), generator=generator)) + number
        generator.manual_seed(seed)

        def below(limits: Tensor) -> Tensor:
            """A whole number in [0, limit) for each limit."""
            drawn = torch.rand(len(limits), generator=generator, dtype=torch.float64)
            return (drawn * limits).long().clamp(max=limits - 1)

        genuine = (self.pairs + 1) // 2
        total = len(self.order)
        left = self.paired[below(torch.full((genuine,), len(self.paired)))]
        start, size = self.start[left], self.size[left]
        right = start + (left - start + 1 + below(size - 1)) % size
        other = below(torch.full((self.pairs - genuine,), total))
        start, size = self.start[other], self.size[other]
        stranger = (start + size + below(total - size)) % total
        lefts, rights = torch.cat([left, other]), torch.cat([right, stranger])
        mixed = torch.randperm(self.pairs, generator=generator)[self.rank :: self.ranks]
        return self.order[torch.cat([lefts[mixed], rights[mixed]])]


class _LazyPairs(Sequence[Tensor]):
    """Batches of one epoch of a PairSampler."""

    def __init__(self, sampler: PairSampler, epoch: int, numbers: range | None = None) -> None:
        self.sampler, self.of_epoch = sampler, epoch
        self.numbers = range(len(sampler)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return _LazyPairs(self.sampler, self.of_epoch, self.numbers[index])
        return self.sampler.batch(self.of_epoch, self.numbers[index])


def _placed(rank: int | None, ranks: int | None) -> tuple[int, int]:
    here, all_here = rank_and_ranks()
    return here if rank is None else rank, all_here if ranks is None else ranks


def _check_classes(by_class: list[Tensor], wanted: int = 2) -> None:
    if len(by_class) < 2:
        raise InputError(
            f"labels: {len(by_class)} class in the training set; telling apart takes two"
        )
    if all(len(rows) < wanted for rows in by_class):
        raise InputError("labels: no class has two examples, so there is no genuine pair")
