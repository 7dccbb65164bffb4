"""Where on a curve of counts an operating point lies: integers, so that ties are ties."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Counts", "Floats", "accepted_at", "crossing", "first_refused"]

Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.int64]


def accepted_at(rate: float, count: int, name: str = "far") -> int:
    """floor(rate * count), from the decimal that ``rate`` prints as."""
    if not 0 <= rate <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {rate}")
    return math.floor(Fraction(repr(float(rate))) * count)


def first_refused(impostor_within: Counts, impostor: int, far: float) -> int:
    """Position of the distance d_(k+1) of impostors; their number when all are accepted."""
    return int(np.searchsorted(impostor_within, accepted_at(far, impostor), side="right"))


def crossing(
    genuine_within: Counts, impostor_within: Counts, genuine: int, impostor: int
) -> tuple[int, int]:
    """Positions next to where FAR - FRR changes its sign: the last below 0, the first not below.

    -1 or the number of positions where there is none. The difference grows from each distance to
    the next, so one of the two minimises |FAR - FRR|.
    """

    def difference(at: int) -> int:
        accepted, rejected = int(impostor_within[at]), genuine - int(genuine_within[at])
        return accepted * genuine - rejected * impostor

    positions: Sequence[int] = range(len(genuine_within))
    at = bisect.bisect_left(positions, 0, key=difference)
    return at - 1, at
