"""The hardest pairs: strangers who look most alike, and pictures of one person that don't."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from siamcuda.report.numbers import Number, threshold
from siamcuda.report.samples import Samples
from siamcuda.verification import HardestPairs

__all__ = ["Member", "Pair", "hardest_pairs"]

#: Longest side of a picture in the page, in pixels.
_SIDE = 176


@dataclass(frozen=True)
class Member:
    """One of the two."""

    row: int
    label: str | None
    file: str | None  # its picture's name
    picture: str | None  # data URI
    problem: str | None  # why there is none though a file was named


@dataclass(frozen=True)
class Pair:
    """Two rows and how far they are apart."""

    distance: Number
    members: tuple[Member, Member]


def hardest_pairs(
    found: HardestPairs | None, samples: Samples | None, gallery: Samples | None
) -> list[Pair]:
    """Describe pairs, hardest first; ``gallery`` has the second of each, if it is not None."""
    if found is None:
        return []
    known: dict[tuple[bool, int], Member] = {}

    def member(row: int, of_gallery: bool) -> Member:
        key = (of_gallery and gallery is not None, row)
        if key not in known:
            known[key] = _member(row, gallery if key[0] else samples)
        return known[key]

    return [
        Pair(
            threshold(float(distance), found.distance.dtype),
            (member(int(i), False), member(int(j), True)),
        )
        for distance, (i, j) in zip(found.distance, found.pairs, strict=True)
    ]


def _member(row: int, samples: Samples | None) -> Member:
    if samples is None:
        return Member(row, None, None, None, None)
    label = str(samples.labels[row])
    if samples.images is None:
        return Member(row, label, None, None, None)
    path = samples.images[row]
    try:
        return Member(row, label, path.name, _thumbnail(path), None)
    except _UnreadableError as error:
        return Member(row, label, path.name, None, str(error))


class _UnreadableError(Exception):
    """A picture that can't be shown. The rest of the page is worth having all the same."""


def _thumbnail(path: Path) -> str:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # JPEG: decode no more than needed
                image = ImageOps.exif_transpose(opened)
                small = max(image.size) <= _SIDE
                image.thumbnail((_SIDE, _SIDE))
                grey = image.mode in ("1", "L", "I", "I;16", "F")
                image = image.convert("L" if grey else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _UnreadableError(f"cannot be read: {type(error).__name__}") from error
    except Image.DecompressionBombWarning as error:
        raise _UnreadableError("is too large to show") from error
    buffer = io.BytesIO()
    # Small pictures are kept as they are; JPEG would smear them.
    image.save(buffer, **({"format": "png"} if small else {"format": "jpeg", "quality": 85}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
