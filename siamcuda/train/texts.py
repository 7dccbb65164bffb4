"""Stored texts, and pairs of them, to what an encoder of texts takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from siamcuda.train.data import decode_texts
from siamcuda.train.encoders import Tokenizer
from siamcuda.train.errors import InputError

__all__ = ["TextViews"]


@dataclass(frozen=True)
class TextViews:
    """Bytes of texts to ids of a tokenizer; some ids left out where views are random.

    Args:
        tokenizer: makes the ids.
        drop: share of a text's ids that a random view leaves out (0 stands in their place, which
            an encoder passes over), so that no single word is learnt by heart.

    Called with texts (B, L) uint8, or pairs of texts (B, 2, L), as
    :class:`siamcuda.train.data.TextPairs` loads them, and a generator or None. Returns (B, T)
    int64, or (2B, T): the left texts of all pairs, then the right ones, which is what
    :class:`siamcuda.train.objectives.BothSides` expects.

    Raises:
        InputError: ``drop`` is not in [0, 1).
        ValueError: the texts have another shape or dtype.

    Example:
        >>> from siamcuda.train.data import TextPairs
        >>> pairs = TextPairs(("a red fish", "trees"), ("the fish is red", "a wood"))
        >>> views = TextViews(Tokenizer(longest=0))
        >>> views(pairs.load(torch.tensor([0, 1])), None).shape
        torch.Size([4, 4])
    """

    tokenizer: Tokenizer
    drop: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.drop) and 0 <= self.drop < 1):
            raise InputError(f"drop: must lie in [0, 1), got {self.drop}")

    def __call__(self, texts: Tensor, generator: torch.Generator | None) -> Tensor:
        """Make the ids of each text; see the class."""
        if texts.dtype != torch.uint8 or not (
            texts.ndim == 2 or (texts.ndim == 3 and texts.shape[1] == 2)
        ):
            raise ValueError(
                f"texts: uint8 (B, L) or (B, 2, L) is expected, got {tuple(texts.shape)} "
                f"{texts.dtype}"
            )
        rows = texts if texts.ndim == 2 else texts.transpose(0, 1).flatten(0, 1)
        ids = self.tokenizer.encode(decode_texts(rows))
        if generator is None or not self.drop:
            return ids
        return ids.masked_fill(torch.rand(ids.shape, generator=generator) < self.drop, 0)
