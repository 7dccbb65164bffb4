"""A residual network for small images."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

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
from siamcuda.train.errors import InputError

__all__ = ["ResidualNet"]


class Residual(nn.Module):
    """The basic block of ResNet: two 3x3 convolutions beside a path that skips them."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.first = nn.Sequential(*conv_block(inputs, outputs, norm, stride=stride))
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), NORMS[norm](outputs)
        )
        self.stride = stride
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), NORMS[norm](outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        # Not a stride of the convolution: with 12 maps, 5 images and 2 threads torch 2.14.1 writes
        # past its buffers in the gradient of a 1x1 convolution with a stride (heap corruption).
        skipped = self.skip(x[:, :, :: self.stride, :: self.stride])
        return functional.relu(self.second(self.first(x)) + skipped)


class ResidualNet(nn.Module):
    """A stem that halves the image, then stages of residual blocks that halve it again.

    ========  ==============================================  ============  ============
    layer                                                     1 x 28 x 28   1 x 56 x 46
    ========  ==============================================  ============  ============
    stem      5x5 conv with stride 2, norm, ReLU              32 x 14 x 14  32 x 28 x 23
    stage 1   residual block                                  32 x 14 x 14  32 x 28 x 23
    stage 2   residual block, its first stride 2              64 x 7 x 7    64 x 14 x 12
    stage 3   residual block, its first stride 2              128 x 4 x 4   128 x 7 x 6
    head      linear on all of the last maps, norm            embedding     embedding
    ========  ==============================================  ============  ============

    The head sees where things are: digits, faces and patches lie still, so that averaging over the
    image (``pool``) would only throw that away. Pooled, it takes images of any size.

    569,440 parameters and 21.0 MFLOP for 1 x 28 x 28, 995,424 and 64.7 for 1 x 56 x 46.

    Source: K. He, X. Zhang, S. Ren, J. Sun, *Deep residual learning for image recognition*, CVPR
    2016. Group norm: Y. Wu, K. He, *Group normalization*, ECCV 2018.

    Args:
        embedding: length of the embedding.
        inputs: size of the images; each stage needs at least one pixel to halve.
        normalize: scale embeddings to length 1.
        widths: maps of each stage.
        blocks: residual blocks in each stage.
        norm: "batch", or "group", which has no statistics of the batch, for gradient caching.
        pool: average over the image before the head.
    """

    def __init__(
        self,
        embedding: int = 128,
        inputs: InputSpec = FACES,
        *,
        normalize: bool = True,
        widths: tuple[int, ...] = (32, 64, 128),
        blocks: int = 1,
        norm: str = "batch",
        pool: bool = False,
    ) -> None:
        super().__init__()
        if not widths:
            raise InputError("widths: at least one stage is expected")
        at_least(1, widths=min(widths), blocks=blocks)
        one_of(NORMS, norm=norm)
        large_enough("residual", inputs, 8, 8)
        self.stem = nn.Sequential(*conv_block(inputs.channels, widths[0], norm, kernel=5, stride=2))
        stages = [Residual(widths[0], widths[0], 1, norm)]
        stages += [Residual(widths[0], widths[0], 1, norm) for _ in range(blocks - 1)]
        for before, after in pairwise(widths):
            stages.append(Residual(before, after, 2, norm))
            stages += [Residual(after, after, 1, norm) for _ in range(blocks - 1)]
        self.stages = nn.Sequential(*stages)
        halvings = 2 ** len(widths)
        pixels = -(-inputs.height // halvings) * -(-inputs.width // halvings)
        batch = norm == "batch"  # whose mean takes any bias away again
        self.head = nn.Linear(widths[-1] * (1 if pool else pixels), embedding, bias=not batch)
        self.norm = nn.BatchNorm1d(embedding, affine=False) if batch else nn.Identity()
        self.normalize, self.pool = normalize, pool

    def forward(self, images: Tensor) -> Tensor:
        """Embed images in [0, 1]: (N, C, H, W) -> (N, embedding)."""
        x = self.stages(self.stem(standardise(images)))  # (N, C', H', W')
        x = x.mean((2, 3)) if self.pool else flat(x)
        return finish(self.norm(self.head(x)), self.normalize)
