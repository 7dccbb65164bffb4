"""The paired operations: row i of one tensor against row i of another.

The style is that of torch.nn.functional.
Tensors come first, options by keyword. Every function takes float16, bfloat16, float32 or float64
tensors of shape ``(..., D)`` whose leading dimensions broadcast, in any strides, on the CPU or on
CUDA; half precision is computed in float32 and rounded once. Under autocast the result is float32.
The gradient at distance 0 is 0. Twice differentiable; a third derivative is an error.

``target`` is 0 for a similar (genuine) pair and 1 for a dissimilar (impostor) pair, as Chopra and
Hadsell write it; ``similar_label=1`` flips it. Any other value is a ValueError on the CPU. On CUDA
it makes its row NaN, since a check would synchronise; SIAMCUDA_VALIDATE=1 checks there too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from siamcuda import _ops

__all__ = [
    "LossStats",
    "chopra_loss",
    "contrastive_loss",
    "cosine_similarity",
    "squared_l2",
    "triplet_loss",
    "triplet_margin_loss",
]


class LossStats(NamedTuple):
    """What a loss saw, as 0-d float64 tensors on its device; made without synchronising."""

    #: Terms: pairs or triplets.
    valid: Tensor
    #: Terms with a non-zero loss.
    active: Tensor
    #: Impostors at distance exactly 0, which no gradient can separate.
    collapsed: Tensor
    #: Mean distance of genuine pairs, in the loss's own unit; 0 if there are none.
    mean_positive_distance: Tensor
    #: Mean distance of impostor pairs; 0 if there are none.
    mean_negative_distance: Tensor


def _loss(
    name: str, tensors: tuple[Tensor, ...], options: tuple[Any, ...], reduction: str, stats: bool
) -> Any:
    """A tensor, or with ``stats`` a tensor and LossStats: which one, a type checker can't see."""
    if reduction != "mean_active" and not stats:
        return _ops.call(name, *tensors, *options, reduction)
    counted = LossStats(*_ops.call(name + "_stats", *tensors, *options).unbind())
    if reduction == "mean_active":
        total = _ops.call(name, *tensors, *options, "sum")
        loss = total / counted.active.clamp(min=1).to(total.dtype)
    else:
        loss = _ops.call(name, *tensors, *options, reduction)
    return (loss, counted) if stats else loss


def squared_l2(x1: Tensor, x2: Tensor) -> Tensor:
    """Squared Euclidean distance of paired rows: Σ(x1−x2)².

    Args:
        x1: ``(..., D)``.
        x2: ``(..., D)``, leading dimensions broadcast with those of ``x1``.

    Returns:
        ``(...)`` in the dtype of the inputs. Summed directly, so near-duplicates keep their
        precision.

    Raises:
        ValueError: shapes or devices that don't fit.
        TypeError: dtypes that differ or are not floating point.

    Example:
        >>> import torch, siamcuda
        >>> siamcuda.squared_l2(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([25.])
    """
    distance: Tensor = _ops.call("squared_l2", x1, x2)
    return distance


def cosine_similarity(x1: Tensor, x2: Tensor) -> Tensor:
    """Cosine similarity of paired rows: x1·x2 / (‖x1‖‖x2‖), and 0 for a zero vector.

    Args:
        x1: ``(..., D)``.
        x2: ``(..., D)``, leading dimensions broadcast with those of ``x1``.

    Returns:
        ``(...)`` in −1..1, in the dtype of the inputs. Its gradient at a zero vector is 0.

    Raises:
        ValueError: shapes or devices that don't fit.
        TypeError: dtypes that differ or are not floating point.

    Example:
        >>> import torch, siamcuda
        >>> siamcuda.cosine_similarity(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
        tensor([1.])
    """
    similarity: Tensor = _ops.call("cosine_similarity", x1, x2)
    return similarity


