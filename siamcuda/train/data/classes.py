"""Classes by name: subsets of them, the natural order of names, digests of examples."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from siamcuda.train.errors import InputError

__all__ = ["check_labels", "digest_of", "natural", "number_classes", "rows_of"]


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key: s2 comes before s10, since runs of digits compare as numbers.

    >>> sorted(["s10", "s1", "s2"], key=natural)
    ['s1', 's2', 's10']
    """
    parts = re.findall(r"\d+|\D+", name)
    # Names such as 1 and 01 have the same parts: the name itself keeps their order certain.
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts], name


def number_classes(words: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (N,) int64 of the classes that ``words`` name, and their names in natural order."""
    names = tuple(sorted(set(words), key=natural))
    positions = {name: position for position, name in enumerate(names)}
    return torch.tensor([positions[word] for word in words], dtype=torch.int64), names


def rows_of(
    labels: Tensor, names: Sequence[str], wanted: Sequence[str]
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Rows of the classes ``wanted``, in the order given, with their labels 0, 1, 2, ..."""
    unknown = next((name for name in wanted if name not in names), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f" (there are {len(names)})"
        raise InputError(f"data: no class is called {unknown!r}{hint}")
    rows = [torch.nonzero(labels == names.index(name))[:, 0] for name in wanted]
    found = torch.repeat_interleave(torch.tensor([len(r) for r in rows], dtype=torch.int64))
    return torch.cat([labels.new_zeros(0), *rows]), found, tuple(wanted)


def check_labels(labels: Tensor, names: Sequence[str], count: int) -> None:
    """Raise InputError unless ``labels`` are ``count`` int64 positions in ``names``."""
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise InputError(
            f"labels: ({count},) int64 is expected, got {tuple(labels.shape)} {labels.dtype}"
        )
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise InputError(
            f"labels: positions in {len(names)} names are expected, got {int(labels.min())} to "
            f"{int(labels.max())}"
        )


def digest_of(described: Any, parts: Iterable[Any]) -> str:
    """SHA-256 of something JSON can say and of buffers; each length counts, so none can shift."""
    digest = hashlib.sha256(json.dumps(described).encode())
    for part in parts:
        view = memoryview(part).cast("B") if len(part) else b""
        digest.update(len(view).to_bytes(8, "little"))
        digest.update(view)
    return digest.hexdigest()
