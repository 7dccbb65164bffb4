"""How well distances tell genuine pairs from impostors: thresholds, error rates and curves.

A pair is accepted when its distance d <= t. The false accept rate FAR(t) is the share of impostor
pairs accepted; the false reject rate FRR(t) is the share of genuine pairs with d > t. All numbers
are exact: counts of pairs, never bins or interpolation.

>>> report = from_distances(genuine=[0.1, 0.4], impostor=[0.3, 0.8, 0.9])
>>> report.eer, report.auc, report.frr(0.0)
(0.41666666666666663, 0.8333333333333334, 0.5)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Curve", "VerificationReport", "from_distances"]

_Floats = NDArray[np.floating[Any]]
_Counts = NDArray[np.int64]


class Curve(NamedTuple):
    """One row for each threshold, thresholds ascending from -inf (nothing is accepted)."""

    far: NDArray[np.float64]  # (K,)
    rate: NDArray[np.float64]  # (K,) true accept rate for a ROC, false reject rate for a DET curve
    threshold: _Floats  # (K,)


@dataclass(frozen=True)
class VerificationReport:
    """Every error rate of one set of trials, from counts at each distance that was observed.

    Made by :func:`from_distances`. NaN distances are never accepted: a genuine NaN is a false
    reject at every threshold, an impostor NaN is never a false accept. They stay in the
    denominators and are counted apart.
    """

    distance: _Floats  # (K,) ascending, no two equal, no NaN
    genuine_within: _Counts  # (K,) genuine pairs with d <= distance
    impostor_within: _Counts  # (K,) impostor pairs with d <= distance
    genuine: int  # pairs, NaN included
    impostor: int
    genuine_nan: int
    impostor_nan: int

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

        NaN ties with NaN and lies beyond everything else.
        """
        at = np.diff(np.append(self.impostor_within, self.impostor), prepend=0)
        within = np.append(self.genuine_within, self.genuine)
        below = np.concatenate([[0], within[:-1]])
        if 2 * self.genuine * self.impostor < 2**63:
            twice = int(np.dot(at, below + within))
        else:  # integers would wrap; a double keeps 16 digits
            twice = int(np.dot(at.astype(np.float64), (below + within).astype(np.float64)))
        return twice / (2 * self.genuine * self.impostor)

    def threshold(self, far: float) -> float:
        """Largest threshold whose false accept rate is at most ``far``, ties handled.

        With N impostors sorted ascending and k = floor(far * N), computed exactly from the decimal
        that ``far`` prints as, this is the last number below d_(k+1) in the precision of the
        distances, or +inf for k = N.
        """
        position = self._first_refused(far)
        if position == len(self.distance):
            return math.inf
        least = self.distance.dtype.type(-np.inf)
        return float(np.nextafter(self.distance[position], least))

    def frr(self, far: float) -> float:
        """Share of genuine pairs with d > threshold(far)."""
        position = self._first_refused(far)
        within = int(self.genuine_within[position - 1]) if position else 0
        return (self.genuine - within) / self.genuine

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

    def _equal_error(self) -> tuple[float, float]:
        # compare |FAR - FRR| as integers over the common denominator, so that ties are ties
        accepted, rejected = self.impostor_within, self.genuine - self.genuine_within
        if self.genuine * self.impostor < 2**62:
            gap = np.abs(accepted * self.genuine - rejected * self.impostor)
        else:
            gap = np.abs(accepted / self.impostor - rejected / self.genuine)
        at = int(np.argmin(gap))  # argmin yields the first of equals
        far, frr = int(accepted[at]) / self.impostor, int(rejected[at]) / self.genuine
        return (far + frr) / 2, float(self.distance[at])

    def _first_refused(self, far: float) -> int:
        """Position of d_(k+1) among the observed distances; their number when all are accepted."""
        if not 0 <= far <= 1:
            raise ValueError(f"far must lie in [0, 1], got {far}")
        k = math.floor(Fraction(repr(float(far))) * self.impostor)
        return int(np.searchsorted(self.impostor_within, k, side="right"))

    def _thresholds(self) -> _Floats:
        return np.append(self.distance.dtype.type(-np.inf), self.distance)


def from_distances(
    genuine: Tensor | _Floats | Sequence[float], impostor: Tensor | _Floats | Sequence[float]
) -> VerificationReport:
    """Build a report from the distances of genuine and of impostor pairs.

    Args:
        genuine: distances of pairs that show the same identity, any shape, at least one.
        impostor: distances of pairs that show two identities, any shape, at least one.
            Both may be tensors, arrays or sequences; float16, float32 and float64 keep their
            precision (the wider of the two), bfloat16 becomes float32, integers float64.

    Raises:
        ValueError: names the argument that is empty or holds -inf, or says that no distance at
            all is a number.
        TypeError: names the argument that is not real.
    """
    arrays = [_distances("genuine", genuine), _distances("impostor", impostor)]
    dtype = np.result_type(*arrays)
    own, other = (np.sort(a.astype(dtype, copy=False)) for a in arrays)
    nan = [int(np.isnan(a).sum()) for a in (own, other)]
    own_seen, other_seen = own[: own.size - nan[0]], other[: other.size - nan[1]]
    distance = np.unique(np.concatenate([own_seen, other_seen]))
    if not distance.size:
        raise ValueError("genuine and impostor: every distance is NaN")
    return VerificationReport(
        distance=distance,
        genuine_within=_within(own_seen, distance),
        impostor_within=_within(other_seen, distance),
        genuine=own.size,
        impostor=other.size,
        genuine_nan=nan[0],
        impostor_nan=nan[1],
    )


def _within(ascending: _Floats, distance: _Floats) -> _Counts:
    return np.searchsorted(ascending, distance, side="right").astype(np.int64)


def _distances(name: str, values: Tensor | _Floats | Iterable[float]) -> _Floats:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    else:
        array = np.asarray(values)
    if array.size == 0:
        raise ValueError(f"{name}: at least one distance is needed, got shape {array.shape}")
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: real distances are expected, got dtype {array.dtype}")
    if np.isneginf(array).any():
        raise ValueError(f"{name}: holds -inf, which is not a distance")
    return array.ravel()
