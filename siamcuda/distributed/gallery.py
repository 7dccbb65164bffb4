"""Exact search in a gallery whose rows are spread over the ranks of a process group.

    # search.py, started by: torchrun --nproc-per-node 4 search.py
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    gallery = siamcuda.distributed.ShardedGallery(f"shard{rank}.npy")
    distances, ids = gallery.search(queries, k=10)      # queries: this rank's

Each rank holds its own rows and asks with its own queries. The answer is, bit for bit, that of
:class:`siamcuda.Gallery` with all rows in rank order.

**How.** Queries go to all ranks, each searches its own rows for all of them, and what it found goes
back to the rank that asked, which merges the sorted lists. Squared distances travel, since roots of
different ones may be equal. Lists come in rank order, so a stable sort by distance leaves equal
ones in the order of the whole gallery, and neither positions nor ids need to be compared.

**What moves, and memory.** The queries of all ranks, and for each query and rank k distances and
ids. A rank has all queries and its k nearest rows for each of them in memory, never another rank's
rows, and merges in rounds of bounded size. Used are all_gather, broadcast (where sizes differ) and
all_to_all_single, on any dtype as bytes. Tested with gloo on the CPU; not run with nccl.

**Failures.** See :class:`ShardedGallery`.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from siamcuda.distributed._peers import Header, Peers
from siamcuda.gallery import (
    Gallery,
    Neighbours,
    Progress,
    RangeNeighbours,
    Vectors,
    _as_given,
    _checked_k,
    _checked_radius,
    _joined,
    _lims,
)

__all__ = ["ShardedGallery"]

#: Bytes of lists that a rank receives in one round of merging; sorting needs about four times that.
_ROUND_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class _Asked:
    """The queries of all ranks, on one of them."""

    rows: Tensor  # [sum(counts), D] in rank order, as they are compared
    counts: list[int]


class ShardedGallery:
    """Vectors spread over processes, searched exactly: the answers of one process that has all.

    Making one is collective, and so are its searches: every rank of the group takes part, in the
    same order. Rank r's rows follow those of rank r−1.

    Args:
        vectors: ``(n, D)``, this rank's rows: whatever :class:`siamcuda.Gallery` takes, streamed
            from a file too. n may differ between ranks and be 0, with the D of the others.
        ids: ``(n,)`` integers ≥ 0, unique over all ranks, that searches return; by default the
            row in the whole gallery. Given by all ranks that have rows, or by none.
        metric: ``"sqeuclidean"``, ``"euclidean"``, ``"cosine"`` or ``"hamming"``.
        screening: as for :class:`siamcuda.Gallery`; may differ between ranks.
        nonfinite: as for :class:`siamcuda.Gallery`, about this rank's rows.
        group: the process group; by default the whole world.

    Raises:
        ValueError: as :class:`siamcuda.Gallery`, on every rank and naming the one at fault; also
            where ranks differ in metric, D or whether they have ids, and where an id stands twice.
        TypeError: a dtype that doesn't fit, or another than that of the other ranks.
        RuntimeError: no process group, this process is not in it, or another rank is gone.

    An error on one rank, in its arguments or while it searches, raises on every rank, with the same
    message, and the gallery can be used again. A rank that is gone raises on the others too, at
    the latest after the group's timeout; then the group is broken. That timeout must be longer than
    a rank may have to wait for the search of a slower one, or of a larger shard.

    Example:
        Under torchrun ``init_process_group()`` needs no more arguments; here is a group of one.

        >>> import torch, siamcuda
        >>> torch.distributed.init_process_group(
        ...     "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        ... )
        >>> gallery = siamcuda.distributed.ShardedGallery(torch.eye(4), ids=[10, 11, 12, 13])
        >>> len(gallery)
        4
        >>> gallery.search(torch.eye(4)[1:2], k=2)
        Neighbours(distances=tensor([[0., 2.]]), ids=tensor([[11, 10]]))
        >>> torch.distributed.destroy_process_group()
    """

    def __init__(
        self,
        vectors: Vectors,
        ids: Any = None,
        metric: str = "sqeuclidean",
        *,
        screening: str = "auto",
        nonfinite: str | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._group = group
        peers = self._peers()
        caught: list[warnings.WarningMessage] = []

        def header() -> Header:
            with warnings.catch_warnings(record=True) as raised:
                warnings.simplefilter("always")
                self._shard = Gallery(vectors, ids, metric, screening=screening,
                                      nonfinite=nonfinite)  # fmt: skip
            caught.extend(raised)
            # A gallery of cosine keeps other rows than those given.
            dtype = getattr(vectors, "dtype", self._shard.dtype)
            return {
                "call": "a new gallery",
                "rows": len(self._shard),
                "metric": metric,
                "columns": self.columns,
                "dtype": str(dtype).removeprefix("torch."),
                "ids": ("not given" if ids is None else "given") if len(self._shard) else None,
            }

        headers = peers.agree(
            header,
            [
                ("call", "what they call", ValueError),
                ("metric", "the metric", ValueError),
                ("columns", "D, the columns of vectors", ValueError),
                ("dtype", "the dtype of vectors", TypeError),
                ("ids", "whether ids are given", ValueError),
            ],
        )
        self._counts = tuple(int(header["rows"]) for header in headers)
        self._first = sum(self._counts[: peers.rank])
        if any(header["ids"] == "given" for header in headers):
            _check_unique(peers, self._shard.ids)
        for warning in caught:  # from where the gallery is made
            warnings.warn(warning.message, warning.category, stacklevel=2)

    def _peers(self, method: str = "") -> Peers:
        return Peers(f"ShardedGallery{method}", "Gallery", self._group)

    # --- what it holds --------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of entries of all ranks."""
        return sum(self._counts)

    def __repr__(self) -> str:
        return (
            f"ShardedGallery({len(self)} x {self.columns}, rows {self._first} to "
            f"{self._first + len(self._shard)} here: {self._shard!r})"
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """How many entries each rank has."""
        return self._counts

    @property
    def metric(self) -> str:
        """Name of the distance."""
        return self._shard.metric

    @property
    def columns(self) -> int:
        """D, the columns of a vector; for hamming its bytes."""
        return self._shard.columns

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored vectors."""
        return self._shard.dtype

    @property
    def device(self) -> torch.device:
        """Where this rank's vectors are, and its queries must be."""
        return self._shard.device

    @property
    def nonfinite(self) -> int | None:
        """How many of this rank's rows hold NaN or infinities; None for a file not read yet."""
        return self._shard.nonfinite

    # --- search ---------------------------------------------------------------------------------

    def search(self, queries: Vectors, k: int, *, progress: Progress | None = None) -> Neighbours:
        """Find the k nearest entries, of all ranks, of every query of this rank. Collective.

        Args:
            queries: ``(Q, D)``, this rank's, as for :meth:`siamcuda.Gallery.search`; Q may differ
                between ranks and be 0, though not on all. Float dtypes may differ too.
            k: how many, ≥ 1, the same on all ranks. More than the gallery holds are padded.
            progress: called as ``progress(done, rows)`` with rows of this rank's shard, after each
                part of a streamed one. What it raises ends the search on all ranks.

        Returns:
            ``D, I``: ``(Q, k)`` distances and ``(Q, k)`` int64 ids, bit for bit as
            :meth:`siamcuda.Gallery.search` of one process with all rows returns them; equal
            distances in rank order, then in order of insertion.

        Raises:
            ValueError, TypeError: as :meth:`siamcuda.Gallery.search`, on every rank and naming the
                one at fault; also where ranks differ in k.
            RuntimeError: another error on a rank, or a rank that is gone.

        Example:
            >>> import torch, siamcuda
            >>> torch.distributed.init_process_group(
            ...     "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
            ... )
            >>> gallery = siamcuda.distributed.ShardedGallery(torch.arange(5.0).unsqueeze(1))
            >>> gallery.search(torch.tensor([[1.2]]), k=2).ids
            tensor([[1, 2]])
            >>> torch.distributed.destroy_process_group()
        """
        peers = self._peers(".search")
        asked = self._ask(peers, queries, lambda: f"search(k={_checked_k(k)})")
        own = asked.counts[peers.rank]
        # A shard lists its nearest rows without padding, whatever k is.
        widths = [min(k, count) for count in self._counts]
        widest, filled = max(widths), min(k, len(self))

        def here() -> tuple[Tensor, ...]:
            distances, positions = self._shard._nearest(asked.rows, widths[peers.rank], progress)
            return distances, self._named(positions), *self._shard._lists(own, k)

        distances, ids, *answer = peers.attempt(here)
        size = distances.element_size() + ids.element_size()
        step = max(1, _ROUND_BYTES // (peers.size * widest * size))
        firsts = list(accumulate(asked.counts, initial=0))
        for start in range(0, max(asked.counts), step):
            # Of each rank's queries those of this round; of a rank with fewer queries, none.
            rounds = [
                slice(first + min(start, count), first + min(start + step, count))
                for first, count in zip(firsts, asked.counts, strict=False)
            ]
            many = rounds[peers.rank].stop - rounds[peers.rank].start
            lists = [
                peers.exchange([mine[r] for r in rounds], [many * width for width in widths])
                for mine in (distances, ids)
            ]
            if many:
                found = (
                    torch.cat([part.view(many, -1) for part in parts if len(part)], 1)
                    for parts in lists
                )
                merged = _merged(*(side.to(self.device) for side in found))
                for whole, part in zip(answer, merged, strict=True):
                    whole[start : start + many, :filled] = part[:, :filled]
        return Neighbours(*_as_given(queries, self._shard._unit(answer[0]), answer[1]))

    def range_search(
        self, queries: Vectors, radius: float, *, progress: Progress | None = None
    ) -> RangeNeighbours:
        """Find all entries, of all ranks, nearer than a radius to queries of this one. Collective.

        Args:
            queries: as for :meth:`search`.
            radius: in the metric's unit (squared for sqeuclidean), the same on all ranks; an entry
                is in if its distance is less, strictly.
            progress: as for :meth:`search`.

        Returns:
            ``lims, D, I``: ``(Q + 1,)``, ``(lims[-1],)`` and ``(lims[-1],)``; the entries of query
            i are ``D[lims[i]:lims[i+1]]`` and their ids ``I[lims[i]:lims[i+1]]``, bit for bit as
            :meth:`siamcuda.Gallery.range_search` of one process with all rows returns them.

        Raises:
            ValueError, TypeError: a radius of NaN, or another than on other ranks; else as for
                :meth:`search`.
            RuntimeError: as for :meth:`search`.

        Example:
            >>> import torch, siamcuda
            >>> torch.distributed.init_process_group(
            ...     "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
            ... )
            >>> gallery = siamcuda.distributed.ShardedGallery(torch.arange(5.0).unsqueeze(1))
            >>> lims, distances, ids = gallery.range_search(torch.tensor([[1.0], [9.0]]), 1.5)
            >>> lims.tolist(), distances.tolist(), ids.tolist()
            ([0, 3, 3], [0.0, 1.0, 1.0], [1, 0, 2])
            >>> torch.distributed.destroy_process_group()
        """
        peers = self._peers(".range_search")
        asked = self._ask(
            peers, queries, lambda: f"range_search(radius={_checked_radius(radius)!r})"
        )

        def here() -> tuple[Tensor, Tensor, Tensor]:
            counts, distances, positions = self._shard._within(asked.rows, float(radius), progress)
            return counts, distances, self._named(positions)

        counts, distances, ids = peers.attempt(here)
        for_each = counts.split(asked.counts)
        sent = [int(part.sum()) for part in for_each]
        found = peers.exchange(for_each, [asked.counts[peers.rank]] * peers.size)
        sizes = [int(part.sum()) for part in found]
        parts = zip(
            found,
            peers.exchange(distances.split(sent), sizes),
            peers.exchange(ids.split(sent), sizes),
            strict=True,
        )
        # Parts are in rank order, and so equal distances come out of it.
        counts, distances, ids = _joined(
            [(c.to(self.device), d.to(self.device), i.to(self.device)) for c, d, i in parts]
        )
        answer = _lims(counts), self._shard._unit(distances), ids
        return RangeNeighbours(*_as_given(queries, *answer))

    def _ask(self, peers: Peers, queries: Vectors, call: Callable[[], str]) -> _Asked:
        """Agree with the other ranks on a search, and get the queries of all."""
        prepared: list[Tensor] = []

        def header() -> Header:
            what = f"{call()} of {len(self)} x {self.columns}, {self.metric}"
            if len(self) == 0:
                raise ValueError("gallery: is empty, nothing can be found in it")
            rows = self._shard._fitting(queries)
            if self.metric != "hamming":  # exact, and what a search would do
                rows = rows.to(self._shard._distance_dtype)
            prepared.append(rows.to(peers.device))
            return {"call": what, "queries": len(rows)}

        headers = peers.agree(header, [("call", "the search", ValueError)])
        counts = [int(header["queries"]) for header in headers]
        if not any(counts):
            raise ValueError("queries: at least one is needed, no rank has any")
        return _Asked(peers.join(prepared[0], counts).to(self.device), counts)

    def _named(self, positions: Tensor) -> Tensor:
        """The ids of this rank's rows; without ids their rows in the whole gallery."""
        if self._shard._ids is None:
            return positions + self._first
        return self._shard._named(positions)


def _merged(distances: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted lists side by side in rank order, as one sorted list; NaN is last."""
    # One NaN for all: CUDA sorts by bits, and those of a CPU's NaN have a sign.
    keys = distances.nan_to_num(math.nan, math.inf, -math.inf)
    order = keys.sort(dim=1, stable=True).indices
    return distances.gather(1, order), ids.gather(1, order)


def _check_unique(peers: Peers, ids: Tensor) -> None:
    """Raise on all ranks if two ranks have an id in common.

    Each rank looks at a share of all ids that is chosen by their values, so that equal ones meet on
    one rank, and none has all.
    """
    # By the high bits of a product, since ids themselves may be multiples of the number of ranks.
    ids = ids.to(peers.device)
    keeper = ((ids * -0x61C8864680B583EB) >> 32).remainder(peers.size)
    order = keeper.argsort(stable=True)
    counts = keeper.bincount(minlength=peers.size)
    sizes = peers.gather(counts)[:, peers.rank].tolist()
    parts = peers.exchange(ids[order].split(counts.tolist()), sizes)

    def header() -> Header:
        owners = torch.repeat_interleave(torch.tensor(sizes)).to(peers.device)
        values, order = torch.cat(parts).sort(stable=True)
        twice = (values[1:] == values[:-1]).nonzero()
        if not len(twice):
            return {}
        at = int(twice[0, 0])
        return {"id": int(values[at]), "ranks": owners[order[at : at + 2]].tolist()}

    found = [(h["id"], *h["ranks"]) for h in peers.agree(header) if h]
    if found:
        twice, one, other = min(found)
        raise ValueError(
            f"ids: must be unique over all ranks, {twice} stands on {peers.name_of(one)} and on "
            f"{peers.name_of(other)}"
        )
