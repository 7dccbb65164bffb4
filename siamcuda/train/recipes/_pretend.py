"""Pretend signatures, drawn: to try a recipe where nobody's signatures are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["draw_signatures"]

_WIDTH, _HEIGHT = 220, 110


def draw_signatures(
    folder: Path, writers: int, each: int = 8, seed: int = 0, forged: bool = True
) -> None:
    """Write ``writer-N/genuine/M.png`` and ``writer-N/forged/M.png``, ``each`` of both.

    A writer is a chain of points with a smooth curve through them. Genuine ones shake a little and
    lean; who forges knows the points, less exactly, and draws with a slower hand: more corners.
    """
    random = np.random.default_rng(seed)
    for writer in range(1, writers + 1):
        x = np.linspace(20, _WIDTH - 20, 12) + random.normal(0, 14, 12)
        points = np.stack([x, random.uniform(20, _HEIGHT - 20, 12)], 1)
        for kind, shake, smooth in (("genuine", 2.0, 12), ("forged", 5.0, 2)):
            if kind == "forged" and not forged:
                continue
            place = folder / f"writer-{writer}" / kind
            place.mkdir(parents=True)
            for number in range(1, each + 1):
                shaken = points + random.normal(0, shake, points.shape)
                shaken[:, 0] += random.normal(0, 0.08) * (shaken[:, 1] - _HEIGHT / 2)
                _draw(_curve(shaken, smooth)).save(place / f"{number}.png")


def _curve(points: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Catmull and Rom's spline through (N, 2) points, ``steps`` straight lines between two."""
    ends = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    parts = []
    for a, b, c, d in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        bent = (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
        parts.append((2 * b + (c - a) * t + bent) / 2)
    return np.concatenate([*parts, points[-1:]])


def _draw(curve: NDArray[np.float64]) -> Image.Image:
    image = Image.new("L", (_WIDTH, _HEIGHT), 245)
    ImageDraw.Draw(image).line([(x, y) for x, y in curve.tolist()], fill=40, width=3, joint="curve")
    return image
