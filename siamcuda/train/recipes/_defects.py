"""Defects planted in grey patches: kinds to learn from, to choose settings by, and to test on.

A kind takes a patch (S, S) of grey levels 0 to 255, another patch (S, S) of another surface, and
a generator, and returns the patch with the defect in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

__all__ = ["KINDS", "LEARNED", "TESTED", "VALIDATED", "plant", "shows"]

Defect = Callable[[Tensor, Tensor, Generator], Tensor]

#: A defect shows if it changes this share of a patch's pixels by so many grey levels. One that does
#: not, such as a blurred spot where nothing is sharp, is drawn again, up to so many times.
SHARE, LEVELS, TRIES = 0.02, 20.0, 50


def plant(kind: str, patch: Tensor, other: Tensor, generator: Generator) -> Tensor | None:
    """Plant a defect of a kind that shows: (S, S), (S, S) uint8 -> (S, S) uint8.

    None where ``TRIES`` drawings did not show: on a surface without a mark on it nothing would.
    """
    level, foreign = patch.float(), other.float()
    for _ in range(TRIES):
        changed = KINDS[kind](level, foreign, generator).round().clamp(0, 255).to(torch.uint8)
        if shows(patch, changed):
            return changed
    return None


def shows(patch: Tensor, changed: Tensor) -> bool:
    """Whether two patches (S, S) uint8 differ as much as a defect must."""
    difference = (patch.float() - changed.float()).abs()
    return bool((difference >= LEVELS).float().mean() >= SHARE)


def _between(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _whole(below: int, generator: Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def _either(low: float, high: float, generator: Generator) -> float:
    """A number in [low, high], or its negative."""
    return _between(low, high, generator) * (1 - 2 * _whole(2, generator))


def _axes(size: int) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel, (S, 1) and (1, S)."""
    places = torch.arange(size, dtype=torch.float32)
    return places[:, None], places[None]


def _radius(patch: Tensor, generator: Generator) -> Tensor:
    """Distance of each pixel from a random middle, 1 on a random ellipse around it: (S, S)."""
    size = len(patch)
    y, x = _axes(size)
    cy, cx = (_between(0.25, 0.75, generator) * size for _ in range(2))
    long, short = (_between(0.16, 0.36, generator) * size for _ in range(2))
    angle = _between(0, math.pi, generator)
    along = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
    across = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
    return ((along / long) ** 2 + (across / short) ** 2).sqrt()


def _inside(patch: Tensor, content: Tensor, generator: Generator) -> Tensor:
    """The patch with other content in a random ellipse."""
    return torch.where(_radius(patch, generator) < 1, content, patch)


# --- learned from ---------------------------------------------------------------------------------


