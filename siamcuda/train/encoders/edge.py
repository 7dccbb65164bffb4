"""A convnet for strips along an edge, which keeps where along the edge something is."""

from __future__ import annotations

from torch import Tensor, nn

from siamcuda.train.encoders.layers import at_least, finish, flat, large_enough
from siamcuda.train.encoders.spec import InputSpec

__all__ = ["EdgeNet"]

#: A strip of a tile of 28 x 28.
STRIP = InputSpec(3, 28, 12)


class EdgeNet(nn.Module):
    """Halves a strip across the edge alone; every row keeps features of its own.

    ========  =========================================  ============
    layer                                                3 x 28 x 12
    ========  =========================================  ============
    C1        3x3 conv, ReLU                             32 x 28 x 12
    C2        3x3 conv with stride (1, 2), ReLU          64 x 28 x 6
    C3        3x3 conv with stride (1, 2), ReLU          64 x 28 x 3
    C4        3x3 conv with stride (2, 1), ReLU          64 x 14 x 3
    head      linear                                     embedding
    ========  =========================================  ============

    437,440 parameters and 16.8 MFLOP for 3 x 28 x 12. Unlike the other encoders it takes colours
    as they are: whether two strips have one brightness is half of what tells neighbours, so no
    strip is standardised by itself; there is no norm over the batch either. Embeddings have any
    length, for the same reason.

    Args:
        embedding: length of the embedding.
        inputs: size of a strip, the edge upright, at least 4 x 4.
        normalize: scale embeddings to length 1.
        width: maps of C1; the others have twice as many.
    """

    def __init__(
        self, embedding: int = 128, inputs: InputSpec = STRIP, *, normalize: bool = False,
        width: int = 32,
    ) -> None:  # fmt: skip
        super().__init__()
        at_least(1, width=width)
        large_enough("edge", inputs, 4, 4)
        wide = 2 * width
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs.channels, width, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(width, wide, 3, (1, 2), padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(wide, wide, 3, (1, 2), padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(wide, wide, 3, (2, 1), padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip
        height, breadth = (inputs.height + 1) // 2, ((inputs.width + 1) // 2 + 1) // 2
        self.head = nn.Linear(wide * height * breadth, embedding)
        self.normalize = normalize

    def forward(self, strips: Tensor) -> Tensor:
        """Embed strips in [0, 1]: (N, C, H, W) -> (N, embedding)."""
        maps = self.convolutions(4 * strips - 2)
        return finish(self.head(flat(maps)), self.normalize)
