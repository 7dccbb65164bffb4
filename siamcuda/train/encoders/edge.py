"""A convnet for strips along an edge, which keeps where along the edge something is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siamcuda.train.encoders.layers import at_least, finish, flat, large_enough
from siamcuda.train.encoders.spec import InputSpec
from siamcuda.train.errors import InputError

__all__ = ["EdgeNet"]

#: A strip of a tile of 28 x 28, its edge on the right.
STRIP = InputSpec(3, 28, 8)


class EdgeNet(nn.Module):
    """Colours along the right edge of a strip, and what convolutions add to them, row by row.

    ========  =========================================  ============
    layer                                                3 x 28 x 8
    ========  =========================================  ============
    C1        3x3 conv, ReLU                             32 x 28 x 8
    C2        3x3 conv with stride (1, 2), ReLU          64 x 28 x 4
    C3        3x3 conv with stride (1, 2), ReLU          64 x 28 x 2
    C4        3x3 conv over the width that is left       12 x 28
    ========  =========================================  ============

    60,940 parameters and 8.9 MFLOP for 3 x 28 x 8. The first maps of C4 are added to the colours
    of the outermost column, so an untrained network compares those. The convolutions see the strip
    standardised, and what they give is multiplied by its contrast: a strip of twice the contrast
    has twice the embedding, and flat strips, whose differences are small, aren't drowned. Colours
    themselves are kept, unlike by the other encoders: whether two strips have one brightness is
    half of what tells neighbours.

    Args:
        embedding: length of the embedding, a multiple of the strip's height, at least as many times
            as it has channels.
        inputs: size of a strip, at least 4 x 4.
        normalize: scale embeddings to length 1.
        width: maps of C1; C2 and C3 have twice as many.
    """

    def __init__(
        self, embedding: int = 336, inputs: InputSpec = STRIP, *, normalize: bool = False,
        width: int = 32,
    ) -> None:  # fmt: skip
        super().__init__()
        at_least(1, width=width)
        large_enough("edge", inputs, 4, 4)
        maps, rest = divmod(embedding, inputs.height)
        if rest or maps < inputs.channels:
            raise InputError(
                f"embedding: a multiple of {inputs.height}, the height of a strip, of at least "
                f"{inputs.channels * inputs.height} is expected, got {embedding}"
            )
        wide, left = 2 * width, ((inputs.width + 1) // 2 + 1) // 2
        self.channels, self.normalize = inputs.channels, normalize
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs.channels, width, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(width, wide, 3, (1, 2), padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(wide, wide, 3, (1, 2), padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(wide, maps, (3, left), padding=(1, 0)),
        )  # fmt: skip
        with torch.no_grad():  # small, not 0: of maps that are 0 on both sides none would learn
            for parameter in self.convolutions[-1].parameters():
                parameter.mul_(0.02)

    def forward(self, strips: Tensor) -> Tensor:
        """Embed strips in [0, 1]: (N, C, H, W) -> (N, embedding)."""
        centred = strips - strips.mean((1, 2, 3), keepdim=True)
        contrast = centred.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=0.01)
        maps = self.convolutions(centred / contrast) * contrast  # (N, maps, H, 1)
        colours = maps[:, : self.channels] + strips[..., -1:]
        return finish(flat(torch.cat([colours, maps[:, self.channels :]], 1)), self.normalize)
