"""The losses, and a head on two encodings, as modules: options at construction, tensors at call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import Linear, Module

from siamcuda import batch, functional

__all__ = [
    "BatchChopraLoss",
    "BatchContrastiveLoss",
    "BatchTripletLoss",
    "ChopraLoss",
    "ContrastiveLoss",
    "SquaredL2",
    "TripletLoss",
    "TripletMarginLoss",
    "VerificationHead",
]


class _Loss(Module):
    """Keeps the options of a function and shows them in repr."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        for name, value in options.items():
            setattr(self, name, value)

    def _current(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.options}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._current().items())


class SquaredL2(Module):
    """:func:`siamcuda.squared_l2` as a module.

    Example:
        >>> import torch, siamcuda
        >>> siamcuda.nn.SquaredL2()(torch.zeros(1, 2), torch.ones(1, 2))
        tensor([2.])
    """

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """(..., D), (..., D) -> (...)."""
        return functional.squared_l2(x1, x2)


class ContrastiveLoss(_Loss):
    """:func:`siamcuda.contrastive_loss` as a module.

    Example:
        >>> import torch, siamcuda
        >>> loss = siamcuda.nn.ContrastiveLoss(margin=2.0)
        >>> loss(torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([0]))
        tensor(4.)
    """

    def __init__(
        self, margin: float = 1.0, similar_label: int = 0, reduction: str = "mean"
    ) -> None:
        super().__init__(margin=margin, similar_label=similar_label, reduction=reduction)

    def forward(self, x1: Tensor, x2: Tensor, target: Tensor) -> Tensor:
        """(..., D), (..., D), (...) -> 0-d or (...)."""
        loss: Tensor = functional.contrastive_loss(x1, x2, target, **self._current())
        return loss


class ChopraLoss(_Loss):
    """:func:`siamcuda.chopra_loss` as a module.

    Example:
        >>> import torch, siamcuda
        >>> loss = siamcuda.nn.ChopraLoss(q=2.0, energy="l1")
        >>> loss(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0]))
        tensor(4.)
    """

    def __init__(
        self,
        q: float = 2.0,
        energy: str = "l2",
        similar_label: int = 0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(q=q, energy=energy, similar_label=similar_label, reduction=reduction)

    def forward(self, x1: Tensor, x2: Tensor, target: Tensor) -> Tensor:
        """(..., D), (..., D), (...) -> 0-d or (...)."""
        loss: Tensor = functional.chopra_loss(x1, x2, target, **self._current())
        return loss


class TripletLoss(_Loss):
    """:func:`siamcuda.triplet_loss` as a module.

    Example:
        >>> import torch, siamcuda
        >>> a, p, n = torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2)
        >>> siamcuda.nn.TripletLoss(margin=0.5)(a, p, n)
        tensor(0.5000)
    """

    def __init__(
        self,
        margin: float = 0.2,
        squared: bool = True,
        soft: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(margin=margin, squared=squared, soft=soft, reduction=reduction)

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(..., D) three times -> 0-d or (...)."""
        loss: Tensor = functional.triplet_loss(anchor, positive, negative, **self._current())
        return loss


class TripletMarginLoss(_Loss):
    """:func:`siamcuda.triplet_margin_loss` as a module, with torch.nn.TripletMarginLoss's options.

    Example:
        >>> import torch, siamcuda
        >>> a, p, n = torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2)
        >>> round(float(siamcuda.nn.TripletMarginLoss()(a, p, n)), 4)
        1.0
    """

    def __init__(
        self,
        margin: float = 1.0,
        p: float = 2.0,
        eps: float = 1e-6,
        swap: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(margin=margin, p=p, eps=eps, swap=swap, reduction=reduction)

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(..., D) three times -> 0-d or (...)."""
        return functional.triplet_margin_loss(anchor, positive, negative, **self._current())


class _BatchLoss(_Loss):
    """A loss over a batch with class labels, and ref rows if given."""

    _function: ClassVar[Callable[..., Any]]

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """(B, D), (B,), optionally (R, D), (R,) -> 0-d or (B,)."""
        loss: Tensor = type(self)._function(
            embeddings,
            labels,
            ref_embeddings=ref_embeddings,
            ref_labels=ref_labels,
            **self._current(),
        )
        return loss


class BatchContrastiveLoss(_BatchLoss):
    """:func:`siamcuda.batch_contrastive_loss` as a module.

    Example:
        >>> import torch, siamcuda
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
        >>> siamcuda.nn.BatchContrastiveLoss(reduction="sum")(x, torch.tensor([0, 0, 1]))
        tensor(1.5000)
    """

    _function = staticmethod(batch.batch_contrastive_loss)

    def __init__(self, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(margin=margin, reduction=reduction)


class BatchChopraLoss(_BatchLoss):
    """:func:`siamcuda.batch_chopra_loss` as a module.

    Example:
        >>> import torch, siamcuda
        >>> x = torch.tensor([[0.0, 0.0], [0.6, 0.8]])
        >>> siamcuda.nn.BatchChopraLoss(q=2.0)(x, torch.tensor([3, 3]))
        tensor(1.)
    """

    _function = staticmethod(batch.batch_chopra_loss)

    def __init__(self, q: float = 2.0, energy: str = "l2", reduction: str = "mean") -> None:
        super().__init__(q=q, energy=energy, reduction=reduction)


class BatchTripletLoss(_BatchLoss):
    """:func:`siamcuda.batch_triplet_loss` as a module.

    Example:
        >>> import torch, siamcuda
        >>> x = torch.tensor([[0.0], [1.0], [1.5]])
        >>> siamcuda.nn.BatchTripletLoss(margin=1.0, reduction="sum")(x, torch.tensor([0, 0, 1]))
        tensor(1.7500)
    """

    _function = staticmethod(batch.batch_triplet_loss)

    def __init__(
        self,
        margin: float = 0.2,
        mining: str = "all",
        squared: bool = True,
        soft: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            margin=margin, mining=mining, squared=squared, soft=soft, reduction=reduction
        )


class VerificationHead(Module):
    """Whether two rows differ, from the weighted L1 distance of their encodings (DeepFace 2014).

    σ(Σ_k w_k·|x1_k − x2_k| + b) with learnt w and b: the probability of y = 1, a dissimilar pair.
    Symmetric in the two; its gradient at equal components is 0. Train it on :meth:`logits`, whose
    cross-entropy stays finite where σ has rounded to 0 or 1.

    Args:
        features: length D of the encodings.

    Example:
        >>> import torch, siamcuda
        >>> head = siamcuda.nn.VerificationHead(4)
        >>> x1, x2, y = torch.rand(3, 4), torch.rand(3, 4), torch.tensor([0.0, 1.0, 1.0])
        >>> torch.nn.functional.binary_cross_entropy_with_logits(head.logits(x1, x2), y).backward()
        >>> head(x1, x2).shape
        torch.Size([3])
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        self.features = features
        self.linear = Linear(features, 1)

    def logits(self, x1: Tensor, x2: Tensor) -> Tensor:
        """(..., D), (..., D) -> (...), before σ."""
        if x1.shape != x2.shape or x1.shape[-1:] != (self.features,):
            raise ValueError(
                f"x1, x2: two tensors (..., {self.features}) are expected, "
                f"got {tuple(x1.shape)} {x1.dtype} and {tuple(x2.shape)} {x2.dtype}"
            )
        scores: Tensor = self.linear((x1 - x2).abs()).squeeze(-1)
        return scores

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """(..., D), (..., D) -> (...), in [0, 1]."""
        return self.logits(x1, x2).sigmoid()
