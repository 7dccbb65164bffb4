"""A convnet that does most of its work on few pixels: the quick choice for digits and patches."""

from __future__ import annotations

from torch import Tensor, nn

from siamcuda.train.encoders.layers import (
    NORMS,
    at_least,
    conv_block,
    finish,
    flat,
    large_enough,
    one_of,
    standardise,
)
from siamcuda.train.encoders.spec import FACES, InputSpec

__all__ = ["FastConvNet"]


class FastConvNet(nn.Module):
    """Halves the image in its first convolution, where maps are large and channels are few.

    ========  ====================================================  ============  ============
    layer                                                           1 x 28 x 28   1 x 56 x 46
    ========  ====================================================  ============  ============
    stem      5x5 conv with stride 2, norm, ReLU                    24 x 14 x 14  24 x 28 x 23
    stage 1   3x3 conv, norm, ReLU, 2x2 max pooling                 48 x 7 x 7    48 x 14 x 11
    stage 2   two 3x3 convs with norm and ReLU, 2x2 max pooling     96 x 3 x 3    96 x 7 x 5
    head      linear, norm without gain                             embedding     embedding
    ========  ====================================================  ============  ============

    On a CPU norms, ReLUs and pooling wait for memory, and at full size they cost as much as the
    convolutions; here they never see it.

    246,504 parameters and 16.7 MFLOP for 1 x 28 x 28, 565,992 and 53.3 for 1 x 56 x 46. A strided
    stem and batch norm after each convolution are those of He et al. (*Deep residual learning for
    image recognition*, CVPR 2016), without the residual paths.

    Args:
        embedding: length of the embedding.
        inputs: size of the images, at least 8 x 8.
        normalize: scale embeddings to length 1.
        width: maps of the stem; the stages have 2 and 4 times as many.
        norm: "batch", or "group", which has no statistics of the batch, for gradient caching.
    """

    def __init__(
        self,
        embedding: int = 128,
        inputs: InputSpec = FACES,
        *,
        normalize: bool = True,
        width: int = 24,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        at_least(1, width=width)
        one_of(NORMS, norm=norm)
        large_enough("fast", inputs, 8, 8)
        height, breadth = ((size + 1) // 2 // 4 for size in (inputs.height, inputs.width))
        self.stem = nn.Sequential(*conv_block(inputs.channels, width, norm, kernel=5, stride=2))
        self.stages = nn.Sequential(
            *conv_block(width, 2 * width, norm),
            nn.MaxPool2d(2),
            *conv_block(2 * width, 4 * width, norm),
            *conv_block(4 * width, 4 * width, norm),
            nn.MaxPool2d(2),
        )
        batch = norm == "batch"  # whose mean takes any bias away again
        self.head = nn.Linear(4 * width * height * breadth, embedding, bias=not batch)
        self.norm = nn.BatchNorm1d(embedding, affine=False) if batch else nn.Identity()
        self.normalize = normalize

    def forward(self, images: Tensor) -> Tensor:
        """Embed images in [0, 1]: (N, C, H, W) -> (N, embedding)."""
        x = self.stages(self.stem(standardise(images)))  # (N, 4w, H/8, W/8)
        return finish(self.norm(self.head(flat(x))), self.normalize)
