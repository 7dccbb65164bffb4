"""The convolutional network of Chopra, Hadsell and LeCun (2005)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from siamcuda.train.encoders.layers import at_least, finish, large_enough, standardise
from siamcuda.train.encoders.spec import FACES, InputSpec
from siamcuda.train.errors import InputError

__all__ = ["ChopraNet"]


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
    strides = [stride for stride in range(1, in_maps) if math.gcd(stride, in_maps) == 1] or [1]
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
    sees; here it is 5 of the 15, and no two maps of C3 see the same five. Images of another size,
    at least 24 x 22, change the kernels of C5 alone: they cover what S4 leaves.

    319,265 parameters with 50 units (16,200 of them are kernels of C3 that are not connected) and
    18.1 MFLOP for an image of 56 x 46.

    Source: S. Chopra, R. Hadsell, Y. LeCun, *Learning a similarity metric discriminatively, with
    application to face verification*, CVPR 2005.

    Args:
        embedding: units of F6.
        inputs: size of the images.
        normalize: scale embeddings to length 1, which the paper does not.
        maps: maps of C1, C3 and C5.
        connections: maps of S2 that a map of C3 sees.
    """

    def __init__(
        self,
        embedding: int = 50,
        inputs: InputSpec = FACES,
        *,
        normalize: bool = False,
        maps: tuple[int, ...] = (15, 45, 250),
        connections: int = 5,
    ) -> None:
        super().__init__()
        if len(maps) != 3:
            raise InputError(f"maps: those of C1, C3 and C5 are expected, got {maps}")
        at_least(1, maps=min(maps), connections=connections)
        if connections > maps[0]:
            raise InputError(f"connections: C1 has {maps[0]} maps, {connections} of them are asked")
        large_enough("chopra2005", inputs, 24, 22)
        left = ((inputs.height - 6) // 2 - 5) // 4, ((inputs.width - 6) // 2 - 5) // 3
        self.c1 = nn.Conv2d(inputs.channels, maps[0], 7)
        self.s2 = Subsample(maps[0], (2, 2))
        self.c3 = PartialConv2d(connection_table(maps[1], maps[0], connections), 6)
        self.s4 = Subsample(maps[1], (4, 3))
        self.c5 = nn.Conv2d(maps[1], maps[2], left)
        self.f6 = nn.Linear(maps[2], embedding)
        self.normalize = normalize

    def forward(self, images: Tensor) -> Tensor:
        """Embed images in [0, 1]: (N, C, H, W) -> (N, embedding)."""
        x = torch.tanh(self.s2(torch.tanh(self.c1(standardise(images)))))
        x = torch.tanh(self.s4(torch.tanh(self.c3(x))))
        x = torch.tanh(self.c5(x)).flatten(1)
        return finish(torch.tanh(self.f6(x)), self.normalize)
