"""Confidence intervals by drawing identities anew, since pairs of one identity go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siamcuda.verification._intervals import Format, Intervals, shares_of_bins, table_of
from siamcuda.verification._points import Counts
from siamcuda.verification._sweep import Side, Sweep

__all__ = ["MOST_EMBEDDINGS", "Confidence", "bootstrap"]

MOST_EMBEDDINGS = 20_000
#: Bins of a sample's curve.
_BINS = 2048
#: Samples that the operator counts at a time.
_AT_ONCE = 64

_Doubles = NDArray[np.float64]
_Interval = tuple[float, float]


@dataclass(frozen=True)
class Confidence:
    """Percentile intervals of a bootstrap over identities.

    As many identities are drawn with replacement as there are, all their embeddings with them: a
    genuine pair counts as often as its identity was drawn, an impostor pair as often as its two
    identities were, multiplied. Two copies of one identity are no pair. Rates of a sample come from
    2,048 bins, with straight lines between them.
    """

    level: float  # 0.95: 2.5 % of the samples lie below an interval and 2.5 % above
    samples: int
    eer: _Interval
    auc: _Interval
    frr: dict[float, _Interval]  # by false accept rate


def bootstrap(
    sweep: Sweep, counts: Counts, far: Sequence[float], samples: int, level: float, seed: int
) -> Confidence:
    """Draw ``samples`` times; ``counts`` [2, 65536] are those of the first pass."""
    top = Intervals.of_top_keys(Format.of(sweep.dtype), counts)
    bits = shares_of_bins(top, _BINS)
    table, size = table_of(top, bits)
    sizes = [
        np.bincount(side.identity, minlength=_identities(sweep))
        for side in (sweep.queries, sweep.gallery)
    ]
    random = np.random.default_rng(seed)
    eer, auc, frr = [], [], []
    for first in range(0, samples, _AT_ONCE):
        drawn = _draw(random, len(sizes[0]))
        own, other = sweep.bootstrap(table, size, drawn.astype(np.uint8)).astype(np.float64)
        totals = _totals(sizes, drawn, sweep.triangle)
        used = slice(0, min(_AT_ONCE, samples - first))
        for k in range(_AT_ONCE)[used]:
            if totals[0][k] == 0 or totals[1][k] == 0:
                continue  # one identity alone was drawn: there is nothing to tell apart
            within = [
                np.append(0, np.cumsum(part[:, k])) / total[k]
                for part, total in zip((own, other), totals, strict=True)
            ]
            accepted, rejected = within[1], 1 - within[0]
            eer.append(_crossing(accepted, rejected))
            auc.append(_area(*within))
            frr.append([_at(accepted, rejected, rate) for rate in far])
    if not eer:
        raise ValueError("bootstrap: every sample drew one identity alone; there are too few")

    def interval(values: Sequence[float]) -> _Interval:
        low, high = np.quantile(np.array(values), [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    by_rate = {rate: interval([row[k] for row in frr]) for k, rate in enumerate(far)}
    return Confidence(level, len(eer), interval(eer), interval(auc), by_rate)


def _identities(sweep: Sweep) -> int:
    sides: tuple[Side, Side] = (sweep.queries, sweep.gallery)
    return 1 + max(int(side.identity[-1]) for side in sides)


def _draw(random: np.random.Generator, identities: int) -> Counts:
    """How often each identity was drawn in each sample: [identities, 64]."""
    drawn: Counts = random.multinomial(identities, np.full(identities, 1 / identities), _AT_ONCE).T
    return np.ascontiguousarray(np.minimum(drawn, 255))  # more than 255 times never happens


def _totals(sizes: Sequence[Counts], drawn: Counts, triangle: bool) -> tuple[Counts, Counts]:
    """Genuine and impostor pairs of each sample, NaN distances included."""
    own, other = sizes
    both = (own @ drawn) * (other @ drawn) - (own * other) @ drawn**2
    if triangle:
        return (own * (own - 1) // 2) @ drawn, both // 2
    return (own * other) @ drawn, both


def _crossing(accepted: _Doubles, rejected: _Doubles) -> float:
    """Where the two rates meet, by a straight line between bins."""
    at = int(np.searchsorted(accepted - rejected, 0))
    if at == 0 or at == len(accepted):
        at = min(at, len(accepted) - 1)
        return float(accepted[at] + rejected[at]) / 2
    before = rejected[at - 1] - accepted[at - 1]
    part = before / (before + accepted[at] - rejected[at])
    return float(accepted[at - 1] + part * (accepted[at] - accepted[at - 1]))


def _at(accepted: _Doubles, rejected: _Doubles, rate: float) -> float:
    """False reject rate at a false accept rate, by a straight line between bins."""
    at = int(np.searchsorted(accepted, rate, side="right"))
    if at == len(accepted):
        return float(rejected[-1])
    part = (rate - accepted[at - 1]) / (accepted[at] - accepted[at - 1])
    return float(rejected[at - 1] + part * (rejected[at] - rejected[at - 1]))


def _area(genuine: _Doubles, impostor: _Doubles) -> float:
    """Chance that a genuine pair is closer, ties ½; NaN lies beyond everything else."""
    own, other = np.append(genuine, 1), np.append(impostor, 1)
    return float(np.sum(np.diff(other) * (own[1:] + own[:-1]) / 2))