def contrastive_loss(
    x1: Tensor,
    x2: Tensor,
    target: Tensor,
    *,
    margin: float = 1.0,
    similar_label: int = 0,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Any:
    """Contrastive loss: (1−y)·D² + y·max(0, m−D)², with D = ‖x1−x2‖₂.

    Hadsell, Chopra and LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR
    2006, without their factor ½.

    Args:
        x1: ``(..., D)``.
        x2: ``(..., D)``, leading dimensions broadcast with those of ``x1``.
        target: bool, integer or float of exactly the broadcast leading shape; 0 similar,
            1 dissimilar.
        margin: m ≥ 0, in units of distance (not squared).
        similar_label: the label of a similar pair, 0 or 1.
        reduction: ``"mean"``, ``"mean_active"`` (over terms that are not 0), ``"sum"``, ``"none"``.
        return_stats: also return :class:`LossStats`.

    Returns:
        0-d, or ``(...)`` for ``"none"``; with ``return_stats`` a tuple of it and the statistics.

    Raises:
        ValueError: shapes or devices that don't fit, a label other than 0 and 1 (CPU), margin
            negative or not finite, an unknown reduction.
        TypeError: dtypes that differ or are not floating point.

    Example:
        >>> import torch, siamcuda
        >>> x1, x2 = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.3, 0.4], [0.3, 0.4]])
        >>> siamcuda.contrastive_loss(x1, x2, torch.tensor([0, 1]), reduction="none")
        tensor([0.2500, 0.2500])
    """
    options = (margin, similar_label)
    return _loss("contrastive_loss", (x1, x2, target), options, reduction, return_stats)


def chopra_loss(
    x1: Tensor,
    x2: Tensor,
    target: Tensor,
    *,
    q: float = 2.0,
    energy: str = "l2",
    similar_label: int = 0,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Any:
    """Chopra's exponential loss: (1−y)·(2/Q)·E² + y·2Q·exp(−2.77·E/Q), with E = ‖x1−x2‖.

    Chopra, Hadsell and LeCun, "Learning a Similarity Metric Discriminatively, with Application to
    Face Verification", CVPR 2005. 2.77 rounds 4 ln 2: both branches meet at Q/2 when E = Q/2.

    Args:
        x1: ``(..., D)``.
        x2: ``(..., D)``, leading dimensions broadcast with those of ``x1``.
        target: bool, integer or float of exactly the broadcast leading shape; 0 similar,
            1 dissimilar.
        q: Q > 0, the largest energy that the encoder can produce.
        energy: ``"l1"`` or ``"l2"``, the norm in E.
        similar_label: the label of a similar pair, 0 or 1.
        reduction: ``"mean"``, ``"mean_active"`` (over terms that are not 0), ``"sum"``, ``"none"``.
        return_stats: also return :class:`LossStats`.

    Returns:
        0-d, or ``(...)`` for ``"none"``; with ``return_stats`` a tuple of it and the statistics.

    Raises:
        ValueError: shapes or devices that don't fit, a label other than 0 and 1 (CPU), q ≤ 0 or
            not finite, an unknown energy or reduction.
        TypeError: dtypes that differ or are not floating point.

    Example:
        >>> import torch, siamcuda
        >>> x1, x2 = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.6, 0.8]])
        >>> siamcuda.chopra_loss(x1, x2, torch.tensor([0]), q=2.0)
        tensor(1.)
    """
    options = (q, energy, similar_label)
    return _loss("chopra_loss", (x1, x2, target), options, reduction, return_stats)


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 0.2,
    squared: bool = True,
    soft: bool = False,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Any:
    """Triplet loss: max(0, d(a,p) − d(a,n) + α), or softplus(d(a,p) − d(a,n)) if ``soft``.

    d is the squared L2 distance (Schroff, Kalenichenko and Philbin, "FaceNet", CVPR 2015), or the
    L2 distance with ``squared=False``. The soft form is that of Hermans, Beyer and Leibe, "In
    Defense of the Triplet Loss for Person Re-Identification", 2017; it takes no margin.

    Args:
        anchor: ``(..., D)``.
        positive: ``(..., D)``, leading dimensions broadcast with those of ``anchor``.
        negative: ``(..., D)``, likewise.
        margin: α ≥ 0, in units of d.
        squared: d is the squared distance.
        soft: softplus in place of the hinge.
        reduction: ``"mean"``, ``"mean_active"`` (over terms that are not 0), ``"sum"``, ``"none"``.
        return_stats: also return :class:`LossStats`.

    Returns:
        0-d, or ``(...)`` for ``"none"``; with ``return_stats`` a tuple of it and the statistics.

    Raises:
        ValueError: shapes or devices that don't fit, margin negative or not finite, an unknown
            reduction.
        TypeError: dtypes that differ or are not floating point.

    Example:
        >>> import torch, siamcuda
        >>> a, p, n = torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[1.0]])
        >>> siamcuda.triplet_loss(a, p, n, margin=0.5)
        tensor(0.5000)
    """
    options = (margin, squared, soft)
    return _loss("triplet_loss", (anchor, positive, negative), options, reduction, return_stats)


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """torch.nn.functional.triplet_margin_loss: the same call and the same numbers, fused.

    max(0, α + ‖a−p+ε‖ₚ − ‖a−n+ε‖ₚ), or with ``swap`` the smaller of ‖a−n+ε‖ₚ and ‖p−n+ε‖ₚ
    (Balntas and others, "Learning Local Feature Descriptors with Triplets and Shallow
    Convolutional Neural Networks", BMVC 2016). It follows torch in everything, also where the
    other losses here differ: ε stands inside the difference, a tie of ``swap`` shares its gradient,
    and the mean of nothing is NaN.

    Args:
        anchor: ``(..., D)``.
        positive: ``(..., D)``, as many dimensions as ``anchor``; leading ones broadcast.
        negative: ``(..., D)``, likewise.
        margin: α > 0.
        p: the order of the norm: any number, ±inf too.
        eps: added to each difference.
        swap: use the distance swap.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        0-d, or ``(...)`` for ``"none"``.

    Raises:
        ValueError: shapes or devices that don't fit, margin not above 0, NaN options, an unknown
            reduction.
        TypeError: dtypes that differ or are not floating point.

    Example:
        >>> import torch, siamcuda
        >>> a, p, n = torch.zeros(1, 4), torch.ones(1, 4), torch.ones(1, 4)
        >>> round(float(siamcuda.triplet_margin_loss(a, p, n)), 4)
        1.0
    """
    options = (margin, p, eps, swap)
    tensors = (anchor, positive, negative)
    loss: Tensor = _loss("triplet_margin_loss", tensors, options, reduction, False)
    return loss
