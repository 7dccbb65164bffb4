"""Isotonic regression by pool-adjacent-violators, on counts along ascending distances."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Blocks", "pool"]

_Doubles = NDArray[np.float64]


class Blocks(NamedTuple):
    """Runs of positions that get one value, ordered by distance."""

    first: NDArray[np.int64]  # (M,) first position
    last: NDArray[np.int64]  # (M,) last position
    genuine: _Doubles  # (M,) weight of genuine pairs
    impostor: _Doubles  # (M,)

    @property
    def value(self) -> _Doubles:
        """Share of genuine weight, never rising with distance: (M,)."""
        return self.genuine / (self.genuine + self.impostor)


def pool(genuine: _Doubles, impostor: _Doubles) -> Blocks:
    """Blocks whose share of genuine weight falls with distance: least squares under that order.

    Args:
        genuine: ``(K,)`` weights of genuine pairs at each distance, ascending; not both 0.
        impostor: ``(K,)``.
    """
    used = np.flatnonzero((genuine > 0) | (impostor > 0))
    kind = np.where(impostor[used] == 0, 1, np.where(genuine[used] == 0, 0, 2))
    # Neighbours that are all genuine, or all impostor, have one value whatever comes: few are left.
    starts = np.ones(len(used), bool)
    starts[1:] = (kind[1:] != kind[:-1]) | (kind[1:] == 2)
    at = np.flatnonzero(starts)
    runs = zip(
        used[at].tolist(),
        used[np.append(at[1:], len(used)) - 1].tolist(),
        np.add.reduceat(genuine[used], at).tolist(),
        np.add.reduceat(impostor[used], at).tolist(),
        strict=True,
    )
    stack: list[tuple[int, int, float, float]] = []
    for run in runs:
        first, last, own, other = run
        # shares compared crosswise: own / (own + other) of the earlier one must be the larger
        while stack and stack[-1][2] * other <= own * stack[-1][3]:
            before = stack.pop()
            first, own, other = before[0], before[2] + own, before[3] + other
        stack.append((first, last, own, other))
    columns = list(zip(*stack, strict=True))
    return Blocks(
        np.array(columns[0], np.int64),
        np.array(columns[1], np.int64),
        np.array(columns[2], np.float64),
        np.array(columns[3], np.float64),
    )
