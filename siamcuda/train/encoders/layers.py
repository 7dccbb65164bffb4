"""What the encoders share: standardised images, lengths of 1, norms, checks of sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from siamcuda.train.encoders.spec import InputSpec
from siamcuda.train.errors import InputError

__all__ = [
    "NORMS",
    "at_least",
    "conv_block",
    "finish",
    "flat",
    "large_enough",
    "one_of",
    "standardise",
]


def standardise(images: Tensor) -> Tensor:
    """Give each image mean 0 and standard deviation 1; a constant image becomes 0."""
    centred = images - images.mean((-3, -2, -1), keepdim=True)
    return centred / centred.square().mean((-3, -2, -1), keepdim=True).sqrt().clamp(min=1e-4)


def finish(embeddings: Tensor, normalize: bool) -> Tensor:
    """Scale rows to length 1 where asked, never in half precision: a bfloat16 length is 0.4 % off.

    (N, D) -> (N, D), at least float32 where rows are scaled.
    """
    if not normalize:
        return embeddings
    half = embeddings.dtype in (torch.float16, torch.bfloat16)
    return functional.normalize(embeddings.float() if half else embeddings)


def flat(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C·H·W).

    A copy, which flatten makes of maps in channels_last anyway: torch.compile takes what a group
    norm gives for contiguous on the CPU, which it is not, and would flatten it without one.
    """
    return maps.clone(memory_format=torch.contiguous_format).flatten(1)


def at_least(least: int, **values: int) -> None:
    """Raise InputError that names the first value below ``least``."""
    for name, value in values.items():
        if value < least:
            raise InputError(f"{name}: must be at least {least}, got {value}")


def one_of(choices: Iterable[str], **values: str) -> None:
    """Raise InputError that names the first value that is none of ``choices``."""
    choices = list(choices)
    for name, value in values.items():
        if value not in choices:
            raise InputError(f"{name}: {value!r} is none of {', '.join(choices)}")


def large_enough(encoder: str, inputs: InputSpec, height: int, width: int) -> None:
    """Raise InputError where the layers of ``encoder`` would leave nothing of an image."""
    if inputs.height < height or inputs.width < width:
        raise InputError(
            f"inputs: {encoder} needs images of at least {height} x {width} (height x width), "
            f"got {inputs.height} x {inputs.width}"
        )


def _group(maps: int) -> nn.Module:
    """Groups of 8 maps, or of as many as divide the maps."""
    return nn.GroupNorm(next(g for g in range(max(1, maps // 8), 0, -1) if maps % g == 0), maps)


#: Norms of maps by the names that options give them. "batch" needs statistics of a whole batch, so
#: cut into chunks it is another network; "group" has each image by itself.
NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": _group}


def conv_block(
    inputs: int, outputs: int, norm: str, *, kernel: int = 3, stride: int = 1
) -> Sequence[nn.Module]:
    """Convolution, norm and ReLU; a stride of s leaves ⌈size/s⌉."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, NORMS[norm](outputs), nn.ReLU(inplace=True)]
