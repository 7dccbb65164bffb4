"""Distances by their bits: intervals that are cut finer until what is asked of them is exact.

A *key* is the bits of a distance without the sign, which order as the numbers do: 31 bits of
float32, 63 of float64. A first pass over all pairs counts the top 16 bits; a second cuts every
interval in proportion to what it holds, and those that an operating point needs down to single
numbers (float64 takes two passes more). So an order statistic is found bit for bit as a sort of all
distances would find it, and no distance is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siamcuda.verification._inputs import Array
from siamcuda.verification._points import Counts, Floats, crossing, first_refused
from siamcuda.verification._sweep import Sweep

__all__ = ["Intervals", "shares_of_bins", "sharpen"]

TOP_KEYS = 65536
#: Bins of the curve: parts of the second pass that no operating point asked for.
CURVE_BINS = 65536
#: Intervals that one pass cuts as finely as it can; each takes 64 Ki counters of both kinds.
MOST_AT_ONCE = 16


@dataclass(frozen=True)
class Format:
    """How keys of a dtype are made."""

    floating: type[np.floating]
    bits: type[np.unsignedinteger]
    low: int  # bits below the top 16
    table: int  # how many of them the second pass can tell apart

    @classmethod
    def of(cls, dtype: np.dtype[np.floating]) -> Format:
        """Of float32 or float64."""
        if dtype == np.float32:
            return cls(np.float32, np.uint32, 15, 15)
        return cls(np.float64, np.uint64, 47, 16)

    def key(self, value: float) -> int:
        """The key of a number that the dtype holds."""
        return int(np.array(value, self.floating).view(self.bits))

    def values(self, keys: NDArray[np.uint64]) -> Floats:
        """Numbers from keys."""
        values: Floats = keys.astype(self.bits).view(self.floating)
        return values


@dataclass(frozen=True)
class Intervals:
    """Intervals of keys [low, low + 2^width) that hold a pair, ascending."""

    format: Format
    low: NDArray[np.uint64]  # (K,)
    width: Counts  # (K,)
    genuine: Counts  # (K,)
    impostor: Counts  # (K,)

    @classmethod
    def of_top_keys(cls, form: Format, counts: Counts) -> Intervals:
        """From the counts [2, 65536] of the first pass."""
        top = np.flatnonzero(counts.sum(0))
        width = np.full(len(top), form.low)
        width[top == form.key(np.inf) >> form.low] = 0  # nothing else but NaN has its top bits
        return cls(form, top.astype(np.uint64) << np.uint64(form.low), width, *counts[:, top])

    @property
    def least(self) -> Floats:
        """First number of each interval: (K,)."""
        return self.format.values(self.low)

    @property
    def distance(self) -> Floats:
        """Last number of each interval: (K,)."""
        wide = (np.uint64(1) << self.width.astype(np.uint64)) - np.uint64(1)
        return self.format.values(self.low + wide)

    def needed(
        self, totals: tuple[int, int], far: Iterable[float], thresholds: Iterable[float]
    ) -> list[int]:
        """Positions of intervals that an operating point lies in and that are not one number."""
        within = np.cumsum(self.genuine), np.cumsum(self.impostor)
        positions = set(crossing(*within, *totals))
        positions |= {first_refused(within[1], totals[1], rate) for rate in far}
        least, distance = self.least.astype(np.float64), self.distance.astype(np.float64)
        for threshold in thresholds:
            at = int(np.searchsorted(distance, threshold))
            if at < len(distance) and least[at] <= threshold < distance[at]:
                positions.add(at)
        return [p for p in sorted(positions) if 0 <= p < len(self.low) and self.width[p] > 0]

    def replaced(self, at: Array, parts: Intervals) -> Intervals:
        """With ``parts`` in the place of the intervals ``at``."""
        keep = np.ones(len(self.low), bool)
        keep[at] = False
        low = np.concatenate([self.low[keep], parts.low])
        order = np.argsort(low, kind="stable")
        columns = [
            np.concatenate([mine[keep], theirs])[order]
            for mine, theirs in (
                (self.width, parts.width),
                (self.genuine, parts.genuine),
                (self.impostor, parts.impostor),
            )
        ]
        return Intervals(self.format, low[order], *columns)


def shares_of_bins(intervals: Intervals, bins: int) -> Counts:
    """Bits by which to cut each interval so that about ``bins`` parts hold alike: (K,).

    A third each by genuine pairs, by impostor pairs, and by how far the false accept rate moves on
    a logarithmic axis, on which the tail that matters is read. 2^bits add up to at most ``bins``
    where there are no more intervals than that.
    """
    genuine, impostor = intervals.genuine, intervals.impostor
    tail = np.diff(np.log1p(np.cumsum(impostor)), prepend=0)
    share = np.zeros(len(tail))
    for counts in (genuine, impostor, tail):
        share += counts / (3 * max(float(counts.sum()), 1e-300))
    spare = max(bins - len(share), 0)
    bits = np.floor(np.log2(np.maximum(share * spare, 1))).astype(np.int64)
    return np.minimum(bits, np.minimum(intervals.width, intervals.format.table))


def table_of(intervals: Intervals, bits: Counts) -> tuple[Array, int]:
    """The operators' table for top intervals cut by ``bits``, and the number of its bins."""
    form = intervals.format
    first = np.cumsum(1 << bits) - (1 << bits)
    table = np.full(TOP_KEYS, form.table, np.int64)  # no pair has one of the other keys
    top = (intervals.low >> np.uint64(form.low)).astype(np.int64)
    table[top] = first * 64 + (form.table - bits)
    return table, int((1 << bits).sum())


def sharpen(
    sweep: Sweep,
    counts: Counts,
    totals: tuple[int, int],
    far: Iterable[float],
    thresholds: Iterable[float],
) -> Intervals:
    """Cut the intervals of a first pass until every operating point is one number."""
    form = Format.of(sweep.dtype)
    top = Intervals.of_top_keys(form, counts)
    needed = top.needed(totals, far, thresholds)[:MOST_AT_ONCE]
    bits = shares_of_bins(top, CURVE_BINS)
    bits[needed] = form.table
    intervals = _parts(top, bits, sweep.refine(*table_of(top, bits)))
    while needed := intervals.needed(totals, far, thresholds)[:MOST_AT_ONCE]:
        at = np.array(needed)
        bits = np.minimum(intervals.width[at], 16)
        chosen = Intervals(
            form, intervals.low[at], intervals.width[at], intervals.genuine[at],
            intervals.impostor[at],
        )  # fmt: skip
        found = sweep.select(chosen.low, chosen.width - bits)
        # an interval narrower than the operator's 65,536 parts has those behind it counted too
        mine = np.concatenate([found[:, k, : 1 << b] for k, b in enumerate(bits)], axis=1)
        intervals = intervals.replaced(at, _parts(chosen, bits, mine))
    return intervals


def _parts(intervals: Intervals, bits: Counts, counts: Counts) -> Intervals:
    """Intervals cut by ``bits``, from the counts [2, Σ 2^bits] of their parts; empty ones left."""
    sizes = 1 << bits
    first = np.cumsum(sizes) - sizes
    which = np.repeat(np.arange(len(bits)), sizes)
    part = (np.arange(int(sizes.sum())) - first[which]).astype(np.uint64)
    width = (intervals.width - bits)[which]
    held = counts.sum(0) > 0
    low = intervals.low[which] + (part << width.astype(np.uint64))
    return Intervals(intervals.format, low[held], width[held], *counts[:, held])
