"""Checks of what evaluate is given, all before any work: each error names its argument."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Array", "as_count", "as_labels", "as_numbers", "as_pairs", "as_rates", "as_rows"]

Array = NDArray[Any]
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
METRICS = ("sqeuclidean", "euclidean", "cosine")


def as_rows(name: str, value: Tensor | Array) -> Tensor:
    """Embeddings ``(N, D)`` as a float32 or float64 tensor without a graph."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f" or value.dtype.itemsize > 8:
            raise TypeError(
                f"{name} must hold float16, bfloat16, float32 or float64, got dtype {value.dtype}"
            )
        # a copy where torch could not share the memory as it is
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        value = torch.from_numpy(np.require(native, requirements=["C", "W"]))
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor or an array, got {type(value).__name__}")
    if value.dtype not in _FLOATS:
        raise TypeError(
            f"{name} must hold float16, bfloat16, float32 or float64, got {value.dtype}"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")
    if value.dim() != 2:
        raise ValueError(f"{name} must have shape (N, D), got {tuple(value.shape)}")
    if value.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be on the CPU or a GPU, got {value.device}")
    if value.shape[0] == 0:
        raise ValueError(f"{name} must have at least one row, got {tuple(value.shape)}")
    value = value.detach()
    return value if value.dtype == torch.float64 else value.float()


def as_labels(name: str, value: Tensor | Array | Sequence[int], rows: int) -> Array:
    """Labels ``(N,)`` of any integer dtype."""
    labels = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {labels.dtype}")
    if labels.shape != (rows,):
        raise ValueError(f"{name} must have shape ({rows},), got {labels.shape}")
    if labels.dtype == np.uint64 and labels.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must fit int64, got {labels.max()}")
    return labels.astype(np.int64)


def as_pairs(value: Tensor | Array | Sequence[tuple[int, int]], rows: tuple[int, int]) -> Array:
    """Pairs ``(M, 2)`` of row numbers."""
    pairs = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if pairs.dtype.kind not in "iu" and pairs.size:
        raise TypeError(f"pairs must hold integers, got dtype {pairs.dtype}")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise ValueError(f"pairs must have shape (M, 2) with M >= 1, got {pairs.shape}")
    for side in range(2):
        column = pairs[:, side]
        if column.min() < 0 or column.max() >= rows[side]:
            raise ValueError(
                f"pairs[:, {side}] must lie in [0, {rows[side]}), "
                f"got {column.min()} to {column.max()}"
            )
    return pairs.astype(np.int64)


def as_rates(name: str, values: float | Iterable[float]) -> tuple[float, ...]:
    """False accept rates, each in [0, 1]."""
    rates = as_numbers(name, values)
    for rate in rates:
        if not 0 <= rate <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {rate}")
    return rates


def as_numbers(name: str, values: float | Iterable[float]) -> tuple[float, ...]:
    """One number or some, none of them NaN."""
    given = values if isinstance(values, Iterable) else (values,)
    try:
        numbers = tuple(float(v) for v in given)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be numbers, got {values!r}") from None
    if any(np.isnan(numbers)):
        raise ValueError(f"{name} must be numbers, got nan")
    return numbers


def as_count(name: str, value: int) -> int:
    """An integer of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return int(value)
