"""Pairs of texts, and texts as tensors: the bytes of UTF-8, filled up with zeros."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from siamcuda.train.data.classes import digest_of
from siamcuda.train.data.tables import read_columns
from siamcuda.train.errors import InputError

__all__ = ["TextPairs", "decode_texts", "encode_texts", "load_text_pairs"]


def encode_texts(texts: Sequence[str]) -> Tensor:
    """UTF-8 bytes of each text, (B, L) uint8; L is the longest's, shorter ones end in zeros.

    >>> encode_texts(["ab", "c"]).tolist()
    [[97, 98], [99, 0]]
    """
    rows = [torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) for text in texts if text]
    length = max((len(row) for row in rows), default=0)
    encoded = torch.zeros((len(texts), length), dtype=torch.uint8)
    filled = iter(rows)
    for place, text in enumerate(texts):
        if text:
            row = next(filled)
            encoded[place, : len(row)] = row
    return encoded


def decode_texts(encoded: Tensor) -> list[str]:
    """The texts of (B, L) uint8: :func:`encode_texts` undone.

    >>> decode_texts(encode_texts(["naïve", "a", ""]))
    ['naïve', 'a', '']
    """
    return [bytes(row).rstrip(b"\0").decode() for row in encoded.tolist()]


@dataclass(frozen=True, eq=False)
class TextPairs:
    """Pairs of texts that belong together, or that people have scored.

    Pairs with the same left text are of one class: two examples of one gloss are no negatives of
    each other.

    Args:
        left: N texts.
        right: N texts.
        scores: (N,) float64, how similar people find the two; None where nobody was asked.

    Raises:
        InputError: the numbers differ, a text holds a zero character, a score isn't finite.

    Example:
        >>> pairs = TextPairs(("car", "car", "tree"), ("automobile", "train", "forest"))
        >>> pairs.labels.tolist(), pairs.names
        ([0, 0, 1], ('car', 'tree'))
        >>> pairs.load(torch.tensor([2])).shape
        torch.Size([1, 2, 6])
    """

    left: tuple[str, ...]
    right: tuple[str, ...]
    scores: Tensor | None = None
    labels: Tensor = field(init=False)  # (N,) int64, one class a left text
    names: tuple[str, ...] = field(init=False)  # the left texts, each once

    def __post_init__(self) -> None:
        count = len(self.left)
        if len(self.right) != count:
            raise InputError(f"texts: {count} on the left, {len(self.right)} on the right")
        scores = self.scores
        if scores is not None and (scores.dtype != torch.float64 or scores.shape != (count,)):
            raise InputError(
                f"scores: ({count},) float64 is expected, got {tuple(scores.shape)} {scores.dtype}"
            )
        if scores is not None and not bool(scores.isfinite().all()):
            raise InputError("scores: every score must be finite")
        for row, text in enumerate(zip(self.left, self.right, strict=True)):
            if "\0" in text[0] or "\0" in text[1]:
                raise InputError(f"texts: pair {row} holds a zero character, which ends a text")
        places: dict[str, int] = {}
        labels = [places.setdefault(text, len(places)) for text in self.left]
        object.__setattr__(self, "labels", torch.tensor(labels, dtype=torch.int64))
        object.__setattr__(self, "names", tuple(places))

    def __len__(self) -> int:
        return len(self.left)

    def at(self, rows: Tensor) -> TextPairs:
        """Keep ``rows`` (M,) int64, in that order; classes are numbered anew."""
        places = rows.tolist()
        return TextPairs(
            tuple(self.left[place] for place in places),
            tuple(self.right[place] for place in places),
            None if self.scores is None else self.scores[rows],
        )

    def load(self, rows: Tensor) -> Tensor:
        """Pairs of ``rows`` (B,) int64: (B, 2, L) uint8, as :func:`encode_texts` makes them."""
        texts = [side[row] for row in rows.tolist() for side in (self.left, self.right)]
        return encode_texts(texts).reshape(len(rows), 2, -1)

    def digest(self) -> str:
        """SHA-256 of texts and scores."""
        scores = None if self.scores is None else self.scores.tolist()
        return digest_of([list(self.left), list(self.right), scores], ())


def load_text_pairs(
    path: Path, left: str = "left", right: str = "right", score: str = "score"
) -> TextPairs:
    """Read a CSV or TSV file of text pairs; its first row names the columns.

    Args:
        path: the table, UTF-8; its name ends in .tsv where tabs part its fields.
        left: column of the left texts.
        right: column of the right texts.
        score: column of human scores; none are read where the file has no such column.

    Raises:
        InputError: names the file and the line that can't be used.
    """
    lines, rows = read_columns(path, (left, right), (score,))
    for line, row in zip(lines, rows, strict=True):
        if not row[0] or not row[1]:
            raise InputError(f"data: {path}: line {line}: a text is empty")
        if "\0" in row[0] + row[1]:
            raise InputError(f"data: {path}: line {line}: a zero character")
    return make_pairs(path, lines, rows)


def make_pairs(path: Path, lines: Sequence[int], rows: Sequence[Sequence[str]]) -> TextPairs:
    """Pairs of rows of two texts and perhaps a score; an error names the line."""
    scores = None
    if rows and len(rows[0]) > 2:
        values = []
        for line, row in zip(lines, rows, strict=True):
            try:
                values.append(float(row[2]))
            except ValueError:
                values.append(math.nan)
            if not math.isfinite(values[-1]):
                raise InputError(f"data: {path}: line {line}: {row[2]!r} is no score")
        scores = torch.tensor(values, dtype=torch.float64)
    return TextPairs(tuple(row[0] for row in rows), tuple(row[1] for row in rows), scores)
