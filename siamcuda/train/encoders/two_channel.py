"""Networks of Zagoruyko and Komodakis (2015): two patches at once, or each by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from siamcuda.train.encoders.layers import at_least, finish, large_enough, standardise
from siamcuda.train.encoders.spec import InputSpec
from siamcuda.train.errors import InputError

__all__ = ["PatchNet", "TwoChannelNet"]

#: The patches of the paper.
PATCHES = InputSpec(1, 64, 64)


class _Stack(nn.Module):
    """C1 to C3 of both networks, the units of what they leave: (B, channels, H, W) -> (B, units).

    Args:
        name: of the network, for errors.
        channels: of what C1 sees.
        inputs: size of one patch.
        width: maps of C1; C2 has twice, C3 8/3 times as many.
        stride: of C1.
    """

    def __init__(
        self, name: str, channels: int, inputs: InputSpec, width: int, stride: int
    ) -> None:
        super().__init__()
        at_least(1, width=width, stride=stride)
        large_enough(name, inputs, 7 + 19 * stride, 7 + 19 * stride)
        self.last = max(1, width * 8 // 3)
        height, breadth = (
            (((size - 7) // stride + 1) // 2 - 4) // 2 - 2 for size in (inputs.height, inputs.width)
        )
        self.units = self.last * height * breadth
        self.c1 = nn.Conv2d(channels, width, 7, stride)
        self.c2 = nn.Conv2d(width, 2 * width, 5)
        self.c3 = nn.Conv2d(2 * width, self.last, 3)

    def convolve(self, x: Tensor) -> Tensor:
        """See the class."""
        x = functional.max_pool2d(torch.relu(self.c1(x)), 2)
        x = functional.max_pool2d(torch.relu(self.c2(x)), 2)
        return torch.relu(self.c3(x)).flatten(1)


class TwoChannelNet(_Stack):
    """The 2-channel network: two patches stacked as channels, a convnet, one score.

    ======  =======================================  ============
    layer                                            2 x 64 x 64
    ======  =======================================  ============
    C1      96 maps, 7x7 kernels, stride 3, ReLU     96 x 20 x 20
    P1      2x2 max pooling                          96 x 10 x 10
    C2      192 maps, 5x5 kernels, ReLU              192 x 6 x 6
    P2      2x2 max pooling                          192 x 3 x 3
    C3      256 maps, 3x3 kernels, ReLU              256 x 1 x 1
    F4      256 units, ReLU                          256
    F5      the score                                1
    ======  =======================================  ============

    There is no embedding: each pair is a forward pass, so it does not search a gallery. In return
    the first layer already compares. The score of (a, b) is not that of (b, a); training shows both
    orders. Higher means a match, so with y of the losses (1: another point) the hinge of the paper
    is ``relu(1 - (1 - 2 * y) * score).mean()``.

    979,169 parameters and 41.7 MFLOP a pair of 1 x 64 x 64. In larger patches C3 leaves more
    positions, and F4 sees all of them. With a stride of s, patches are at least 7 + 19s wide and
    high: 64 as in the paper, 45 with a stride of 2, 26 with 1.

    Source: S. Zagoruyko, N. Komodakis, *Learning to compare image patches via convolutional neural
    networks*, CVPR 2015. It subtracts the mean grey of the data; here each patch has its own mean
    and contrast taken away, since light changes between photographs.

    Args:
        inputs: size of one patch.
        width: maps of C1; C2 has twice, C3 and F4 8/3 times as many.
        stride: of C1.
    """

    def __init__(self, inputs: InputSpec = PATCHES, *, width: int = 96, stride: int = 3) -> None:
        super().__init__("two-channel", 2 * inputs.channels, inputs, width, stride)
        self.inputs = inputs
        self.f4 = nn.Linear(self.units, self.last)
        self.f5 = nn.Linear(self.last, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Score pairs of patches in [0, 1]: (B, 2, C, H, W) or (B, 2, H, W) -> (B,)."""
        if pairs.dim() == 4:
            pairs = pairs.unsqueeze(2)
        if pairs.dim() != 5 or pairs.shape[1:] != (2, *self.inputs.shape):
            raise InputError(
                f"pairs: shape (B, 2, {', '.join(map(str, self.inputs.shape))}) is expected, "
                f"got {tuple(pairs.shape)}"
            )
        x = self.convolve(standardise(pairs).flatten(1, 2))
        scores: Tensor = self.f5(torch.relu(self.f4(x))).squeeze(1)
        return scores


class PatchNet(_Stack):
    """The branch of the plain Siamese network: the layers of TwoChannelNet on one patch.

    ======  =======================================  ============
    layer                                            1 x 64 x 64
    ======  =======================================  ============
    C1      96 maps, 7x7 kernels, stride 3, ReLU     96 x 20 x 20
    P1      2x2 max pooling                          96 x 10 x 10
    C2      192 maps, 5x5 kernels, ReLU              192 x 6 x 6
    P2      2x2 max pooling                          192 x 3 x 3
    C3      256 maps, 3x3 kernels, ReLU              256 x 1 x 1
    head    linear                                   embedding
    ======  =======================================  ============

    941,312 parameters and 37.9 MFLOP for 1 x 64 x 64.

    Source: Zagoruyko and Komodakis (2015), "siam", up to C3. A decision network of two linear
    layers compares two branches there; here the distance of the embeddings does (their "l2"), so
    that patches can be searched.

    Args:
        embedding: length of the embedding.
        inputs: size of a patch; see TwoChannelNet.
        normalize: scale embeddings to length 1.
        width: maps of C1; C2 has twice, C3 8/3 times as many.
        stride: of C1.
    """

    def __init__(
        self, embedding: int = 128, inputs: InputSpec = PATCHES, *, normalize: bool = True,
        width: int = 96, stride: int = 3,
    ) -> None:  # fmt: skip
        super().__init__("patch", inputs.channels, inputs, width, stride)
        self.head = nn.Linear(self.units, embedding)
        self.normalize = normalize

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches in [0, 1]: (N, C, H, W) -> (N, embedding)."""
        return finish(self.head(self.convolve(standardise(patches))), self.normalize)
