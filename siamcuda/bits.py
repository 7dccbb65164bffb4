"""Binary codes: encodings as packed bits, and in how many bits two of them differ.

>>> import torch, siamcuda
>>> codes = siamcuda.pack_bits(torch.tensor([[0.3, -1.0, 2.0], [0.1, 1.0, -2.0]]))
>>> siamcuda.hamming(codes[0], codes[1])
tensor(2, dtype=torch.int32)
"""

from __future__ import annotations

import torch
from torch import Tensor

from siamcuda import _ops

__all__ = ["hamming", "pack_bits"]


def hamming(x1: Tensor, x2: Tensor) -> Tensor:
    """Hamming distance of paired rows of packed bits: how many bits differ.

    Args:
        x1: ``(..., bytes)`` uint8, as :func:`pack_bits` makes them.
        x2: ``(..., bytes)`` uint8, leading dimensions broadcast with those of ``x1``.

    Returns:
        ``(...)`` int32.

    Raises:
        ValueError: shapes or devices that don't fit.
        TypeError: another dtype.

    Example:
        >>> import torch, siamcuda
        >>> siamcuda.hamming(torch.tensor([[255, 1]]).byte(), torch.tensor([[0, 3]]).byte())
        tensor([9], dtype=torch.int32)
    """
    counts: Tensor = _ops.namespace.hamming(x1, x2)
    return counts


def pack_bits(encodings: Tensor) -> Tensor:
    """Turn encodings into binary codes for the metric ``"hamming"``: bit d is ``encodings[d] > 0``.

    The sign of each dimension, as Hamming distance metric learning binarises (Norouzi, Fleet,
    Salakhutdinov 2012).

    Args:
        encodings: ``(..., D)``, any real dtype or bool. NaN gives 0.

    Returns:
        ``(..., ⌈D/8⌉)`` uint8, the first dimension in the highest bit as ``numpy.packbits`` has it,
        zeros behind.

    Example:
        >>> import torch, siamcuda
        >>> siamcuda.pack_bits(torch.tensor([0.3, -1.0, 2.0, 0.1]))
        tensor([176], dtype=torch.uint8)
    """
    if encodings.dim() == 0 or encodings.dtype.is_complex:
        raise ValueError(f"encodings: real values of shape (..., D) are expected, got {encodings}")
    bits = (encodings > 0).to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=bits.device)
    packed: Tensor = (bits * weights).sum(-1, dtype=torch.uint8)
    return packed
