"""What a pair takes: two branches with the same weights, and a learnt verdict on two encodings."""

from __future__ import annotations

from torch import Tensor, nn

from siamcuda.train.encoders.layers import at_least
from siamcuda.train.errors import InputError

__all__ = ["Branches", "DifferenceClassifier"]


class Branches(nn.Module):
    """Both halves of pairs by one encoder: the two branches of a Siamese network share weights.

    For examples that are pairs (:class:`siamcuda.train.data.PairFile`) and the objectives
    ``LabelledPairs`` and ``CrossTriplets``; the encoder is what is kept.

    Args:
        encoder: (N, ...) -> (N, D).

    Example:
        >>> import torch
        >>> Branches(nn.Flatten())(torch.rand(3, 2, 1, 4, 4)).shape
        torch.Size([3, 2, 16])
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pairs: Tensor) -> Tensor:
        """(B, 2, ...) -> (B, 2, D)."""
        embeddings: Tensor = self.encoder(pairs.flatten(0, 1))
        return embeddings.reshape(len(pairs), 2, *embeddings.shape[1:])


class DifferenceClassifier(nn.Module):
    """Same or different, as two classes, from |f1 − f2|: a Siamese network trained to classify.

    :class:`siamcuda.nn.VerificationHead` is the case of one linear output; a hidden layer can weigh
    differences jointly. Both orders of a pair have equal logits.

    ========  =======================  ==============
    layer                              output
    ========  =======================  ==============
    hidden    linear, ReLU (optional)  (..., hidden)
    logits    linear                   (..., 2)
    ========  =======================  ==============

    2·D + 2 parameters, or (D + 3)·hidden + 2 with a hidden layer. Class 1 is "different", as y of
    the losses has it: ``cross_entropy(head(f1, f2), y)``.

    Source: Y. Taigman, M. Yang, M. Ranzato, L. Wolf, *DeepFace*, CVPR 2014, for the difference.

    Args:
        features: length D of the encodings.
        hidden: units of the hidden layer; 0 for none.

    Example:
        >>> import torch
        >>> DifferenceClassifier(4)(torch.rand(3, 4), torch.rand(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(self, features: int, hidden: int = 0) -> None:
        super().__init__()
        at_least(1, features=features)
        at_least(0, hidden=hidden)
        self.features = features
        self.layers = nn.Sequential()
        if hidden:
            self.layers.extend([nn.Linear(features, hidden), nn.ReLU()])
        self.layers.append(nn.Linear(hidden or features, 2))

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """(..., D), (..., D) -> (..., 2), logits of "same" and "different"."""
        if x1.shape != x2.shape or x1.shape[-1:] != (self.features,):
            raise InputError(
                f"x1, x2: two tensors (..., {self.features}) are expected, "
                f"got {tuple(x1.shape)} and {tuple(x2.shape)}"
            )
        logits: Tensor = self.layers((x1 - x2).abs())
        return logits
