"""The report: every error rate of one set of trials, from counts of pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from siamcuda.verification._isotonic import pool
from siamcuda.verification._points import Counts, Floats, crossing, first_refused

if TYPE_CHECKING:
    from siamcuda.verification._bootstrap import Confidence
    from siamcuda.verification._calibrator import Calibrator
    from siamcuda.verification._identification import Identification

__all__ = ["Curve", "HardestPairs", "Histogram", "Spread", "VerificationReport"]


class Curve(NamedTuple):
    """One row for each threshold, thresholds ascending from -inf (nothing is accepted)."""

    far: NDArray[np.float64]  # (K,)
    rate: NDArray[np.float64]  # (K,) true accept rate for a ROC, false reject rate for a DET curve
    threshold: Floats  # (K,)


class Histogram(NamedTuple):
    """Pairs by distance, in bins of equal width."""

    edges: NDArray[np.float64]  # (bins + 1,)
    genuine: Counts  # (bins,)
    impostor: Counts  # (bins,)


class HardestPairs(NamedTuple):
    """Pairs in order of hardness; ties by the lower i, then the lower j."""

    distance: Floats  # (k,)
    pairs: Counts  # (k, 2) rows i < j of one set; or row of the queries and row of the gallery


class Spread(NamedTuple):
    """Mean and standard deviation (of the population) of the distances that are numbers."""

    genuine_mean: float
    genuine_std: float
    impostor_mean: float
    impostor_std: float


@dataclass(frozen=True)
class VerificationReport:
    """Every error rate of one set of trials, from counts at each distance that was observed.

    Made by :func:`evaluate` and :func:`from_distances`. NaN distances are never accepted: a genuine
    NaN is a false reject at every threshold, an impostor NaN is never a false accept. They stay in
    the denominators and are counted apart.

    **Exact or binned.** Where pairs are too many to keep each distance, positions of the curve are
    intervals [least, distance]: :attr:`binned` says so. Rates at the thresholds of :meth:`roc` and
    :meth:`det` are exact all the same, each threshold being the end of an interval. The EER, and
    thresholds at the rates (and rates at the thresholds) that :func:`evaluate` was asked for, are
    exact too, because their intervals were cut down to single numbers.
    """

    distance: Floats  # (K,) ascending, no two equal, no NaN
    genuine_within: Counts  # (K,) genuine pairs with d <= distance
    impostor_within: Counts  # (K,) impostor pairs with d <= distance
    genuine: int  # pairs, NaN included
    impostor: int
    genuine_nan: int
    impostor_nan: int
    least: Floats = field(default_factory=lambda: np.empty(0))  # (K,) first number of the interval
    spread: Spread | None = None
    metric: str | None = None
    hardest_genuine: HardestPairs | None = None  # largest distances of genuine pairs
    hardest_impostor: HardestPairs | None = None  # smallest distances of impostor pairs
    identification: Identification | None = None
    confidence: Confidence | None = None

    def __post_init__(self) -> None:
        if not self.least.size:
            object.__setattr__(self, "least", self.distance)

    @property
    def binned(self) -> bool:
        """Whether some position of the curve stands for more than one distance."""
        return not np.array_equal(self.least, self.distance)

    @property
    def eer(self) -> float:
        """(FAR + FRR) / 2 at the observed distance that minimises |FAR - FRR|, lowest on ties."""
        return self._equal_error()[0]

    @property
    def eer_threshold(self) -> float:
        """The observed distance at which :attr:`eer` is measured."""
        return self._equal_error()[1]

    @property
    def auc(self) -> float:
        """Chance that a genuine pair is closer than an impostor pair; ties count one half.

        NaN ties with NaN and lies beyond everything else. Two distances in one interval count as a
        tie: :attr:`auc_error` bounds what that may cost.
        """
        at = np.diff(np.append(self.impostor_within, self.impostor), prepend=0)
        within = np.append(self.genuine_within, self.genuine)
        below = np.concatenate([[0], within[:-1]])
        if 2 * self.genuine * self.impostor < 2**63:
            twice = int(np.dot(at, below + within))
        else:  # integers would wrap; a double keeps 16 digits
            twice = int(np.dot(at.astype(np.float64), (below + within).astype(np.float64)))
        return twice / (2 * self.genuine * self.impostor)

    @property
    def auc_error(self) -> float:
        """The most by which :attr:`auc` may be off; 0 where the curve is not binned.

        A genuine and an impostor pair in one interval count ½ in place of 0 or 1.
        """
        genuine, impostor = self._counts()
        wide = self.least != self.distance
        shares = genuine[wide] / self.genuine * (impostor[wide] / self.impostor)
        return float(shares.sum() / 2)

    @property
    def d_prime(self) -> float:
        """Distance of the two means in standard deviations: |μ_i − μ_g| / √((σ_i² + σ_g²) / 2).

        NaN if there is an infinite distance, or no number among one kind.
        """
        if self.spread is None:
            raise ValueError("d_prime: this report was made without means")
        gap = abs(self.spread.impostor_mean - self.spread.genuine_mean)
        pooled = math.sqrt((self.spread.genuine_std**2 + self.spread.impostor_std**2) / 2)
        if pooled == 0:
            return math.inf if gap else 0.0
        return gap / pooled

    @property
    def min_cllr(self) -> float:
        """Cllr in bits after the best monotone calibration of these very trials (0 is perfect).

        Pool-adjacent-violators gives it (Brümmer and du Preez 2006). From a binned curve it is an
        upper bound, since an interval's pairs get one value. NaN distances take no part.
        """
        genuine, impostor = self._counts()
        if not genuine.any() or not impostor.any():
            return math.nan
        blocks = pool(genuine / genuine.sum(), impostor / impostor.sum())
        cost = 0.0
        for own, other in ((blocks.genuine, blocks.impostor), (blocks.impostor, blocks.genuine)):
            some = own > 0  # a block without them costs nothing
            cost += float(np.sum(own[some] * np.log2(1 + other[some] / own[some]))) / 2
        return cost

    def cllr(self, calibrator: Calibrator) -> float:
        """Cost of a calibration's log-likelihood ratios in bits (Brümmer and du Preez 2006).

        ½·[mean over genuine of log2(1 + 1/LR) + mean over impostor of log2(1 + LR)]; 0 is perfect,
        1 is what a system pays that says nothing. From a binned curve each pair is taken at the
        middle of its interval. NaN distances take no part.
        """
        genuine, impostor = self._counts()
        llr = calibrator.log_likelihood_ratio(self._middle())
        cost = 0.0
        for counts, sign in ((genuine, -1.0), (impostor, 1.0)):
            seen = counts > 0
            if not seen.any():
                return math.nan
            bits = np.logaddexp(0.0, sign * llr[seen]) / math.log(2)
            cost += float(np.average(bits, weights=counts[seen])) / 2
        return cost

    def threshold(self, far: float) -> float:
        """Largest threshold whose false accept rate is at most ``far``, ties handled.

        With N impostors sorted ascending and k = floor(far * N), computed exactly from the decimal
        that ``far`` prints as, this is the last number below d_(k+1) in the precision of the
        distances, or +inf for k = N. Where d_(k+1) lies in an interval that was not cut down
        (:meth:`is_exact` is False) it is the last number below the interval: safe, since FAR stays
        at most ``far``, but not the largest.
        """
        position = self._first_refused(far)
        if position == len(self.distance):
            return math.inf
        least = self.distance.dtype.type(-np.inf)
        return float(np.nextafter(self.least[position], least))

    def is_exact(self, far: float) -> bool:
        """Whether :meth:`threshold` is the largest one there is."""
        position = self._first_refused(far)
        return position == len(self.distance) or bool(
            self.least[position] == self.distance[position]
        )

    def frr(self, far: float) -> float:
        """Share of genuine pairs with d > threshold(far)."""
        position = self._first_refused(far)
        within = int(self.genuine_within[position - 1]) if position else 0
        return (self.genuine - within) / self.genuine

    def tar(self, far: float) -> float:
        """Share of genuine pairs accepted at threshold(far): 1 − :meth:`frr`."""
        position = self._first_refused(far)
        return (int(self.genuine_within[position - 1]) if position else 0) / self.genuine

    def rates(self, threshold: float) -> tuple[float, float]:
        """FAR and FRR when pairs with d <= ``threshold`` are accepted.

        Raises:
            ValueError: the threshold is NaN, or lies within an interval of a binned curve: then ask
                :func:`evaluate` for it by ``thresholds``.
        """
        if math.isnan(threshold):
            raise ValueError("threshold must be a number, got nan")
        # numpy would round a Python float to the precision of the distances, perhaps upwards
        position = int(np.searchsorted(self.distance.astype(np.float64), threshold, side="right"))
        if position < len(self.distance) and self.least[position] <= np.float64(threshold):
            raise ValueError(
                f"threshold {threshold} lies within an interval of a binned curve: give it to "
                "evaluate as one of thresholds"
            )
        accepted = int(self.impostor_within[position - 1]) if position else 0
        within = int(self.genuine_within[position - 1]) if position else 0
        return accepted / self.impostor, (self.genuine - within) / self.genuine

    def roc(self) -> Curve:
        """Trace true accept rate against false accept rate, from (0, 0)."""
        return Curve(
            np.append(0.0, self.impostor_within / self.impostor),
            np.append(0.0, self.genuine_within / self.genuine),
            self._thresholds(),
        )

    def det(self) -> Curve:
        """Trace false reject rate against false accept rate, from (0, 1)."""
        return Curve(
            np.append(0.0, self.impostor_within / self.impostor),
            np.append(1.0, (self.genuine - self.genuine_within) / self.genuine),
            self._thresholds(),
        )

    def cmc(self, ranks: int = 20) -> NDArray[np.float64]:
        """Cumulative match characteristic; see :meth:`Identification.cmc`."""
        if self.identification is None:
            raise ValueError("cmc: this report was made without identification")
        return self.identification.cmc(ranks)

    def histogram(self, bins: int = 100) -> Histogram:
        """Genuine and impostor pairs with a finite distance, in ``bins`` bins of equal width.

        Pairs of an interval of a binned curve are counted where its middle is.
        """
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        middle = self._middle()
        finite = np.isfinite(middle)
        middle = middle[finite]
        if not middle.size:
            raise ValueError("histogram: no distance is finite")
        edges = np.linspace(middle[0], middle[-1], bins + 1)
        at = np.clip(np.searchsorted(edges, middle, side="right") - 1, 0, bins - 1)
        totals = [np.zeros(bins, np.int64) for _ in range(2)]
        for total, counts in zip(totals, self._counts(), strict=True):
            np.add.at(total, at, counts[finite])
        return Histogram(edges, *totals)

    def _counts(self) -> tuple[Counts, Counts]:
        return np.diff(self.genuine_within, prepend=0), np.diff(self.impostor_within, prepend=0)

    def _middle(self) -> NDArray[np.float64]:
        """A distance for each position: (K,), itself where the position is one number."""
        upper, lower = self.distance.astype(np.float64), self.least.astype(np.float64)
        return np.where(upper == lower, upper, lower / 2 + upper / 2)

    def _equal_error(self) -> tuple[float, float]:
        counts = (self.genuine_within, self.impostor_within)

        def gap(at: int) -> int:
            accepted, rejected = int(counts[1][at]), self.genuine - int(counts[0][at])
            return abs(accepted * self.genuine - rejected * self.impostor)

        sides = crossing(*counts, self.genuine, self.impostor)
        at = min((p for p in sides if 0 <= p < len(self.distance)), key=gap)  # the first of equals
        far = int(counts[1][at]) / self.impostor
        frr = (self.genuine - int(counts[0][at])) / self.genuine
        return (far + frr) / 2, float(self.distance[at])

    def _first_refused(self, far: float) -> int:
        return first_refused(self.impostor_within, self.impostor, far)

    def _thresholds(self) -> Floats:
        return np.append(self.distance.dtype.type(-np.inf), self.distance)
