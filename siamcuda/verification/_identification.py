"""Identification: each query's best mate among everybody else, by counting who is nearer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siamcuda import _ops
from siamcuda.verification._points import Counts, Floats, accepted_at
from siamcuda.verification._sweep import Sweep, rows_a_call

__all__ = ["Identification", "identify"]


@dataclass(frozen=True)
class Identification:
    """Closed-set and open-set identification of each query in a gallery.

    A query's *mates* are the gallery's entries with its label, in a set against itself all but the
    query itself. Its rank is 1 + the number of impostor entries at most as far as the nearest mate:
    a tie counts against the mate, so that an encoder that maps everybody to one point is not
    called perfect. A query whose mates all have the distance NaN is found at no rank.

    A search for somebody who is not enrolled should return nobody. Queries without a mate are such
    searches; where every query has one, each is searched for in the gallery without its own
    identity (:attr:`left_out` is True).
    """

    mated: NDArray[np.bool_]  # (Q,) whether the gallery has a mate
    rank: Counts  # (Q,) from 1; the gallery's size + 1 if found at no rank; 0 without a mate
    mate_distance: Floats  # (Q,) of the nearest mate; NaN if there is none, or none that is known
    impostor_distance: Floats  # (Q,) of the nearest impostor; NaN likewise

    @property
    def left_out(self) -> bool:
        """Whether :meth:`fpir` searches for people in the gallery without their own identity."""
        return bool(self.mated.all())

    def cmc(self, ranks: int = 20) -> NDArray[np.float64]:
        """Share of mated queries whose mate has rank r or better, for r = 1 … ranks: (ranks,).

        Raises:
            ValueError: ranks below 1, or no query has a mate.
        """
        if ranks < 1:
            raise ValueError(f"ranks must be at least 1, got {ranks}")
        found = np.bincount(np.minimum(self._mated(self.rank), ranks + 1), minlength=ranks + 2)
        rates: NDArray[np.float64] = np.cumsum(found[1 : ranks + 1]) / int(self.mated.sum())
        return rates

    def fpir(self, threshold: float) -> float:
        """False positive identification rate: searches for strangers that return an entry.

        The share of them whose nearest entry has d <= ``threshold``.
        """
        return float(np.mean(self._strangers().astype(np.float64) <= _number(threshold)))

    def fnir(self, threshold: float, rank: int = 1) -> float:
        """False negative identification rate: mated searches that miss.

        The share whose mate has d > ``threshold``, or a worse rank than ``rank``.
        """
        near = self._mated(self.mate_distance).astype(np.float64) <= _number(threshold)
        return float(1 - np.mean(near & (self._mated(self.rank) <= rank)))

    def threshold(self, fpir: float) -> float:
        """Largest threshold whose false positive identification rate is at most ``fpir``.

        As :meth:`VerificationReport.threshold`, over one distance for each stranger.
        """
        ascending = np.sort(self._strangers())  # NaN last
        k = accepted_at(fpir, len(ascending), "fpir")
        if k == len(ascending) or np.isnan(ascending[k]):
            return float("inf")
        return float(np.nextafter(ascending[k], ascending.dtype.type(-np.inf)))

    def _strangers(self) -> Floats:
        distances = self.impostor_distance if self.left_out else self.impostor_distance[~self.mated]
        return distances

    def _mated(self, values: NDArray[Any]) -> NDArray[Any]:
        if not self.mated.any():
            raise ValueError("identification: no query has a mate in the gallery")
        return values[self.mated]


def _number(threshold: float) -> float:
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, got nan")
    return float(threshold)


def identify(sweep: Sweep) -> Identification:
    """Ranks of every query, in two passes: the mates, then who is as near."""
    own, gallery = sweep.queries, sweep.gallery
    low, high = sweep.ranges()
    n, m = len(low), len(gallery.identity)
    sorted_parts: list[list[NDArray[Any]]] = []
    step = rows_a_call(m, gallery.rows.shape[1])
    for first in range(0, n, step):
        last = min(first + step, n)
        genuine = sweep.placed(np.stack([low[first:last], high[first:last]], 1))
        found = _ops.namespace.verification_ranks(
            own.rows[first:last], gallery.rows, genuine, sweep.metric,
            first if sweep.triangle else None,
        )  # fmt: skip
        sorted_parts.append([t.cpu().numpy() for t in found])
    columns = [np.concatenate(part) for part in zip(*sorted_parts, strict=True)]
    mate, impostor, within = (np.empty_like(c) for c in columns)
    for target, column in zip((mate, impostor, within), columns, strict=True):
        target[own.index] = column
    mated = np.empty(n, bool)
    mated[own.index] = high - low > (1 if sweep.triangle else 0)
    rank = np.where(np.isnan(mate), m + 1, within + 1)
    return Identification(mated, np.where(mated, rank, 0), mate, impostor)
