"""What is known of the rows that were compared, besides their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Samples"]


@dataclass(frozen=True)
class Samples:
    """Rows of embeddings as people know them: whom each shows, and its picture.

    Example:
        >>> samples = Samples(["Ada", "Ada", "Grace"], columns=128)
        >>> len(samples), samples.identities
        (3, 2)
    """

    labels: Sequence[object] | NDArray[np.generic]  # (N,) printed as they are
    images: Sequence[Path] | None = None  # (N,) a picture file for each row
    columns: int | None = None  # D of the embeddings
    dtype: str | None = None
    source: str | None = None  # where they came from, in words

    def __post_init__(self) -> None:
        if self.images is not None and len(self.images) != len(self.labels):
            raise ValueError(
                f"images: one for each row is expected, got {len(self.images)} for "
                f"{len(self.labels)} rows"
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

    @property
    def identities(self) -> int:
        """How many different labels there are."""
        return len({str(label) for label in self.labels})
