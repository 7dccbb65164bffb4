"""The distance that decides a search, by its definition: an oracle that shares nothing with C++."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LANES = 16


def fused_multiply_add(x: NDArray, acc: NDArray) -> NDArray:
    """x·x + acc in float32, rounded once: in double by rounding to odd, which no second rounding
    to 24 bits can spoil."""
    product = x.astype(np.float64) ** 2  # exact: 48 bits
    wide = acc.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = product + wide
        part = total - product
        error = (product - (total - part)) + (wide - part)
        bits = total.view(np.int64)
        inexact = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
        # The last bit of an inexact sum is 1: one step to where the error points.
        step = np.where((error > 0) == (total > 0), 1, -1)
        odd = np.where(inexact, bits + step, bits).view(np.float64)
        return odd.astype(np.float32)


def squared_distances(queries: NDArray, rows: NDArray) -> NDArray:
    """[Q, N] float32: 16 sums, element k to sum k mod 16, then halving adds."""
    q, g = queries.astype(np.float32), rows.astype(np.float32)
    sums = np.zeros((len(q), len(g), LANES), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for k in range(q.shape[1]):
            delta = q[:, None, k] - g[None, :, k]
            sums[:, :, k % LANES] = fused_multiply_add(delta, sums[:, :, k % LANES])
        half = LANES // 2
        while half:
            sums = sums[:, :, :half] + sums[:, :, half : 2 * half]
            half //= 2
    return sums[:, :, 0]


def normalized(rows: NDArray) -> NDArray:
    """Unit rows as a gallery of cosine makes them; zeros stay."""
    wide = rows.astype(np.float32).astype(np.float64)
    lanes = np.zeros((len(wide), LANES))
    with np.errstate(all="ignore"):
        for k in range(wide.shape[1]):
            lanes[:, k % LANES] += wide[:, k] * wide[:, k]
        half = LANES // 2
        while half:
            lanes = lanes[:, :half] + lanes[:, half : 2 * half]
            half //= 2
        norm = np.sqrt(lanes)
        return np.where(norm == 0, wide, wide / np.where(norm == 0, 1, norm)).astype(np.float32)


def distances(queries: NDArray, rows: NDArray, metric: str) -> NDArray:
    """[Q, N] in squared units, as they are ordered; counts for hamming."""
    if metric == "hamming":
        q, g = np.unpackbits(queries, axis=1), np.unpackbits(rows, axis=1)
        return (q[:, None] != g[None]).sum(2).astype(np.int32)
    if metric != "cosine":
        return squared_distances(queries, rows)
    q, g = normalized(queries), normalized(rows)
    zero = ~q.any(1)[:, None] | ~g.any(1)[None]
    return np.where(zero, np.float32(2), squared_distances(q, g))


def in_unit(values: NDArray, metric: str) -> NDArray:
    if metric == "euclidean":
        return np.sqrt(values)
    return values * np.float32(0.5) if metric == "cosine" else values


def order(values: NDArray) -> NDArray:
    """[Q, N] columns by (distance, column): finite, +inf, NaN."""
    return np.argsort(values, axis=1, kind="stable")


def knn(queries: NDArray, rows: NDArray, k: int, metric: str) -> tuple[NDArray, NDArray]:
    values = distances(queries, rows, metric)
    columns = order(values)[:, :k]
    found = in_unit(np.take_along_axis(values, columns, 1), metric)
    missing = max(0, k - len(rows))
    none = np.iinfo(np.int32).max if metric == "hamming" else np.inf
    pad = ((0, 0), (0, missing))
    return (
        np.pad(found, pad, constant_values=none),
        np.pad(columns, pad, constant_values=-1),
    )


def within(
    queries: NDArray, rows: NDArray, radius: float, metric: str
) -> tuple[NDArray, NDArray, NDArray]:
    values = distances(queries, rows, metric)
    columns = order(values)
    sorted_values = in_unit(np.take_along_axis(values, columns, 1), metric)
    inside = sorted_values.astype(np.float64) < radius
    lims = np.concatenate([[0], np.cumsum(inside.sum(1))])
    return lims, sorted_values[inside], columns[inside]
