"""Four convolutions: the encoder of the demo, quick on faces and larger images."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from siamcuda.train.encoders.layers import at_least, finish, large_enough, standardise
from siamcuda.train.encoders.spec import FACES, InputSpec

__all__ = ["SmallConvNet"]


class SmallConvNet(nn.Module):
    """Four 3x3 convolutions with batch norm, and a linear layer on what is left of the image.

    ========  ======================================  =====================  ================
    layer                                             1 x 56 x 46            1 x 28 x 28
    ========  ======================================  =====================  ================
    block 1   3x3 conv, norm, ReLU, 2x2 max pooling   24 x 28 x 23           24 x 14 x 14
    block 2   the same                                48 x 14 x 11           48 x 7 x 7
    block 3   the same                                96 x 7 x 5             96 x 3 x 3
    block 4   the same                                96 x 3 x 2             96 x 1 x 1
    head      linear, norm without gain               embedding              embedding
    ========  ======================================  =====================  ================

    The embedding has length 1, so that the energy (an L2 distance) lies in [0, 2].

    209,384 parameters and 33.2 MFLOP for 1 x 56 x 46, 147,944 and 10.0 for 1 x 28 x 28, where the
    last pooling leaves one pixel. The pattern is that of VGG (Simonyan and Zisserman, *Very deep
    convolutional networks for large-scale image recognition*, ICLR 2015) with batch norm.

    Args:
        embedding: length of the embedding.
        inputs: size of the images, at least 16 x 16.
        normalize: scale embeddings to length 1.
        width: maps of the first block; the others have 2, 4 and 4 times as many.
    """

    def __init__(
        self,
        embedding: int = 128,
        inputs: InputSpec = FACES,
        *,
        normalize: bool = True,
        width: int = 24,
    ) -> None:
        super().__init__()
        at_least(1, width=width)
        large_enough("small", inputs, 16, 16)
        maps = [inputs.channels, width, 2 * width, 4 * width, 4 * width]
        self.blocks = nn.Sequential(*(self._block(a, b) for a, b in pairwise(maps)))
        self.head = nn.Linear(maps[-1] * (inputs.height // 16) * (inputs.width // 16), embedding)
        self.norm = nn.BatchNorm1d(embedding, affine=False)
        self.normalize = normalize

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embed images in [0, 1]: (N, C, H, W) -> (N, embedding)."""
        x = self.blocks(standardise(images))  # (N, 4w, H/16, W/16)
        return finish(self.norm(self.head(x.flatten(1))), self.normalize)
