"""One image file to pixels: any mode, any turn, any size, to uint8 of the size asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from siamcuda.train.errors import InputError

__all__ = ["IMAGE_TYPES", "MOST_PIXELS", "Decoder", "Fit"]

#: Endings of the files that are taken for images.
IMAGE_TYPES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
#: A file of a few kilobytes may claim to be gigabytes of pixels: larger images are refused.
MOST_PIXELS = 89_478_485

#: How an image of another shape comes to the size: whole, with bars in the mean colour of its
#: border; as large a middle part as has the shape; or whole, with its shape changed.
Fit = Literal["pad", "crop", "stretch"]

# Pillow's other formats are rare, and some of them run programs (EPS: Ghostscript).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# No ringing at the edges of strokes; Pillow widens it when it shrinks, so nothing is skipped.
_FILTER = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Decoder:
    """Reads image files as uint8 (channels, H, W).

    EXIF orientation is honoured. 16 bits are scaled to 8, transparent parts lie on white, and of
    several frames the first counts. An image that has the size already keeps its values.

    Args:
        size: (H, W) of the result; None keeps each image's own.
        channels: 1 for grey, 3 for RGB.
        fit: how an image of another shape comes to the size.

    Raises:
        InputError: a setting is none of these.
    """

    size: tuple[int, int] | None = None
    channels: int = 1
    fit: Fit = "pad"

    def __post_init__(self) -> None:
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise InputError(f"size: (H, W) of at least 1 is expected, got {self.size}")
        if self.channels not in (1, 3):
            raise InputError(f"channels: 1 (grey) or 3 (RGB) is expected, got {self.channels}")
        if self.fit not in get_args(Fit):
            raise InputError(f"fit: {self.fit!r} is none of {', '.join(get_args(Fit))}")

    def read(self, path: Path) -> Tensor:
        """Decode a file: uint8 (channels, H, W).

        Raises:
            InputError: names the file that is missing, empty, cut short, too large or no image.
        """
        try:
            if path.stat().st_size == 0:
                raise ValueError("the file is empty")
            with Image.open(path, formats=_FORMATS) as image:
                return self._pixels(image)
        except Exception as error:  # decoders raise whatever a broken file makes of them
            raise InputError(f"data: cannot read the image {path}: {_reason(error)}") from error

    def _pixels(self, image: Image.Image) -> Tensor:
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise ValueError(f"{width}x{height} pixels are more than {MOST_PIXELS:,}")
        if self.size is not None:
            side = 2 * max(self.size)  # JPEGs can be decoded at an eighth of their size, fast
            image.draft(None, (side, side))
        upright = ImageOps.exif_transpose(image)
        flat = _eight_bits(upright).convert("L" if self.channels == 1 else "RGB")
        if self.size is not None:
            flat = _fit(flat, (self.size[1], self.size[0]), self.fit)
        pixels = np.array(flat)  # (H, W) or (H, W, 3)
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a kind that is read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _eight_bits(image: Image.Image) -> Image.Image:
    """Without transparency and with at most 8 bits a channel."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("pixels of 32 bits have no known range; 8 or 16 bits are expected")
        return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    # A palette has no greys of its own.
    return image.convert("RGB") if image.mode in ("P", "PA") else image


def _fit(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """Bring an image of mode L or RGB to ``size`` (W, H)."""
    if image.size == size:
        return image
    if fit == "stretch":
        return image.resize(size, _FILTER)
    if fit == "crop":
        return ImageOps.fit(image, size, _FILTER)
    scale = min(size[0] / image.width, size[1] / image.height)
    width = min(size[0], max(1, round(image.width * scale)))
    height = min(size[1], max(1, round(image.height * scale)))
    inner = image.resize((width, height), _FILTER)
    if inner.size == size:
        return inner
    canvas = Image.new(image.mode, size, _border(inner))
    canvas.paste(inner, ((size[0] - width) // 2, (size[1] - height) // 2))
    return canvas


def _border(image: Image.Image) -> tuple[int, ...]:
    """The mean colour of an image's border: bars of it are no edge that a network would learn."""
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(int(value) for value in np.rint(border.mean(0)))
