"""The losses over a batch: every pair, every triplet of embeddings with class labels.

``embeddings`` are ``(B, D)``, ``labels`` are ``(B,)`` integers, one class a row. Without
``ref_embeddings`` the batch meets itself: pairs are i < j, triplets are ordered (anchor, positive,
negative) of different rows. With ``ref_embeddings`` ``(R, D)`` and ``ref_labels`` ``(R,)`` (a
memory bank, say) every row meets every ref row, positives and negatives come from ref alone, and
nothing is excluded; gradients flow to both.

Nothing of size B×B is allocated, forward or backward: at most one more array of the size of the
embeddings and a bounded workspace; for triplets a second array, where the rows have to be copied
(half precision, strided or non-finite rows, D no multiple of 32). The one exception is a second
derivative (``create_graph=True``, gradgradcheck), which plain PyTorch operators compute from a B×B
matrix of distances.

A batch without terms (no rows, one row, one class only) has loss 0 and gradient 0. A row that
holds NaN makes the loss of its own anchor NaN, and is no positive, negative or partner of another.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from siamcuda import _ops
from siamcuda.functional import LossStats

__all__ = [
    "batch_chopra_loss",
    "batch_contrastive_loss",
    "batch_triplet_loss",
    "squared_cdist",
]


def _loss(
    name: str,
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    options: tuple[Any, ...],
    reduction: str,
    stats: bool,
) -> Any:
    loss = _ops.call(name, *tensors, *options, -1, reduction)
    if not stats:
        return loss
    return loss, LossStats(*_ops.call(name + "_stats", *tensors, *options, -1).unbind())


def batch_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 1.0,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Any:
    """The contrastive loss over all pairs: D² for two rows of a class, max(0, m−D)² for others.

    Hadsell, Chopra and LeCun, CVPR 2006, without their factor ½.

    Args:
        embeddings: ``(B, D)``.
        labels: ``(B,)``, integers.
        margin: m ≥ 0, in units of distance.
        ref_embeddings: ``(R, D)`` that the rows meet instead of each other.
        ref_labels: ``(R,)``.
        reduction: ``"mean"`` over pairs, ``"mean_active"`` over pairs with a loss, ``"sum"``, or
            ``"none"``: ``(B,)``, half of each pair to either end, or with ref all to the row.
        return_stats: also return :class:`siamcuda.LossStats`.

    Returns:
        0-d, or ``(B,)`` for ``"none"``; with ``return_stats`` a tuple of it and the statistics.

    Raises:
        ValueError: shapes or devices that don't fit, ref_embeddings without ref_labels, margin
            negative or not finite, an unknown reduction.
        TypeError: dtypes that differ or don't fit, labels that are not integers.

    Example:
        >>> import torch, siamcuda
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> siamcuda.batch_contrastive_loss(x, torch.tensor([0, 0, 1]), reduction="sum")
        tensor(1.5000)
    """
    tensors = (embeddings, labels, ref_embeddings, ref_labels)
    return _loss("batch_contrastive_loss", tensors, (margin, 0), reduction, return_stats)


def batch_chopra_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    q: float = 2.0,
    energy: str = "l2",
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Any:
    """Chopra's exponential loss over all pairs: (2/Q)·E² within a class, else 2Q·exp(−2.77·E/Q).

    Chopra, Hadsell and LeCun, CVPR 2005; E = ‖x1−x2‖.

    Args:
        embeddings: ``(B, D)``.
        labels: ``(B,)``, integers.
        q: Q > 0, the largest energy that the encoder can produce.
        energy: ``"l1"`` or ``"l2"``, the norm in E.
        ref_embeddings: ``(R, D)`` that the rows meet instead of each other.
        ref_labels: ``(R,)``.
        reduction: ``"mean"`` over pairs, ``"mean_active"`` over pairs with a loss, ``"sum"``, or
            ``"none"``: ``(B,)``, half of each pair to either end, or with ref all to the row.
        return_stats: also return :class:`siamcuda.LossStats`.

    Returns:
        0-d, or ``(B,)`` for ``"none"``; with ``return_stats`` a tuple of it and the statistics.

    Raises:
        ValueError: shapes or devices that don't fit, ref_embeddings without ref_labels, q ≤ 0 or
            not finite, an unknown energy or reduction.
        TypeError: dtypes that differ or don't fit, labels that are not integers.

    Example:
        >>> import torch, siamcuda
        >>> x = torch.tensor([[0.0, 0.0], [0.6, 0.8]])
        >>> siamcuda.batch_chopra_loss(x, torch.tensor([3, 3]), q=2.0)
        tensor(1.)
    """
    tensors = (embeddings, labels, ref_embeddings, ref_labels)
    return _loss("batch_chopra_loss", tensors, (q, energy, 0), reduction, return_stats)


def batch_triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.2,
    mining: str = "all",
    squared: bool = True,
    soft: bool = False,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Any:
    """The triplet loss over a batch: max(0, d(a,p) − d(a,n) + α) over the triplets that count.

    Schroff, Kalenichenko and Philbin, CVPR 2015; hard mining and soft margin as in Hermans, Beyer
    and Leibe 2017. ``mining`` says which triplets count:

    - ``"all"``: every one. Exact in O(B² log B): positives are sorted and negatives placed among
      them, so that B³ triplets are counted, not visited. ``soft`` does not factorise and takes
      O(B·P·N).
    - ``"hard"``: one an anchor, the farthest positive and the nearest negative.
    - ``"semihard"``: one for each (anchor, positive), with the nearest negative strictly farther
      than the positive, or the farthest negative where there is none (FaceNet).
    - ``"easy_positive"``: one an anchor, the nearest positive and the nearest negative.

    Ties go to the lowest index.

    Args:
        embeddings: ``(B, D)``.
        labels: ``(B,)``, integers.
        margin: α ≥ 0, in units of d. Not used with ``soft``.
        mining: ``"all"``, ``"hard"``, ``"semihard"`` or ``"easy_positive"``.
        squared: d is the squared L2 distance, else the L2 distance.
        soft: softplus(d(a,p) − d(a,n)) instead of the hinge.
        ref_embeddings: ``(R, D)`` that positives and negatives come from.
        ref_labels: ``(R,)``.
        reduction: ``"mean"`` over triplets, ``"mean_active"`` over triplets with a loss, ``"sum"``,
            or ``"none"``: ``(B,)``, the sum of each anchor's triplets.
        return_stats: also return :class:`siamcuda.LossStats`, over the triplets.

    Returns:
        0-d, or ``(B,)`` for ``"none"``; with ``return_stats`` a tuple of it and the statistics.

    Raises:
        ValueError: shapes or devices that don't fit, ref_embeddings without ref_labels, margin
            negative or not finite, an unknown mining or reduction.
        TypeError: dtypes that differ or don't fit, labels that are not integers.

    Example:
        >>> import torch, siamcuda
        >>> x = torch.tensor([[0.0], [1.0], [1.5]])
        >>> siamcuda.batch_triplet_loss(x, torch.tensor([0, 0, 1]), margin=1.0, reduction="none")
        tensor([0.0000, 1.7500, 0.0000])
    """
    tensors = (embeddings, labels, ref_embeddings, ref_labels)
    options = (margin, mining, squared, soft)
    return _loss("batch_triplet_loss", tensors, options, reduction, return_stats)


def squared_cdist(x1: Tensor, x2: Tensor) -> Tensor:
    """Squared Euclidean distances of all pairs of rows: d²[i, j] = Σ(x1[i]−x2[j])².

    Args:
        x1: ``(..., P, D)``.
        x2: ``(..., R, D)``, leading dimensions broadcast with those of ``x1``.

    Returns:
        ``(..., P, R)`` in the dtype of the inputs. The relative error of every distance is below
        1e-3 however close two rows are; d²[i, j] and d²[j, i] have equal bits.

    Raises:
        ValueError: shapes or devices that don't fit.
        TypeError: dtypes that differ or are not floating point.

    Example:
        >>> import torch, siamcuda
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> siamcuda.squared_cdist(x, x)
        tensor([[ 0., 25.],
                [25.,  0.]])
    """
    distances: Tensor = _ops.call("squared_cdist", x1, x2)
    return distances
