"""Exact search: every query against every entry of a gallery, nearest first or within a radius.

>>> import torch, siamcuda
>>> gallery = siamcuda.Gallery(torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]]), ids=[7, 8, 9])
>>> distances, ids = gallery.search(torch.tensor([[0.0, 1.0]]), k=2)
>>> distances.tolist(), ids.tolist()
([[1.0, 2.0]], [[7, 9]])

One answer. The distance of two rows is the sum of their squared differences in one fixed order of
fused multiply-adds. Screening in a faster form only ever drops what a proven bound rules out, so
results have the same bits on every CPU and GPU, for any number of threads, in whatever batch a
query comes, and however the gallery was split (docs/math.md).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from siamcuda import _ops
from siamcuda._stores import (
    MANY_QUERIES,
    FileStore,
    MemoryStore,
    count_nonfinite,
    screens_by_codes,
)
from siamcuda._tensor_file import load_safetensors, open_matrix, save_safetensors

__all__ = ["Gallery", "Neighbours", "RangeNeighbours", "knn"]

_METRICS = ("sqeuclidean", "euclidean", "cosine", "hamming")
_SCREENING = ("auto", "int8", "float32")
_NONFINITE = ("warn", "raise", "allow")
#: What a saved gallery says of itself.
_FORMAT = "siamcuda gallery 1"

Vectors = Any  # Tensor, array, path or memory map
Progress = Callable[[int, int], None]


class Neighbours(NamedTuple):
    """What :meth:`Gallery.search` returns; unpacks as ``D, I``."""

    distances: Any  # (Q, k), ascending in each row
    ids: Any  # (Q, k) int64


class RangeNeighbours(NamedTuple):
    """What :meth:`Gallery.range_search` returns; unpacks as ``lims, D, I``."""

    lims: Any  # (Q + 1,) int64: query i has entries lims[i] to lims[i + 1]
    distances: Any  # (lims[-1],), ascending for each query
    ids: Any  # (lims[-1],) int64


class Gallery:
    """Vectors that are searched exactly, by brute force at the speed of the machine.

    Args:
        vectors: ``(N, D)`` float16, bfloat16, float32 or float64; for ``"hamming"`` packed bits,
            ``(N, bytes)`` uint8 (``numpy.packbits``). A tensor (on the CPU or a GPU), an array, a
            path of a ``.npy`` or ``.safetensors`` file, or a ``numpy.memmap``. Tensors and arrays
            are borrowed, not copied (cosine keeps a normalised copy): don't change them. Files and
            memory maps are streamed at each search, with bounded memory.
        ids: ``(N,)`` unique integers ≥ 0 that searches return; by default the row.
        metric: ``"sqeuclidean"`` ``Σ(q−g)²``; ``"euclidean"`` its square root; ``"cosine"``
            ``1 − cos = ½|q̂−ĝ|²``, 1 where a vector is zero; ``"hamming"`` the number of bits that
            differ.
        screening: how candidates are found; results don't depend on it. ``"int8"``: by 8-bit codes,
            a quarter more memory for float32 (CPUs with AVX-512 VNNI); ``"float32"``: by the
            expanded form ``|q|² + |g|² − 2·q·g``; ``"auto"``: the fastest that is here.
        nonfinite: what rows with NaN or infinities lead to: ``"warn"`` (a warning; the default for
            vectors in memory), ``"raise"`` (ValueError; the default for files, where it is found
            out during a search) or ``"allow"``.

    Raises:
        ValueError: for shapes, values, files and options that don't fit; the message names which.
        TypeError: for dtypes that don't fit.

    Example:
        >>> import torch, siamcuda
        >>> gallery = siamcuda.Gallery(torch.eye(4), metric="cosine")
        >>> gallery.search(torch.eye(4)[:1], k=2)
        Neighbours(distances=tensor([[0., 1.]]), ids=tensor([[0, 1]]))
    """

    def __init__(
        self,
        vectors: Vectors,
        ids: Any = None,
        metric: str = "sqeuclidean",
        *,
        screening: str = "auto",
        nonfinite: str | None = None,
    ) -> None:
        self._begin(vectors, ids, metric, screening, nonfinite)

    def _begin(
        self,
        vectors: Vectors,
        ids: Any,
        metric: str,
        screening: str,
        nonfinite: str | None,
        prepared: bool = False,
    ) -> None:
        _one_of("metric", metric, _METRICS)
        _one_of("screening", screening, _SCREENING)
        if nonfinite is not None:
            _one_of("nonfinite", nonfinite, _NONFINITE)
        self._metric = metric
        self._nonfinite = nonfinite or "warn"
        self._store: MemoryStore | FileStore
        if isinstance(vectors, (str, os.PathLike)) or _has_file(vectors):
            matrix = open_matrix(vectors)
            _check_dtype("vectors", matrix.dtype, metric)
            codes = self._wants_codes(screening, matrix.dtype, torch.device("cpu"))
            refuse = nonfinite in (None, "raise")
            self._store = FileStore(matrix, self._prepare, prepared, codes, refuse)
        else:
            rows = _matrix("vectors", vectors, metric)
            codes = self._wants_codes(screening, rows.dtype, rows.device)
            self._store = MemoryStore(rows, self._prepare, prepared, codes)
            if nonfinite != "allow":  # counting reads all rows
                self._report(self._store.nonfinite, len(rows), stacklevel=4)
        self._ids: Tensor | None = None
        if ids is not None:
            self._ids = _checked_ids(ids, len(self._store)).to(self._store.device)

    def _wants_codes(self, screening: str, dtype: torch.dtype, device: torch.device) -> bool:
        can = self._metric != "hamming" and dtype != torch.float64 and screens_by_codes(device)
        if screening == "int8" and not can:
            raise ValueError(
                f"screening: 'int8' is not available for {dtype} and metric {self._metric!r} on "
                f"{device}; 'auto' takes what is"
            )
        return can and screening != "float32"

    def _prepare(self, rows: Tensor) -> Tensor:
        """Rows as they are searched."""
        if self._metric != "cosine":
            return rows
        normalised: Tensor = _ops.namespace.gallery_normalize(rows)
        return normalised

    def _report(self, count: int, rows: int, stacklevel: int) -> None:
        """Do what ``nonfinite`` says where ``count`` of so many new rows are not finite."""
        if not count or self._nonfinite == "allow":
            return
        message = f"vectors: {count} of {rows} rows hold NaN or infinities"
        if self._nonfinite == "raise":
            raise ValueError(message)
        warnings.warn(f"{message}; they come after all others", stacklevel=stacklevel)

    # --- what it holds --------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._store)

    def __repr__(self) -> str:
        where = (
            f"streamed from {self._store.path}"
            if isinstance(self._store, FileStore)
            else str(self.device)
        )
        return (
            f"Gallery({len(self)} x {self.columns} {self.dtype}, metric={self._metric!r}, {where})"
        )

    @property
    def metric(self) -> str:
        """Name of the distance."""
        return self._metric

    @property
    def columns(self) -> int:
        """D, the columns of a vector; for hamming its bytes."""
        return self._store.columns

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored vectors."""
        return self._store.dtype

    @property
    def device(self) -> torch.device:
        """Where the vectors are, and queries must be."""
        return self._store.device

    @property
    def ids(self) -> Tensor:
        """``(N,)`` int64, in order of insertion."""
        if self._ids is None:
            return torch.arange(len(self), device=self.device)
        return self._ids.clone()

    @property
    def nonfinite(self) -> int | None:
        """How many rows hold NaN or infinities; None for a file that no search has read yet."""
        return self._store.nonfinite

    # --- search ---------------------------------------------------------------------------------

    def search(self, queries: Vectors, k: int, *, progress: Progress | None = None) -> Neighbours:
        """Find the k nearest entries of every query.

        Args:
            queries: ``(Q, D)`` on the gallery's device, a tensor or an array; any float dtype for a
                gallery of float32 or less but float64, which needs a gallery of float64. For
                hamming ``(Q, bytes)`` uint8. A query is not excluded from its own gallery.
            k: how many, ≥ 1. More than the gallery holds are padded with (+inf, -1), for hamming
                with (2³¹ − 1, -1).
            progress: called as ``progress(done, rows)`` after each part of a streamed gallery.

        Returns:
            ``D, I``: ``(Q, k)`` distances in the metric's unit (float32; float64 for float64; int32
            for hamming) and ``(Q, k)`` int64 ids. Each row ascends: finite distances, +inf, NaN,
            padding; equal distances in order of insertion. Arrays if ``queries`` is an array.

        Raises:
            ValueError: k < 1, no query or an empty gallery, shapes that don't fit, a file that is
                truncated or holds NaN.
            TypeError: a dtype that doesn't fit.

        Example:
            >>> import torch, siamcuda
            >>> gallery = siamcuda.Gallery(torch.arange(5.0).unsqueeze(1))
            >>> gallery.search(torch.tensor([[1.2]]), k=2).ids
            tensor([[1, 2]])
        """
        k = _checked_k(k)
        distances, positions = self._nearest(self._queries(queries), k, progress)
        return Neighbours(*_as_given(queries, self._unit(distances), self._named(positions)))

    def range_search(
        self, queries: Vectors, radius: float, *, progress: Progress | None = None
    ) -> RangeNeighbours:
        """Find all entries nearer than a radius.

        Args:
            queries: as for :meth:`search`.
            radius: in the metric's unit (squared for sqeuclidean); an entry is in if its distance
                is less, strictly.
            progress: as for :meth:`search`.

        Returns:
            ``lims, D, I``: the entries of query i are ``D[lims[i]:lims[i+1]]`` and their ids
            ``I[lims[i]:lims[i+1]]``, by distance, equal ones in order of insertion.

        Raises:
            ValueError: a radius of NaN; else as for :meth:`search`.

        Example:
            >>> import torch, siamcuda
            >>> gallery = siamcuda.Gallery(torch.arange(5.0).unsqueeze(1), metric="euclidean")
            >>> lims, distances, ids = gallery.range_search(torch.tensor([[1.0], [9.0]]), 1.5)
            >>> lims.tolist(), distances.tolist(), ids.tolist()
            ([0, 3, 3], [0.0, 1.0, 1.0], [1, 0, 2])
        """
        radius = _checked_radius(radius)
        counts, distances, positions = self._within(self._queries(queries), radius, progress)
        found = self._unit(distances), self._named(positions)
        return RangeNeighbours(*_as_given(queries, _lims(counts), *found))

    # What follows takes checked queries and gives squared distances and positions; a gallery of
    # several processes (siamcuda.distributed) puts those of its shards together.

    def _lists(self, queries: int, k: int) -> tuple[Tensor, Tensor]:
        """``(queries, k)`` distances and positions of padding."""
        dtype = self._distance_dtype
        distances = torch.full((queries, k), _padding(dtype), dtype=dtype, device=self.device)
        return distances, torch.full_like(distances, -1, dtype=torch.int64)

    def _nearest(self, rows: Tensor, k: int, progress: Progress | None) -> tuple[Tensor, Tensor]:
        """Distances and positions, ``(Q, k)``."""
        distances, positions = self._lists(len(rows), k)
        for part in self._store.parts(len(rows)):
            distances, positions = _ops.namespace.gallery_knn(
                rows, part.rows, part.screen, part.first, self._metric, distances, positions
            )
            if progress is not None:
                progress(part.first + len(part.rows), len(self))
        return distances, positions

    def _within(
        self, rows: Tensor, radius: float, progress: Progress | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """How many for each query, ``(Q,)``, then the distances and positions of all in turn."""
        distances, positions = self._lists(0, 0)
        parts = [(positions.new_zeros(len(rows)), distances.view(-1), positions.view(-1))]
        for part in self._store.parts(len(rows)):
            parts.append(
                _ops.namespace.gallery_range(
                    rows, part.rows, part.screen, part.first, self._metric, radius
                )
            )
            if progress is not None:
                progress(part.first + len(part.rows), len(self))
        return _joined(parts[1:] or parts)

    @property
    def _distance_dtype(self) -> torch.dtype:
        if self._metric == "hamming":
            return torch.int32
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def _queries(self, queries: Vectors) -> Tensor:
        rows = self._fitting(queries)
        if len(self) == 0:
            raise ValueError("gallery: is empty, nothing can be found in it")
        if len(rows) == 0:
            raise ValueError(f"queries: at least one is needed, got shape {tuple(rows.shape)}")
        return rows

    def _fitting(self, queries: Vectors) -> Tensor:
        """Queries, of any number, as they are compared."""
        rows = _matrix("queries", queries, self._metric)
        if not isinstance(queries, Tensor):
            rows = rows.to(self.device)
        if rows.shape[1] != self.columns:
            raise ValueError(
                f"queries: have {rows.shape[1]} columns, the gallery has {self.columns}"
            )
        if rows.device != self.device:
            raise ValueError(f"queries: are on {rows.device}, the gallery is on {self.device}")
        if rows.dtype == torch.float64 and self.dtype != torch.float64:
            raise TypeError(f"queries: float64 needs a gallery of float64, this is {self.dtype}")
        if self._metric == "cosine":
            rows = rows.double() if self.dtype == torch.float64 else rows
            rows = _ops.namespace.gallery_normalize(rows)
        return rows

    def _unit(self, distances: Tensor) -> Tensor:
        """Squared distances in the unit of the metric."""
        if self._metric == "euclidean":
            root: Tensor = _ops.namespace.gallery_root(distances)
            return root
        return distances * 0.5 if self._metric == "cosine" else distances

    def _named(self, positions: Tensor) -> Tensor:
        if self._ids is None:
            return positions
        return torch.where(positions < 0, positions, self._ids[positions.clamp(min=0)])

    # --- changes --------------------------------------------------------------------------------

    def add(self, vectors: Vectors, ids: Any = None) -> None:
        """Append entries.

        Args:
            vectors: ``(n, D)``, stored in the gallery's dtype.
            ids: ``(n,)``, needed if the gallery has ids of its own; else the row is the id.

        Raises:
            ValueError: shapes or ids that don't fit, a streamed gallery, with ``nonfinite="raise"``
                rows that are not finite; nothing is changed then.
        """
        store = self._changeable("add")
        rows = _matrix("vectors", vectors, self._metric).to(self.device)
        if rows.shape[1] != self.columns:
            raise ValueError(
                f"vectors: have {rows.shape[1]} columns, the gallery has {self.columns}"
            )
        if rows.dtype != self.dtype and not torch.can_cast(rows.dtype, self.dtype):
            raise TypeError(f"vectors: {rows.dtype} can't be stored in a gallery of {self.dtype}")
        if (ids is None) != (self._ids is None) and len(self) > 0:
            raise ValueError(
                "ids: the gallery has ids of its own, so new entries need them"
                if ids is None
                else "ids: the gallery numbers its rows, so new entries have no ids of their own"
            )
        merged = None
        if ids is not None:
            new = _checked_ids(ids, len(rows)).to(self.device)
            merged = new if self._ids is None else torch.cat([self._ids, new])
            _check_unique(merged)
        rows = store.ready(rows)
        self._report(count_nonfinite(rows), len(rows), stacklevel=3)
        store.add(rows)
        self._ids = merged

    def remove(self, ids: Any) -> int:
        """Drop entries, keep the order and the ids of the others; return how many were dropped.

        Args:
            ids: integers; a gallery that numbered its rows keeps those numbers as ids from now on.

        Raises:
            ValueError: an id that is not there, or a streamed gallery; nothing is changed then.
        """
        store = self._changeable("remove")
        wanted = torch.as_tensor(ids, device=self.device).reshape(-1)
        if wanted.dtype.is_floating_point or wanted.dtype == torch.bool:
            raise TypeError(f"ids: integers are expected, got {wanted.dtype}")
        own = self.ids
        known = torch.isin(wanted, own)
        if not bool(known.all()):
            raise ValueError(f"ids: {int(wanted[~known][0])} is not in the gallery")
        positions = (~torch.isin(own, wanted)).nonzero()[:, 0]
        dropped = len(own) - len(positions)
        store.keep(positions)
        self._ids = own[positions]
        return dropped

    def _changeable(self, what: str) -> MemoryStore:
        if isinstance(self._store, FileStore):
            raise ValueError(f"{what}: a gallery that is streamed from a file can't be changed")
        return self._store

    # --- files ----------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write vectors, ids and metric to a safetensors file, whole or not at all.

        For cosine the normalised vectors are written.

        Args:
            path: ends in ``.safetensors``.

        Raises:
            ValueError: another suffix, or a streamed gallery, which is a file already.
        """
        where = _safetensors_path(path)
        if isinstance(self._store, FileStore):
            raise ValueError(f"save: this gallery is streamed from {self._store.path}, a file")
        tensors = {"vectors": self._store.rows}
        if self._ids is not None:
            tensors["ids"] = self._ids
        metadata = {
            "format": _FORMAT,
            "metric": self._metric,
            "count": str(len(self)),
            "columns": str(self.columns),
        }
        save_safetensors(where, tensors, metadata)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        stream: bool = False,
        device: torch.device | str = "cpu",
        screening: str = "auto",
        nonfinite: str | None = None,
    ) -> Gallery:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            stream: leave the vectors in the file and read them at each search.
            device: where they go otherwise.
            screening: as for :class:`Gallery`.
            nonfinite: as for :class:`Gallery`.

        Raises:
            ValueError: the file is no gallery, truncated, or contradicts itself.
        """
        where = _safetensors_path(path)
        tensors, metadata = load_safetensors(where, skip=("vectors",) if stream else ())
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{where}: not a gallery: its header has no format {_FORMAT!r}")
        metric, ids = metadata.get("metric", ""), tensors.get("ids")
        if metric not in _METRICS:
            raise ValueError(f"{where}: unknown metric {metric!r}")
        matrix = open_matrix(where)
        said = metadata.get("count"), metadata.get("columns")
        if said != (str(matrix.rows), str(matrix.columns)):
            raise ValueError(
                f"{where}: the header says {said[0]} x {said[1]}, the vectors are "
                f"{matrix.rows} x {matrix.columns}"
            )
        if ids is not None and (ids.dtype != torch.int64 or ids.shape != (matrix.rows,)):
            raise ValueError(f"{where}: ids don't fit the vectors")
        vectors: Vectors = where if stream else tensors["vectors"].to(device)
        gallery = cls.__new__(cls)
        gallery._begin(vectors, ids, metric, screening, nonfinite, prepared=True)
        return gallery


def knn(queries: Vectors, gallery: Vectors, k: int, metric: str = "sqeuclidean") -> Neighbours:
    """Find the k nearest rows of ``gallery`` for every query, keeping nothing.

    Args:
        queries: ``(Q, D)``.
        gallery: ``(N, D)``, or whatever else :class:`Gallery` takes.
        k: how many, ≥ 1.
        metric: as for :class:`Gallery`.

    Returns:
        ``D, I`` as :meth:`Gallery.search` returns them; I are rows.

    Example:
        >>> import torch, siamcuda
        >>> siamcuda.knn(torch.tensor([[2.2]]), torch.tensor([[1.0], [2.0], [4.0]]), k=1).ids
        tensor([[1]])
    """
    # Coding the rows pays where many queries read the codes.
    many = hasattr(queries, "__len__") and len(queries) >= MANY_QUERIES
    screening = "auto" if many else "float32"
    return Gallery(gallery, metric=metric, screening=screening, nonfinite="allow").search(
        queries, k
    )


# --- arguments ------------------------------------------------------------------------------------


def _one_of(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _has_file(vectors: object) -> bool:
    """Whether an array is a memory map of a file, and not a private copy of one."""
    return isinstance(vectors, np.memmap) and vectors.mode != "c" and vectors.filename is not None


def _check_dtype(name: str, dtype: torch.dtype, metric: str) -> None:
    packed = metric == "hamming"
    if packed and dtype != torch.uint8:
        raise TypeError(f"{name}: packed bits in uint8 are expected for hamming, got {dtype}")
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if not packed and dtype not in floats:
        raise TypeError(
            f"{name}: float16, bfloat16, float32 or float64 is expected for {metric}, got {dtype}"
        )


def _matrix(name: str, values: Vectors, metric: str) -> Tensor:
    """Rows whose columns are contiguous, without a graph."""
    if isinstance(values, Tensor):
        rows = values.detach()
    elif isinstance(values, np.ndarray):
        if values.dtype.kind not in "fu" or not values.dtype.isnative:
            raise TypeError(f"{name}: a float or uint8 array is expected, got {values.dtype}")
        if values.dtype.itemsize not in (1, 2, 4, 8):
            raise TypeError(f"{name}: a float or uint8 array is expected, got {values.dtype}")
        usable = values.flags.writeable and min(values.strides, default=0) >= 0
        rows = torch.from_numpy(values if usable else values.copy())
    else:
        raise TypeError(f"{name}: a tensor or an array is expected, got {type(values).__name__}")
    if rows.dim() != 2:
        raise ValueError(f"{name}: shape (N, D) is expected, got {tuple(rows.shape)}")
    _check_dtype(name, rows.dtype, metric)
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def _checked_ids(ids: Any, count: int) -> Tensor:
    found = torch.as_tensor(ids)
    if found.dtype.is_floating_point or found.dtype in (torch.bool, torch.complex64):
        if found.numel():
            raise TypeError(f"ids: integers are expected, got {found.dtype}")
        found = found.long()
    if found.shape != (count,):
        raise ValueError(f"ids: shape ({count},) is expected, got {tuple(found.shape)}")
    found = found.to(torch.int64, copy=True)
    if count and int(found.min()) < 0:
        raise ValueError(f"ids: must be at least 0, got {int(found.min())}")
    _check_unique(found)
    return found


def _check_unique(ids: Tensor) -> None:
    ordered = ids.sort().values
    twice = (ordered[1:] == ordered[:-1]).nonzero()
    if len(twice):
        raise ValueError(f"ids: must be unique, {int(ordered[twice[0, 0]])} stands twice")


def _safetensors_path(path: str | os.PathLike[str]) -> Path:
    where = Path(path)
    if where.suffix != ".safetensors":
        raise ValueError(f"{where}: a gallery's file ends in .safetensors")
    return where


def _checked_k(k: Any) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise TypeError(f"k must be an integer, got {k!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return int(k)


def _checked_radius(radius: Any) -> float:
    radius = float(radius)
    if math.isnan(radius):
        raise ValueError("radius must not be NaN")
    return float(radius)


# --- results --------------------------------------------------------------------------------------


def _padding(dtype: torch.dtype) -> float | int:
    return math.inf if dtype.is_floating_point else torch.iinfo(dtype).max


def _as_given(queries: Vectors, *results: Tensor) -> tuple[Any, ...]:
    if isinstance(queries, np.ndarray):
        return tuple(result.cpu().numpy() for result in results)
    return results


def _lims(counts: Tensor) -> Tensor:
    """Where the entries of each query begin, and where the last ones end."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """What parts of a gallery found, put together for each query by distance, then position."""
    if len(parts) == 1:
        return parts[0]
    counts = torch.stack([part[0] for part in parts]).sum(0)
    queries = torch.cat([
        torch.repeat_interleave(torch.arange(len(n), device=n.device), n) for n, _, _ in parts
    ])  # fmt: skip
    distances = torch.cat([part[1] for part in parts])
    positions = torch.cat([part[2] for part in parts])
    # Positions ascend from part to part, so stable sorts keep them in order among equals.
    by_distance = distances.argsort(stable=True)
    order = by_distance[queries[by_distance].argsort(stable=True)]
    return counts, distances[order], positions[order]