def _moved(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """A rectangle of the patch copied to another place of it (CutPaste)."""
    size = len(patch)
    height, width = (int(_between(0.2, 0.5, generator) * size) for _ in range(2))
    top, left, above, beside = (
        _whole(size - side + 1, generator) for side in (height, width, height, width)
    )
    changed = patch.clone()
    changed[top : top + height, left : left + width] = patch[
        above : above + height, beside : beside + width
    ]
    return changed


def _turned(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """A square cut out, turned by 90, 180 or 270 degrees, and put back."""
    size = len(patch)
    side = int(_between(0.3, 0.6, generator) * size)
    top, left = _whole(size - side + 1, generator), _whole(size - side + 1, generator)
    changed = patch.clone()
    square = patch[top : top + side, left : left + side]
    changed[top : top + side, left : left + side] = square.rot90(1 + _whole(3, generator))
    return changed


def _shaded(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """A soft light or dark cloud."""
    cloud = (1 - _radius(patch, generator) ** 2).clamp(min=0)
    return patch + cloud * _either(40, 110, generator)


def _noisy(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """Grains of noise in an ellipse."""
    noise = torch.randn(patch.shape, generator=generator) * _between(20, 60, generator)
    return _inside(patch, patch + noise, generator)


# --- chosen by ------------------------------------------------------------------------------------


def _mosaic(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """Squares of one grey, the mean of what was there."""
    side = 3 + _whole(3, generator)
    means = functional.avg_pool2d(patch[None, None], side, ceil_mode=True)
    squares = functional.interpolate(means, scale_factor=side)[0, 0, : len(patch), : len(patch)]
    return _inside(patch, squares, generator)


def _striped(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """Stripes laid over an ellipse."""
    y, x = _axes(len(patch))
    angle, period = _between(0, math.pi, generator), _between(3, 6, generator)
    wave = torch.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period)
    return _inside(patch, patch + wave * _between(25, 60, generator), generator)


def _inverted(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """Light and dark exchanged in an ellipse."""
    return _inside(patch, 2 * patch.mean() - patch, generator)


# --- tested ---------------------------------------------------------------------------------------


def _scratch(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """A thin bent line, lighter or darker."""
    size = len(patch)
    y, x = _axes(size)
    angle, bend = _between(0, math.pi, generator), _between(-0.25, 0.25, generator)
    cy, cx = (_between(0.3, 0.7, generator) * size for _ in range(2))
    half, thick = _between(0.25, 0.5, generator) * size, _between(0.6, 1.3, generator)
    along = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
    across = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
    across = across - bend * along**2 / half
    line = (thick + 0.5 - across.abs()).clamp(0, 1) * (half + 0.5 - along.abs()).clamp(0, 1)
    return patch + line * _either(50, 110, generator)


def _spots(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """A few small round spots, all lighter or all darker."""
    size = len(patch)
    y, x = _axes(size)
    level, changed = _either(50, 110, generator), patch
    for _ in range(2 + _whole(4, generator)):
        cy, cx = (_between(0.1, 0.9, generator) * size for _ in range(2))
        spot = _between(1.0, 2.5, generator) + 0.5 - ((y - cy) ** 2 + (x - cx) ** 2).sqrt()
        changed = changed + spot.clamp(0, 1) * level
    return changed


def _dent(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """The surface pulled towards a point, or pushed away from it."""
    size = len(patch)
    y, x = _axes(size)
    cy, cx = (_between(0.3, 0.7, generator) * size for _ in range(2))
    reach = _between(0.3, 0.45, generator) * size
    near = (1 - ((y - cy) ** 2 + (x - cx) ** 2) / reach**2).clamp(min=0)
    pull = near * _either(0.4, 0.7, generator)
    place = torch.stack([x + pull * (x - cx), y + pull * (y - cy)], 2)
    grid = (2 * place + 1) / size - 1
    warped = functional.grid_sample(
        patch[None, None], grid[None], padding_mode="reflection", align_corners=False
    )
    return warped[0, 0]


def _missing(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """A piece broken out: one grey, darker than most of the patch."""
    hole = torch.full_like(patch, float(patch.quantile(_between(0.0, 0.3, generator))))
    return _inside(patch, hole, generator)


def _foreign(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """A piece of another surface, as light as this one."""
    return _inside(patch, other - other.mean() + patch.mean(), generator)


def _blurred(patch: Tensor, other: Tensor, generator: Generator) -> Tensor:
    """A smeared piece."""
    side = 5 + 2 * _whole(3, generator)
    around = functional.pad(patch[None, None], [side // 2] * 4, mode="reflect")
    return _inside(patch, functional.avg_pool2d(around, side, stride=1)[0, 0], generator)


LEARNED: dict[str, Defect] = {
    "moved": _moved, "turned": _turned, "shaded": _shaded, "noisy": _noisy,
}  # fmt: skip
VALIDATED: dict[str, Defect] = {"mosaic": _mosaic, "striped": _striped, "inverted": _inverted}
TESTED: dict[str, Defect] = {
    "scratch": _scratch, "spots": _spots, "dent": _dent, "missing": _missing,
    "foreign": _foreign, "blurred": _blurred,
}  # fmt: skip
KINDS = LEARNED | VALIDATED | TESTED
