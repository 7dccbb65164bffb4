"""Each loss with its gradients from a single pass over the inputs, without an autograd graph.

For training loops that call backward by hand, and wherever memory traffic counts: every input is
read once and every gradient written once. ``reduction="none"`` gives the gradients of the sum.
``grad_scale`` multiplies the gradients, not the loss (a loss scaler, or one over the number of
accumulation steps). Nothing returned requires grad.

Example:
    >>> import torch, siamcuda
    >>> x1, x2 = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.3, 0.4]])
    >>> loss, (g1, g2) = siamcuda.value_and_grad.contrastive_loss(x1, x2, torch.tensor([0]))
    >>> loss, g1
    (tensor(0.2500), tensor([[-0.6000, -0.8000]]))
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from siamcuda import _ops

__all__ = [
    "chopra_loss",
    "contrastive_loss",
    "cosine_similarity",
    "squared_l2",
    "triplet_loss",
    "triplet_margin_loss",
]

Pair = tuple[Tensor, tuple[Tensor, Tensor]]
Triplet = tuple[Tensor, tuple[Tensor, Tensor, Tensor]]


def _run(name: str, *arguments: Any) -> Any:
    loss, *gradients = _ops.call(name + "_value_and_grad", *arguments)
    return loss, tuple(gradients)


def squared_l2(x1: Tensor, x2: Tensor, *, reduction: str = "none", grad_scale: float = 1.0) -> Pair:
    """:func:`siamcuda.squared_l2` and the gradients of its sum (or mean), times grad_scale."""
    return _run("squared_l2", x1, x2, reduction, grad_scale)  # type: ignore[no-any-return]


def cosine_similarity(
    x1: Tensor, x2: Tensor, *, reduction: str = "none", grad_scale: float = 1.0
) -> Pair:
    """:func:`siamcuda.cosine_similarity` and the gradients of its sum (or mean)."""
    return _run("cosine_similarity", x1, x2, reduction, grad_scale)  # type: ignore[no-any-return]


def contrastive_loss(
    x1: Tensor,
    x2: Tensor,
    target: Tensor,
    *,
    margin: float = 1.0,
    similar_label: int = 0,
    reduction: str = "mean",
    grad_scale: float = 1.0,
) -> Pair:
    """:func:`siamcuda.contrastive_loss` and its gradients: loss, (grad_x1, grad_x2)."""
    options = (margin, similar_label, reduction, grad_scale)
    return _run("contrastive_loss", x1, x2, target, *options)  # type: ignore[no-any-return]


def chopra_loss(
    x1: Tensor,
    x2: Tensor,
    target: Tensor,
    *,
    q: float = 2.0,
    energy: str = "l2",
    similar_label: int = 0,
    reduction: str = "mean",
    grad_scale: float = 1.0,
) -> Pair:
    """:func:`siamcuda.chopra_loss` and its gradients: loss, (grad_x1, grad_x2)."""
    options = (q, energy, similar_label, reduction, grad_scale)
    return _run("chopra_loss", x1, x2, target, *options)  # type: ignore[no-any-return]


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 0.2,
    squared: bool = True,
    soft: bool = False,
    reduction: str = "mean",
    grad_scale: float = 1.0,
) -> Triplet:
    """:func:`siamcuda.triplet_loss` and its gradients: loss, (anchor, positive, negative)."""
    options = (margin, squared, soft, reduction, grad_scale)
    return _run("triplet_loss", anchor, positive, negative, *options)  # type: ignore[no-any-return]


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
    grad_scale: float = 1.0,
) -> Triplet:
    """:func:`siamcuda.triplet_margin_loss` and its gradients."""
    options = (margin, p, eps, swap, reduction, grad_scale)
    return _run(  # type: ignore[no-any-return]
        "triplet_margin_loss", anchor, positive, negative, *options
    )
