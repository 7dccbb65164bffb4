"""Plain PyTorch twins of every operation: the oracle of the tests, the baseline of the benchmarks.

Each function has the signature and the conventions of its namesake in :mod:`siamcuda`. They are
written for clarity, differentiate any number of times through PyTorch's own autograd, and run on
any device and dtype that PyTorch has. Run them on float64 inputs to get the exact answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "chopra_loss",
    "contrastive_loss",
    "cosine_similarity",
    "squared_l2",
    "triplet_loss",
    "triplet_margin_loss",
]

#: 4 ln 2 = 2.7726 as Chopra, Hadsell and LeCun (2005) round it: both branches meet at E = Q/2.
CHOPRA_DECAY = 2.77


def _root(s: Tensor) -> Tensor:
    """sqrt(s) whose gradient at 0 is 0 instead of infinity."""
    zero = s == 0
    return torch.where(zero, 0.0 * s, torch.where(zero, torch.ones_like(s), s).sqrt())


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        return values.sum() / max(values.numel(), 1)
    if reduction == "mean_active":
        return values.sum() / (values != 0).sum().clamp(min=1)
    raise ValueError(f"reduction must be 'mean', 'mean_active', 'sum' or 'none', got {reduction!r}")


def _impostor(target: Tensor, shape: torch.Size, similar_label: int) -> Tensor:
    """True where the pair is dissimilar, after checking the labels."""
    if target.shape != shape:
        raise ValueError(f"target must have shape {tuple(shape)}, got {tuple(target.shape)}")
    if similar_label not in (0, 1):
        raise ValueError(f"similar_label must be 0 or 1, got {similar_label}")
    if not bool(((target == 0) | (target == 1)).all()):
        raise ValueError("target must hold only 0 and 1")
    return target != similar_label


def squared_l2(x1: Tensor, x2: Tensor) -> Tensor:
    """Σ(x1−x2)² over the last dimension."""
    difference = x1 - x2
    return (difference * difference).sum(-1)


def cosine_similarity(x1: Tensor, x2: Tensor) -> Tensor:
    """<x1, x2> / (‖x1‖‖x2‖) over the last dimension; 0 where either vector is zero."""
    x1, x2 = torch.broadcast_tensors(x1, x2)
    n1, n2 = (x1 * x1).sum(-1), (x2 * x2).sum(-1)
    product = (x1 * x2).sum(-1)
    zero = ((n1 == 0) | (n2 == 0)) & ~product.isnan()
    one = torch.ones_like(n1)
    norms = torch.where(zero, one, n1).sqrt() * torch.where(zero, one, n2).sqrt()
    return torch.where(zero, torch.zeros_like(n1), product / norms)


def contrastive_loss(
    x1: Tensor,
    x2: Tensor,
    target: Tensor,
    *,
    margin: float = 1.0,
    similar_label: int = 0,
    reduction: str = "mean",
) -> Tensor:
    """(1−y)·D² + y·max(0, m−D)² with D = ‖x1−x2‖₂ (Hadsell, Chopra, LeCun 2006, without the ½)."""
    s = squared_l2(x1, x2)
    impostor = _impostor(target, s.shape, similar_label)
    hinge = (margin - _root(s)).clamp(min=0)
    return _reduce(torch.where(impostor, hinge * hinge, s), reduction)


def chopra_loss(
    x1: Tensor,
    x2: Tensor,
    target: Tensor,
    *,
    q: float = 2.0,
    energy: str = "l2",
    similar_label: int = 0,
    reduction: str = "mean",
) -> Tensor:
    """(1−y)·(2/Q)·E² + y·2Q·exp(−2.77·E/Q) with E = ‖x1−x2‖₁ or ₂ (Chopra et al. 2005)."""
    if energy not in ("l1", "l2"):
        raise ValueError(f"energy must be 'l1' or 'l2', got {energy!r}")
    if energy == "l1":
        e = (x1 - x2).abs().sum(-1)
        genuine = (2 / q) * e * e
    else:
        s = squared_l2(x1, x2)
        e = _root(s)
        genuine = (2 / q) * s
    impostor = _impostor(target, e.shape, similar_label)
    return _reduce(
        torch.where(impostor, 2 * q * torch.exp(-CHOPRA_DECAY * e / q), genuine), reduction
    )


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 0.2,
    squared: bool = True,
    soft: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """max(0, d(a,p) − d(a,n) + α), or softplus(d(a,p) − d(a,n)) when ``soft``."""
    d_ap, d_an = squared_l2(anchor, positive), squared_l2(anchor, negative)
    if not squared:
        d_ap, d_an = _root(d_ap), _root(d_an)
    d_ap, d_an = torch.broadcast_tensors(d_ap, d_an)
    if soft:
        return _reduce(torch.nn.functional.softplus(d_ap - d_an, threshold=40), reduction)
    value = d_ap + margin - d_an
    active = ~(value <= 0)  # NaN counts as active, so that it is seen
    return _reduce(torch.where(active, value, torch.zeros_like(value)), reduction)


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
    """torch.nn.functional.triplet_margin_loss itself."""
    return torch.nn.functional.triplet_margin_loss(
        anchor, positive, negative, margin=margin, p=p, eps=eps, swap=swap, reduction=reduction
    )
