"""Random views of a batch of images, in one grid_sample call.

The grid has the encoder's size and reads the full-size image directly: with no distortion a grid
of half the size falls between four pixels each, so it yields exactly the mean of 2x2 blocks.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from siamcuda.train.errors import InputError

__all__ = ["Augmentation", "ImageViews", "random_views", "resize"]


@dataclass(frozen=True)
class Augmentation:
    """How far a random view may lie from the picture; every range is symmetric around none."""

    rotate: float = 12.0  # degrees
    shift: float = 0.06  # of the width and height
    scale: float = 0.15  # of the size, each axis also by half of that alone
    shear: float = 0.1
    gamma: float = 0.3  # exponent e^(+-gamma) on intensities in [0, 1]
    noise: float = 0.03  # standard deviation, drawn per image from [0, noise]
    erase: float = 0.6  # chance that a rectangle of up to 40 % of each side is greyed out
    flip: float = 0.5  # chance of a mirror image

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}: must be finite and >= 0, got {value}")
        for name in ("erase", "flip"):
            if getattr(self, name) > 1:
                raise InputError(f"{name}: must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class ImageViews:
    """Stored images to what an encoder takes: random views to learn from, plain ones otherwise.

    Args:
        size: (h, w) of a view.
        augmentation: how far a random view may lie from the picture.
        part: share of the picture's height and width that a plain view shows, its middle. What is
            around it comes into random views, instead of a border of repeated pixels.

    Called with uint8 images (B, H, W) or (B, C, H, W), or pairs of such, (B, 2, C, H, W), and a
    generator or None. Returns floats in [0, 1] (but for the noise of random views), (B, C, h, w) or
    (B, 2, C, h, w); C is 1 where the images have no channels. Each image of a pair gets a view of
    its own.

    Raises:
        ValueError: the images have another shape or dtype.

    Example:
        >>> views = ImageViews((56, 46))
        >>> views(torch.zeros(2, 3, 112, 92, dtype=torch.uint8), None).shape
        torch.Size([2, 3, 56, 46])
    """

    size: tuple[int, int]
    augmentation: Augmentation = field(default_factory=Augmentation)
    part: float = 1.0

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Make one view of each image; see the class."""
        if images.dtype != torch.uint8 or images.ndim not in (3, 4, 5):
            raise ValueError(
                "images: uint8 (B, H, W), (B, C, H, W) or (B, 2, C, H, W) is expected, got "
                f"{tuple(images.shape)} {images.dtype}"
            )
        single = images.flatten(0, 1) if images.ndim == 5 else images
        if generator is None:
            views = resize(single, self.size, self.part)
        else:
            views = random_views(single, self.size, self.augmentation, generator, self.part)
        return views.reshape(*images.shape[:2], *views.shape[1:]) if images.ndim == 5 else views


def resize(images: Tensor, size: tuple[int, int], part: float = 1.0) -> Tensor:
    """Bring uint8 images, or that part of them in the middle, to ``size`` without any distortion.

    (N, H, W) or (N, C, H, W) -> (N, 1, *size) or (N, C, *size) floats in [0, 1].
    """
    pixels = _pixels(images)
    identity = (part * torch.eye(2, 3)).expand(len(images), 2, 3)
    return _sample(pixels, identity, size)


def random_views(
    images: Tensor, size: tuple[int, int], settings: Augmentation, generator: torch.Generator,
    part: float = 1.0,
) -> Tensor:  # fmt: skip
    """Draw one random view of each uint8 image, all its channels alike but for the noise.

    (N, H, W) or (N, C, H, W) -> (N, 1, *size) or (N, C, *size) floats, in [0, 1] but for the noise.
    """
    n = len(images)
    height, width = size

    def symmetric(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * 2 - 1

    def chance(p: float) -> Tensor:
        return torch.rand(n, generator=generator) < p

    angle = symmetric() * math.radians(settings.rotate)
    cos, sin = angle.cos(), angle.sin()
    zoom = torch.exp(settings.scale * (symmetric(1) + 0.5 * symmetric(2)))  # (n, 2): x, y
    shear = symmetric() * settings.shear
    mirror = torch.where(chance(settings.flip), -1.0, 1.0)
    aspect = width / height  # grid coordinates run from -1 to 1 on both axes
    turn = torch.stack(
        [torch.stack([cos, -sin / aspect], 1), torch.stack([sin * aspect, cos], 1)], 1
    )
    ones, zeros = torch.ones(n), torch.zeros(n)
    slant = torch.stack([torch.stack([ones, shear], 1), torch.stack([zeros, ones], 1)], 1)
    linear = turn @ slant * zoom[:, None, :]
    linear[:, :, 0] *= mirror[:, None]
    offset = symmetric(2) * 2 * settings.shift
    affine = part * torch.cat([linear, offset[:, :, None]], 2)  # (n, 2, 3)

    pixels = _pixels(images)
    views = _sample(pixels, affine, size)
    gamma = torch.exp(symmetric(1, 1, 1) * settings.gamma)
    views = views.clamp(min=1e-4) ** gamma
    strength = torch.rand(n, 1, 1, 1, generator=generator) * settings.noise
    views = views + strength * torch.randn(views.shape, generator=generator)

    centre = torch.rand(n, 2, generator=generator)
    half = 0.05 + 0.15 * torch.rand(n, 2, generator=generator)
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    inside = ((rows - centre[:, :1]).abs() < half[:, :1])[:, :, None] & (
        (columns - centre[:, 1:]).abs() < half[:, 1:]
    )[:, None, :]
    erased = (inside & chance(settings.erase)[:, None, None])[:, None]
    return torch.where(erased, views.mean((1, 2, 3), keepdim=True), views)


def _pixels(images: Tensor) -> Tensor:
    """Floats in [0, 1] with an axis of channels."""
    return (images[:, None] if images.ndim == 3 else images).to(torch.float32) / 255


def _sample(pixels: Tensor, affine: Tensor, size: tuple[int, int]) -> Tensor:
    grid = functional.affine_grid(affine, [len(pixels), 1, *size], align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
