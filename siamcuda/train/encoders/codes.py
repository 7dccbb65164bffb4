"""Binary codes on top of an encoder, for search by Hamming distance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import siamcuda
from siamcuda.train.encoders.layers import at_least

__all__ = ["CodeEncoder", "sign"]


def sign(x: Tensor) -> Tensor:
    """+1 where x > 0, else −1, with the gradient of tanh(x): straight through the step.

    The step has no gradient to learn by; tanh agrees with it far from 0.
    """
    soft = torch.tanh(x)
    hard = torch.where(x > 0, 1.0, -1.0).to(soft.dtype)
    return hard + (soft - soft.detach())  # the bracket is exactly 0: codes stay exactly ±1


class CodeEncoder(nn.Module):
    """An encoder, then ``bits`` linear outputs whose signs are the code.

    ========  ==================================  =================
    layer                                         output
    ========  ==================================  =================
    encoder   any, for instance of this package   (B, embedding)
    head      linear                              (B, bits)
    sign      ±1, the gradient of tanh            (B, bits)
    ========  ==================================  =================

    Two codes that differ in h bits have the squared L2 distance 4h, so any triplet loss of siamcuda
    is a loss of Hamming distances.

    embedding·bits + bits parameters beside those of the encoder.

    Source: M. Norouzi, D. Fleet, R. Salakhutdinov, *Hamming distance metric learning*, NIPS 2012,
    which bounds the loss by the best code in reach; the straight-through gradient is that of Y.
    Bengio, N. Léonard, A. Courville, *Estimating or propagating gradients through stochastic
    neurons*, 2013.

    Args:
        encoder: whose output is (B, embedding).
        embedding: length of that output.
        bits: length of the code.

    Example:
        >>> import torch
        >>> codes = CodeEncoder(torch.nn.Identity(), embedding=4, bits=16)
        >>> codes.codes(torch.rand(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(self, encoder: nn.Module, embedding: int, bits: int) -> None:
        super().__init__()
        at_least(1, embedding=embedding, bits=bits)
        self.encoder = encoder
        self.head = nn.Linear(embedding, bits)

    def relaxed(self, x: Tensor) -> Tensor:
        """The code before its signs are taken, in (−1, 1): (B, ...) -> (B, bits)."""
        return torch.tanh(self.head(self.encoder(x)))

    def forward(self, x: Tensor) -> Tensor:
        """±1 for each bit: (B, ...) -> (B, bits)."""
        return sign(self.head(self.encoder(x)))

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Packed codes for the metric "hamming": (B, ...) -> (B, ⌈bits/8⌉) uint8."""
        return siamcuda.pack_bits(self.head(self.encoder(x)))
