"""All pairs of a set, or of queries and gallery, sorted by label as the operators want them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from siamcuda import _ops
from siamcuda.verification._inputs import Array
from siamcuda.verification._points import Counts

__all__ = ["Pass", "Side", "Sweep", "rows_a_call"]

#: Elements that the pairs of one call of an operator have, seconds of work: between two calls
#: Python may be interrupted.
WORK_A_CALL = 2**38


def rows_a_call(others: int, columns: int) -> int:
    """So many rows meet ``others`` rows of D = ``columns`` in one call."""
    return max(1, WORK_A_CALL // (others * (columns + 16)))


@dataclass(frozen=True)
class Side:
    """Rows in the order of their labels."""

    rows: Tensor  # [N, D] float32 or float64
    identity: Counts  # [N] ascending, counted from 0 over all sides
    index: Counts  # [N] where a row stood

    @classmethod
    def of(cls, rows: Tensor, identity: Counts, unit: bool) -> Side:
        """Sort; with ``unit`` to length 1, as the cosine distance wants them."""
        order = np.argsort(identity, kind="stable")
        taken = rows[torch.from_numpy(order).to(rows.device)]
        if unit:  # in place, since a second copy may be large
            for part in taken.split(65536):
                part.copy_(_ops.namespace.gallery_normalize(part))
        return cls(taken, identity[order], order)


@dataclass(frozen=True)
class Pass:
    """Arguments of one call: some columns and the rows that meet them."""

    rows: Tensor
    columns: Tensor
    genuine: Tensor  # [rows, 2]
    row_part: slice
    column_part: slice
    diagonal: int


@dataclass(frozen=True)
class Sweep:
    """Every pair once."""

    queries: Side
    gallery: Side  # the queries themselves for a set against itself
    metric: str

    @property
    def triangle(self) -> bool:
        """Whether a set meets itself, each pair i < j once."""
        return self.gallery is self.queries

    @property
    def pairs(self) -> tuple[int, int]:
        """Genuine and impostor pairs."""
        n, m = len(self.queries.identity), len(self.gallery.identity)
        low, high = self.ranges()
        genuine = int((high - low).sum())
        total = n * m
        if self.triangle:
            genuine, total = (genuine - n) // 2, n * (n - 1) // 2
        return genuine, total - genuine

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Of the distances."""
        return np.dtype(np.float64 if self.queries.rows.dtype == torch.float64 else np.float32)

    def placed(self, array: Array) -> Tensor:
        """Bring an array to the device of the rows."""
        return torch.from_numpy(array).to(self.queries.rows.device)

    def ranges(self) -> tuple[Counts, Counts]:
        """First and last + 1 of the gallery's rows with the identity of each query: (N,), (N,)."""
        own, others = self.queries.identity, self.gallery.identity
        return np.searchsorted(others, own), np.searchsorted(others, own, side="right")

    def passes(self) -> Iterator[Pass]:
        """Calls that cover every pair."""
        low, high = self.ranges()
        if self.triangle:
            low = np.minimum(np.arange(len(low)) + 1, high)
        n, m = len(low), len(self.gallery.identity)
        step = rows_a_call(n, self.queries.rows.shape[1])
        for first in range(0, m, step):
            last = min(first + step, m)
            rows = last if self.triangle else n  # later rows have no column behind them here
            genuine = np.stack([low[:rows], high[:rows]], 1).clip(first, last) - first
            yield Pass(
                self.queries.rows[:rows],
                self.gallery.rows[first:last],
                self.placed(genuine),
                slice(0, rows),
                slice(first, last),
                -first,
            )

    def histogram(self, hardest: int) -> tuple[Counts, NDArray[np.float64], list[Any]]:
        """Counts by top key [2, 65537], sums [2, 2], and (distances, pairs) of each call."""
        counts, sums, found = np.zeros((2, 65537), np.int64), np.zeros((2, 2)), []
        own, others = self.placed(self.queries.index), self.placed(self.gallery.index)
        for p in self.passes():
            here, moments, *pairs = _ops.namespace.verification_histogram(
                p.rows, p.columns, p.genuine, own[p.row_part], others[p.column_part],
                self.metric, p.diagonal, self.triangle, hardest,
            )  # fmt: skip
            counts += here.cpu().numpy()
            sums += moments.cpu().numpy()
            found.append([t.cpu().numpy() for t in pairs])
        return counts, sums, found

    def refine(self, table: Array, size: int) -> Counts:
        """Counts [2, size] by a table of top keys."""
        counts = np.zeros((2, size), np.int64)
        given = self.placed(table)
        for p in self.passes():
            here = _ops.namespace.verification_refine(
                p.rows, p.columns, p.genuine, given, self.metric, p.diagonal, self.triangle, size
            )
            counts += here.cpu().numpy()
        return counts

    def select(self, low: Array, shift: Array) -> Counts:
        """Counts [2, intervals, 65536] within intervals of keys."""
        counts = np.zeros((2, len(low), 65536), np.int64)
        given = self.placed(low.astype(np.int64)), self.placed(shift)
        for p in self.passes():
            here = _ops.namespace.verification_select(
                p.rows, p.columns, p.genuine, *given, self.metric, p.diagonal, self.triangle
            )
            counts += here.cpu().numpy()
        return counts

    def bootstrap(self, table: Array, size: int, drawn: Array) -> Counts:
        """Counts [2, size, 64] of weighted pairs; drawn [identities, 64]."""
        counts = np.zeros((2, size, 64), np.int64)
        own, others = (self.placed(s.identity) for s in (self.queries, self.gallery))
        given = self.placed(table), self.placed(drawn)
        for p in self.passes():
            here = _ops.namespace.verification_bootstrap(
                p.rows, p.columns, p.genuine, given[0], own[p.row_part], others[p.column_part],
                given[1], self.metric, p.diagonal, self.triangle, size,
            )  # fmt: skip
            counts += here.cpu().numpy()
        return counts
