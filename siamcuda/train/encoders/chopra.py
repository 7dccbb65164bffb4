"""Image encoders: a batch of grey images in, one embedding a row out.

Both take (N, 1, 56, 46) float images scaled to [0, 1] and standardise each image by itself, so that
brightness and contrast of the camera do not reach the first layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ENCODERS", "INPUT_SIZE", "ChopraNet", "SmallConvNet", "build_encoder"]

#: Height and width that every encoder takes: Chopra, Hadsell and LeCun halve the 112 x 92 images.
INPUT_SIZE = (56, 46)


def standardise(images: Tensor) -> Tensor:
    """Give each image mean 0 and standard deviation 1; a constant image becomes 0."""
    centred = images - images.mean((1, 2, 3), keepdim=True)
    return centred / centred.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-4)


class Subsample(nn.Module):
    """LeCun's subsampling: the mean of a window, times a learned gain, plus a learned bias."""

    def __init__(self, maps: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window
        self.gain = nn.Parameter(torch.ones(maps, 1, 1))
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, self.window) * self.gain + self.bias


class PartialConv2d(nn.Conv2d):
    """A convolution in which each output map sees only some of the input maps.

    ``table`` is (out_maps, in_maps), true where an output map is connected to an input map.
    """

    table: Tensor

    def __init__(self, table: Tensor, kernel_size: int) -> None:
        super().__init__(table.shape[1], table.shape[0], kernel_size)
        self.register_buffer("table", table[:, :, None, None].to(torch.float32), persistent=False)
        with torch.no_grad():  # torch's bound counts all input maps; keep the scale of the sum
            fan_in = table.sum(1).clamp(min=1).float() * kernel_size**2
            bound = (1 / fan_in.sqrt())[:, None, None, None]
            self.weight.copy_(torch.empty_like(self.weight).uniform_(-1, 1) * bound)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * self.table, self.bias)


def connection_table(out_maps: int, in_maps: int, inputs: int) -> Tensor:
    """Connect each output map to ``inputs`` input maps, moving on by one from map to map."""
    table = torch.zeros(out_maps, in_maps, dtype=torch.bool)
    # each round over the input maps reads them at another stride, so that no two rows are alike
    strides = [stride for stride in range(1, in_maps) if math.gcd(stride, in_maps) == 1]
    for row in range(out_maps):
        stride = strides[row // in_maps % len(strides)]
        table[row, [(row + stride * k) % in_maps for k in range(inputs)]] = True
    return table


class ChopraNet(nn.Module):
    """The C1-S2-C3-S4-C5-F6 network of Chopra, Hadsell and LeCun (2005).

    ====  ==========================================  ================
    C1    15 maps, 7x7 kernels                        15 x 50 x 40
    S2    trainable 2x2 subsampling                   15 x 25 x 20
    C3    45 maps, 6x6 kernels, partially connected   45 x 20 x 15
    S4    trainable 4x3 subsampling                   45 x 5 x 5
    C5    250 maps, 5x5 kernels, fully connected      250 x 1 x 1
    F6    ``embedding`` units (the paper: 50)         embedding
    ====  ==========================================  ================

    Each layer ends in tanh, F6 too. "Partially connected" leaves open which maps of S2 a map of C3
    sees; here it is 5 of the 15, and no two maps of C3 see the same five.
    """

    def __init__(self, embedding: int = 50) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 15, 7)
        self.s2 = Subsample(15, (2, 2))
        self.c3 = PartialConv2d(connection_table(45, 15, 5), 6)
        self.s4 = Subsample(45, (4, 3))
        self.c5 = nn.Conv2d(45, 250, 5)
        self.f6 = nn.Linear(250, embedding)

    def forward(self, images: Tensor) -> Tensor:
        """Embed grey images in [0, 1]: (N, 1, 56, 46) -> (N, embedding)."""
        x = torch.tanh(self.s2(torch.tanh(self.c1(standardise(images)))))
        x = torch.tanh(self.s4(torch.tanh(self.c3(x))))
        x = torch.tanh(self.c5(x)).flatten(1)
        return torch.tanh(self.f6(x))


class SmallConvNet(nn.Module):
    """Four 3x3 convolutions with batch norm, and a linear layer on what is left of the image.

    The embedding has length 1, so that the energy (an L2 distance) lies in [0, 2].
    """

    def __init__(self, embedding: int = 128, width: int = 24) -> None:
        super().__init__()
        maps = [1, width, 2 * width, 4 * width, 4 * width]
        self.blocks = nn.Sequential(*(self._block(a, b) for a, b in pairwise(maps)))
        self.head = nn.Linear(maps[-1] * 3 * 2, embedding)
        self.norm = nn.BatchNorm1d(embedding, affine=False)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embed grey images in [0, 1]: (N, 1, 56, 46) -> (N, embedding)."""
        x = self.blocks(standardise(images))  # (N, 4w, 3, 2)
        return functional.normalize(self.norm(self.head(x.flatten(1))))


#: What ``--encoder`` takes.
ENCODERS: dict[str, Callable[[int], nn.Module]] = {"chopra2005": ChopraNet, "small": SmallConvNet}


def build_encoder(name: str, embedding: int, seed: int) -> nn.Module:
    """Build an encoder with weights that depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ENCODERS[name](embedding).to(memory_format=torch.channels_last)
