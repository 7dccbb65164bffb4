"""A report from distances that are there: every number exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from siamcuda.verification._points import Counts, Floats
from siamcuda.verification._report import Spread, VerificationReport

__all__ = ["from_distances"]


def from_distances(
    genuine: Tensor | Floats | Sequence[float], impostor: Tensor | Floats | Sequence[float]
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

    Example:
        >>> report = from_distances(genuine=[0.1, 0.4], impostor=[0.3, 0.8, 0.9])
        >>> report.eer, report.auc, report.frr(0.0)
        (0.41666666666666663, 0.8333333333333334, 0.5)
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
        spread=Spread(*_mean_and_deviation(own_seen), *_mean_and_deviation(other_seen)),
    )


def _mean_and_deviation(values: Floats) -> tuple[float, float]:
    if not values.size:
        return np.nan, np.nan
    with np.errstate(invalid="ignore"):  # an infinite distance has no deviation
        wide = values.astype(np.float64)
        return float(wide.mean()), float(wide.std())


def _within(ascending: Floats, distance: Floats) -> Counts:
    return np.searchsorted(ascending, distance, side="right").astype(np.int64)


def _distances(name: str, values: Tensor | Floats | Iterable[float]) -> Floats:
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
