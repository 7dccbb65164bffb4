"""evaluate: every pair of a set of embeddings, no score stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siamcuda import _ops
from siamcuda.batch import squared_cdist
from siamcuda.functional import squared_l2
from siamcuda.verification import _inputs
from siamcuda.verification._bootstrap import MOST_EMBEDDINGS
from siamcuda.verification._bootstrap import bootstrap as draw_identities
from siamcuda.verification._distances import from_distances
from siamcuda.verification._identification import identify
from siamcuda.verification._inputs import Array
from siamcuda.verification._intervals import TOP_KEYS, sharpen
from siamcuda.verification._points import Floats
from siamcuda.verification._report import HardestPairs, Spread, VerificationReport
from siamcuda.verification._sweep import Side, Sweep

__all__ = ["evaluate"]

#: So many distances are kept and sorted; of more, the curve is binned.
STORED_PAIRS = 2**22


def evaluate(
    embeddings: Tensor | Array,
    labels: Tensor | Array | Sequence[int],
    far: float | Iterable[float] = (1e-2, 1e-3, 1e-4),
    *,
    metric: str = "sqeuclidean",
    gallery: Tensor | Array | None = None,
    gallery_labels: Tensor | Array | Sequence[int] | None = None,
    pairs: Tensor | Array | Sequence[tuple[int, int]] | None = None,
    thresholds: float | Iterable[float] = (),
    hardest: int = 16,
    identification: bool = True,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> VerificationReport:
    """Verify every pair of a set, every query against a gallery, or the pairs of a list.

    All N(N−1)/2 pairs i < j of ``embeddings``, or all pairs of ``embeddings`` and ``gallery``, are
    scored by the tile engine and counted where they are; memory does not grow with the number of
    pairs. Thresholds are exact, relative to the distances that the engine computes (those of
    :func:`siamcuda.squared_cdist`): bit for bit what a sort of all of them gives.

    Args:
        embeddings: ``(N, D)``, float16, bfloat16, float32 or float64, array or tensor, on the CPU
            or a GPU: pairs are counted there. 16-bit floats are widened to float32, exactly.
        labels: ``(N,)`` identities, any integer dtype, on any device.
        far: false accept rates in [0, 1] at which the threshold shall be exact.
        metric: ``"sqeuclidean"`` Σ(x−y)², ``"euclidean"`` its root, rounded correctly, or
            ``"cosine"`` 1 − cos = ½|x̂−ŷ|², where x̂ = x/|x| is rounded to the precision of the
            embeddings; 1 for a zero vector.
        gallery: ``(G, D)`` to compare ``embeddings`` with, of the same dtype and device. Nothing is
            excluded.
        gallery_labels: ``(G,)``.
        pairs: ``(M, 2)`` rows of ``embeddings``, or of ``embeddings`` and ``gallery``: these pairs
            alone, by the direct sum of :func:`siamcuda.squared_l2`.
        thresholds: distances at which :meth:`VerificationReport.rates` shall be exact.
        hardest: how many genuine pairs with the largest and impostor pairs with the smallest
            distance to report.
        identification: also rank every query's mate (leave-one-out in a set against itself), which
            takes as long as two passes over all pairs of a set. Not with ``pairs``.
        bootstrap: samples for confidence intervals over identities, 0 for none; up to 20,000
            embeddings, not with ``pairs``.
        confidence: their level, in (0, 1).
        seed: of the samples.

    Returns:
        The report. Up to 4,194,304 pairs every number is exact; beyond, the curve has about 65,536
        bins, which :attr:`VerificationReport.binned` and :attr:`VerificationReport.auc_error` say,
        and EER, thresholds at ``far`` and rates at ``thresholds`` are exact still. float32 takes
        two passes over the pairs then, float64 four.

    Raises:
        ValueError: a shape, value or option that does not fit, no genuine or no impostor pair, or
            not one distance that is a number. Rows that are not finite are no error: distances
            that are NaN are counted apart, never accepted, and stay in the denominators.
        TypeError: an argument of the wrong type, labels that are not integers.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0], [5.0], [7.0]])
        >>> report = evaluate(x, torch.tensor([0, 0, 1, 1]), far=0.25)
        >>> report.eer, report.threshold(0.25) < 25, report.frr(0.25)
        (0.0, True, 0.0)
        >>> report.cmc(2)
        array([1., 1.])
    """
    rows = _inputs.as_rows("embeddings", embeddings)
    identities = _inputs.as_labels("labels", labels, len(rows))
    rates, asked = _inputs.as_rates("far", far), _inputs.as_numbers("thresholds", thresholds)
    hardest = _inputs.as_count("hardest", hardest)
    samples = _inputs.as_count("bootstrap", bootstrap)
    if metric not in _inputs.METRICS:
        raise ValueError(f"metric must be one of {', '.join(_inputs.METRICS)}, got {metric!r}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels must be given together")
    others, other_identities = rows, identities
    if gallery is not None and gallery_labels is not None:
        others = _inputs.as_rows("gallery", gallery)
        if others.shape[1] != rows.shape[1] or others.dtype != rows.dtype:
            raise ValueError(
                f"gallery must have the dtype and the D of embeddings, got {others.dtype} "
                f"{tuple(others.shape)} and {rows.dtype} {tuple(rows.shape)}"
            )
        if others.device != rows.device:
            raise ValueError(
                f"gallery must be on the device of embeddings, got {others.device} and "
                f"{rows.device}"
            )
        other_identities = _inputs.as_labels("gallery_labels", gallery_labels, len(others))
    if pairs is not None:
        if samples:
            raise ValueError("bootstrap: not available for a list of pairs")
        listed = _inputs.as_pairs(pairs, (len(rows), len(others)))
        same = identities[listed[:, 0]] == other_identities[listed[:, 1]]
        _check_kinds(int(same.sum()), int((~same).sum()))
        return _from_list(rows, others, listed, same, metric, hardest)
    embedded = len(rows) + (len(others) if gallery is not None else 0)
    if samples and embedded > MOST_EMBEDDINGS:
        raise ValueError(
            f"bootstrap: at most {MOST_EMBEDDINGS} embeddings, got {embedded}; leave it at 0"
        )

    numbered = np.unique(np.concatenate([identities, other_identities]), return_inverse=True)[1]
    unit = metric == "cosine"
    own = Side.of(rows, numbered[: len(rows)], unit)
    facing = own if gallery is None else Side.of(others, numbered[len(rows) :], unit)
    sweep = Sweep(own, facing, metric)
    _check_kinds(*sweep.pairs)
    report, counts = _all_pairs(sweep, rates, asked, hardest)
    return replace(
        report,
        identification=identify(sweep) if identification else None,
        confidence=draw_identities(sweep, counts, rates, samples, confidence, seed)
        if samples
        else None,
    )


def _check_kinds(genuine: int, impostor: int) -> None:
    if not genuine:
        raise ValueError("labels: no genuine pair, no label occurs twice among the pairs")
    if not impostor:
        raise ValueError("labels: no impostor pair, every pair has one label")


def _all_pairs(
    sweep: Sweep, far: Sequence[float], thresholds: Sequence[float], hardest: int
) -> tuple[VerificationReport, Array]:
    counted, sums, found = sweep.histogram(hardest)
    counts, nan = counted[:, :TOP_KEYS], counted[:, TOP_KEYS].tolist()
    totals = sweep.pairs
    if not counts.any():
        raise ValueError("embeddings: the distance of every pair is NaN")
    if sum(totals) <= STORED_PAIRS:
        report = from_distances(*_stored(sweep))
    else:
        intervals = sharpen(sweep, counts, totals, far, thresholds)
        report = VerificationReport(
            distance=intervals.distance,
            genuine_within=np.cumsum(intervals.genuine),
            impostor_within=np.cumsum(intervals.impostor),
            genuine=totals[0],
            impostor=totals[1],
            genuine_nan=nan[0],
            impostor_nan=nan[1],
            least=intervals.least,
            spread=_spread(counts.sum(1), sums),
        )
    report = replace(
        report,
        metric=sweep.metric,
        hardest_genuine=_merged(found, 0, hardest),
        hardest_impostor=_merged(found, 1, hardest),
    )
    return report, counts


def _spread(numbers: Array, sums: Array) -> Spread:
    """Means and deviations from Σd and Σd²."""
    found: list[float] = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for count, (total, squares) in zip(numbers, sums, strict=True):
            mean = total / count
            found += [float(mean), float(np.sqrt(np.maximum(squares / count - mean * mean, 0)))]
    return Spread(*found)


def _merged(found: list[Any], kind: int, hardest: int) -> HardestPairs:
    """The hardest of all calls, of genuine (0) or impostor (1) pairs."""
    distance = np.concatenate([d[kind] for d, _ in found])
    pairs = np.concatenate([p[kind] for _, p in found])
    return _hardest(distance[pairs[:, 0] >= 0], pairs[pairs[:, 0] >= 0], kind, hardest)


def _hardest(distance: Floats, pairs: Array, kind: int, hardest: int) -> HardestPairs:
    keys = (pairs[:, 1], pairs[:, 0], distance if kind else -distance)
    order = np.lexsort(keys)[:hardest]
    return HardestPairs(distance[order], pairs[order])


def _apply(metric: str, squared: Floats, zero: Array) -> Floats:
    """Distances from d²; ``zero`` says where a vector of the pair has no direction."""
    if metric == "euclidean":
        return np.sqrt(squared)  # correctly rounded, which torch's own on the CPU is not
    if metric == "cosine":
        half = squared * squared.dtype.type(0.5)
        return np.where(zero & ~np.isnan(half), half.dtype.type(1), half)
    return squared


def _zero(rows: Tensor, metric: str) -> Array:
    """Which rows have no direction, where the metric asks for one: (N,)."""
    if metric != "cosine":
        return np.zeros(len(rows), bool)
    parts = [
        part.double().square().any(1) for part in rows.split(max(1, 2**20 // max(rows.shape[1], 1)))
    ]
    return np.asarray(~torch.cat(parts).cpu().numpy())


def _stored(sweep: Sweep) -> tuple[Floats, Floats]:
    """The distances of all genuine and of all impostor pairs."""
    own, facing = sweep.queries, sweep.gallery
    zero = _zero(own.rows, sweep.metric), _zero(facing.rows, sweep.metric)
    low, high = sweep.ranges()
    kinds: tuple[list[Floats], list[Floats]] = ([], [])
    column = np.arange(len(facing.identity))
    step = max(1, STORED_PAIRS // len(column))
    for first in range(0, len(low), step):
        part = slice(first, first + step)
        squared = squared_cdist(own.rows[part], facing.rows).cpu().numpy()
        distance = _apply(sweep.metric, squared, zero[0][part, None] | zero[1])
        same = (low[part, None] <= column) & (column < high[part, None])
        taken = np.ones_like(same)
        if sweep.triangle:
            taken = column > np.arange(len(low))[part, None]
        kinds[0].append(distance[same & taken])
        kinds[1].append(distance[~same & taken])
    return np.concatenate(kinds[0]), np.concatenate(kinds[1])


def _from_list(
    rows: Tensor, others: Tensor, pairs: Array, same: Array, metric: str, hardest: int
) -> VerificationReport:
    unit: Any = _ops.namespace.gallery_normalize
    own, facing = (unit(rows), unit(others)) if metric == "cosine" else (rows, others)
    zero = _zero(own, metric)[pairs[:, 0]] | _zero(facing, metric)[pairs[:, 1]]
    step = max(1, STORED_PAIRS // max(rows.shape[1], 1))
    squared = [
        squared_l2(own[part[:, 0]], facing[part[:, 1]]).cpu().numpy()
        for part in torch.from_numpy(pairs).to(rows.device).split(step)
    ]
    distance = _apply(metric, np.concatenate(squared), zero)
    if np.isnan(distance).all():
        raise ValueError("embeddings: the distance of every pair is NaN")
    found = []
    for kind, chosen in enumerate((same, ~same)):
        known = chosen & ~np.isnan(distance)
        found.append(_hardest(distance[known], pairs[known], kind, hardest))
    report = from_distances(distance[same], distance[~same])
    return replace(report, metric=metric, hardest_genuine=found[0], hardest_impostor=found[1])
