"""Printed letters of many scripts in many faces, drawn and warped: classes for few-shot learning.

The faces are the fonts that matplotlib carries (DejaVu and STIX), or any that are given. Letters
that look the same (Latin, Greek and Cyrillic A) are one class, called by the first.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from siamcuda.train.data.arrays import ImageArray
from siamcuda.train.data.packages import find_in_package
from siamcuda.train.errors import InputError

__all__ = ["Warp", "draw_letters", "find_fonts", "find_letters"]

_STYLES = {
    "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
    "STIXGeneral": ("", "Bol", "Italic", "BolIta"),
}
_PART = 512  # drawings warped at a time


@dataclass(frozen=True)
class Warp:
    """How far a drawing may lie from the print; each range is symmetric around none."""

    rotate: float = 12.0  # degrees
    scale: float = 0.12  # exponent, each axis for itself
    shear: float = 0.15
    shift: float = 0.06  # of the side
    bend: float = 0.05  # of the side: how far a smooth wave moves a point

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}: must be finite and >= 0, got {value}")


def find_fonts() -> tuple[Path, ...]:
    """The 16 faces of letters that matplotlib carries; it is found without being imported.

    Raises:
        InputError: matplotlib is not installed, or lacks a font.
    """
    return tuple(
        find_in_package(
            "matplotlib",
            f"mpl-data/fonts/ttf/{family}{style}.ttf",
            f"the font {family}{style}",
            "pip install matplotlib",
        )
        for family, styles in _STYLES.items()
        for style in styles
    )


def find_letters(fonts: Sequence[Path], faces: int = 10) -> tuple[str, ...]:
    """Letters that at least ``faces`` of the fonts have, by code point, no two of them alike."""
    held = [_characters(font) for font in fonts]
    counts: dict[int, int] = {}
    for code in (code for codes in held for code in codes):
        counts[code] = counts.get(code, 0) + 1
    seen: set[bytes] = set()
    letters = []
    for code in sorted(code for code, count in counts.items() if count >= faces):
        if unicodedata.category(chr(code)) not in ("Lu", "Ll", "Lt", "Lo"):
            continue
        first = next(font for font, codes in zip(fonts, held, strict=True) if code in codes)
        drawing = _draw(_open(first, 48), chr(code), 96)
        mark = hashlib.sha256(drawing.tobytes()).digest()
        if drawing.any() and mark not in seen:
            seen.add(mark)
            letters.append(chr(code))
    return tuple(letters)


def draw_letters(
    letters: Sequence[str] | None = None,
    fonts: Sequence[Path] | None = None,
    *,
    size: int = 32,
    views: int = 1,
    warp: Warp | None = None,
    seed: int = 0,
) -> ImageArray:
    """Draw letters in every font that has them, and warp each drawing at random.

    Args:
        letters: one character a class; by default :func:`find_letters` of the fonts.
        fonts: TrueType files; by default :func:`find_fonts`.
        size: side of a drawing in pixels.
        views: drawings of a letter in a font, each warped for itself.
        warp: how far; by default ``Warp()``.
        seed: of the warps; the same seed gives the same bits.

    Returns:
        (N, size, size) uint8, ink 255 on 0; ``names`` are the letters, sorted by class, font, view.

    Raises:
        InputError: a font can't be read, a letter is in none, or a setting can't work.
    """
    if size < 8 or views < 1 or seed < 0:
        raise InputError(
            f"size (>= 8), views (>= 1) and seed (>= 0) are {size}, {views} and {seed}"
        )
    fonts = find_fonts() if fonts is None else fonts
    letters = find_letters(fonts) if letters is None else letters
    if len(set(letters)) != len(letters) or any(len(letter) != 1 for letter in letters):
        raise InputError("letters: characters are expected, each once")
    held = [_characters(font) for font in fonts]
    faces = [_open(font, round(1.4 * size)) for font in fonts]
    drawings, labels = [], []
    for label, letter in enumerate(letters):
        having = [face for face, codes in zip(faces, held, strict=True) if ord(letter) in codes]
        if not having:
            raise InputError(f"letters: no font has {letter!r} (U+{ord(letter):04X})")
        drawings += [_draw(face, letter, 2 * size) for face in having]
        labels += [label] * len(having) * views
    settings = warp or Warp()
    generator = torch.Generator().manual_seed(seed)
    parts = [
        _warp(torch.from_numpy(np.stack(part)), size, views, settings, generator)
        for part in _parts(drawings)
    ]
    images = torch.cat([torch.zeros((0, size, size), dtype=torch.uint8), *parts])
    return ImageArray(images, torch.tensor(labels, dtype=torch.int64), tuple(letters))


def _parts(
    drawings: list[np.ndarray[tuple[int, int], np.dtype[np.uint8]]],
) -> Iterator[list[np.ndarray[tuple[int, int], np.dtype[np.uint8]]]]:
    for start in range(0, len(drawings), _PART):
        yield drawings[start : start + _PART]


def _characters(font: Path) -> frozenset[int]:
    """Code points that a font has a glyph for."""
    try:
        from fontTools.ttLib import TTFont
    except ModuleNotFoundError as error:
        raise InputError("letters: need fonttools: pip install fonttools") from error
    try:
        with TTFont(font, lazy=True) as opened:
            return frozenset(opened.getBestCmap() or ())
    except Exception as error:  # the parser raises whatever a broken font makes of it
        raise InputError(f"data: cannot read the font {font}: {error}") from error


def _open(font: Path, size: int) -> ImageFont.FreeTypeFont:
    try:  # the basic layout is the same wherever Pillow was built
        return ImageFont.truetype(str(font), size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise InputError(f"data: cannot read the font {font}: {error}") from error


def _draw(
    face: ImageFont.FreeTypeFont, letter: str, side: int
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """A letter in the middle of a square, made smaller only where it would touch the edge."""
    left, top, right, bottom = (round(edge) for edge in face.getbbox(letter))
    width, height = max(1, right - left), max(1, bottom - top)
    glyph = Image.new("L", (width, height))
    ImageDraw.Draw(glyph).text((-left, -top), letter, fill=255, font=face)
    room = int(0.8 * side)
    if max(width, height) > room:
        scale = room / max(width, height)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        glyph = glyph.resize((width, height), Image.Resampling.BILINEAR)
    square = Image.new("L", (side, side))
    square.paste(glyph, ((side - width) // 2, (side - height) // 2))
    return np.array(square)


def _warp(
    drawings: Tensor, size: int, views: int, warp: Warp, generator: torch.Generator
) -> Tensor:
    """Views of drawings (n, 2s, 2s) uint8: (n * views, s, s) uint8."""
    n = len(drawings) * views

    def symmetric(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * 2 - 1

    angle = symmetric() * math.radians(warp.rotate)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    slant = torch.eye(2).repeat(n, 1, 1)
    slant[:, 0, 1] = symmetric() * warp.shear
    zoom = torch.exp(symmetric(2) * warp.scale)
    offset = symmetric(2) * 2 * warp.shift
    affine = torch.cat([turn @ slant * zoom[:, None], offset[:, :, None]], 2)
    grid = functional.affine_grid(affine, [n, 1, size, size], align_corners=False)
    # A wave is three random numbers a side, joined smoothly; grid coordinates run from -1 to 1.
    waves = symmetric(2, 3, 3) * 2 * warp.bend
    bend = functional.interpolate(waves, (size, size), mode="bicubic", align_corners=True)
    grid = grid + bend.permute(0, 2, 3, 1)
    ink = drawings[:, None].to(torch.float32).repeat_interleave(views, 0)
    views_of = functional.grid_sample(ink, grid, align_corners=False)
    return views_of[:, 0].round().clamp(0, 255).to(torch.uint8)
