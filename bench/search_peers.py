"""Exact search as others do it: what siamcuda.Gallery is compared with.

Each function gives peers whose steps search a gallery that was built beforehand. A step returns
(distances, positions), squared and sorted; of a range (lims, distances, positions), in any order
within a query. The best settings, in words:

- faiss: IndexFlatL2 with the fastest kernels of its OpenBLAS (faiss_setting.py), and with larger
  blocks of the gallery; IndexBinaryFlat with its heap and with its counting.
- torch: distances by one matrix product for a block of the gallery, topk of each block, topk of
  those; three sizes of blocks. The gallery's norms are kept.
- scikit-learn: NearestNeighbors by brute force, its fused kernel for float32.
- torch.cdist: all distances at once where they fit, or 100 queries at a time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import faiss_setting, harness

FAISS, TORCH, SKLEARN, CDIST = "faiss", "torch", "scikit-learn", "torch.cdist"
#: Rows of the gallery in a block.
BLOCKS = (4096, 16384, 65536)
#: Distances that torch.cdist may hold at a time.
MATRIX = 200_000_000

Step = Callable[[], tuple[Any, ...]]
Way = tuple[str, str, Step]  # family, variant, step


def faiss() -> faiss_setting.Faiss | None:
    """faiss with as many threads as torch has; None, which is said, where it is missing."""
    try:
        found = faiss_setting.load()
    except ModuleNotFoundError as error:
        harness.left_out(FAISS, error)
        return None
    found.module.omp_set_num_threads(torch.get_num_threads())
    return found


def _sklearn(x: Tensor) -> Any:
    """A fitted searcher with as many threads as torch has; None, which is said, without it."""
    if importlib.util.find_spec("sklearn") is None:
        harness.left_out(SKLEARN, ModuleNotFoundError("pip install scikit-learn"))
        return None
    import threadpoolctl
    from sklearn.neighbors import NearestNeighbors

    threadpoolctl.threadpool_limits(torch.get_num_threads(), user_api="openmp")
    return NearestNeighbors(algorithm="brute", metric="sqeuclidean").fit(x.numpy())


# --- the k nearest --------------------------------------------------------------------------------


def nearest(queries: Tensor, x: Tensor, k: int, *, slow: bool = True) -> Iterator[Way]:
    """Ways to find the k nearest of x [N, D] for queries [Q, D]; without slow, faiss's alone."""
    yield from _nearest_faiss(queries, x, k)
    if not slow:
        return
    rows = len(x)
    blocks = [block for block in BLOCKS if block < rows] or [rows]
    if len(queries) == 1 and rows not in blocks:
        blocks.append(rows)
    squares = x.square().sum(1)
    for block in blocks:
        step = _blockwise(
            queries, x, squares, k, block, -2,
            lambda best: best.add_(queries.square().sum(1, keepdim=True)),
        )  # fmt: skip
        yield TORCH, f"blocks of {block}", step
    if len(queries) == 1:
        return
    searcher = _sklearn(x)
    if searcher is not None:
        asked = queries.numpy()
        yield SKLEARN, "brute force", lambda: searcher.kneighbors(asked, k)
    parts = {"100 queries at a time": 100}
    if len(queries) * rows <= MATRIX:
        parts["all at once"] = len(queries)
    for variant, part in parts.items():
        yield CDIST, variant, _by_cdist(queries, x, k, part)


def _nearest_faiss(queries: Tensor, x: Tensor, k: int) -> Iterator[Way]:
    found = faiss()
    if found is None:
        return
    module, title = found
    index = module.IndexFlatL2(x.shape[1])
    index.add(x.numpy())
    asked = queries.numpy()
    yield FAISS, title, lambda: index.search(asked, k)
    usual = module.cvar.distance_compute_blas_database_bs
    if len(queries) == 1 or len(x) <= usual:
        return

    def in_large_blocks() -> Any:
        module.cvar.distance_compute_blas_database_bs = 4 * usual
        try:
            return index.search(asked, k)
        finally:
            module.cvar.distance_compute_blas_database_bs = usual

    yield FAISS, f"{title}, blocks of {4 * usual}", in_large_blocks


def _blockwise(
    queries: Tensor, x: Tensor, offsets: Tensor, k: int, block: int, alpha: float,
    finish: Callable[[Tensor], Tensor],
) -> Step:  # fmt: skip
    """The k smallest of ``offsets + alpha·q·x``, as distances by ``finish``."""

    def step() -> tuple[Tensor, Tensor]:
        scores, positions = [], []
        for start in range(0, len(x), block):
            part = x[start : start + block]
            every = torch.addmm(offsets[start : start + block], queries, part.t(), alpha=alpha)
            best, at = every.topk(min(k, len(part)), largest=False)
            scores.append(best)
            positions.append(at + start)
        best, at = torch.cat(scores, 1).topk(k, largest=False)
        return finish(best), torch.cat(positions, 1).gather(1, at)

    return step


def _by_cdist(queries: Tensor, x: Tensor, k: int, part: int) -> Step:
    def step() -> tuple[Tensor, Tensor]:
        found = [torch.cdist(some, x).topk(k, largest=False) for some in queries.split(part)]
        distances = torch.cat([one.values for one in found])
        return distances.square(), torch.cat([one.indices for one in found])

    return step


# --- within a radius ------------------------------------------------------------------------------


def within(queries: Tensor, x: Tensor, radius: float, *, slow: bool = True) -> Iterator[Way]:
    """Ways to find all of x nearer than the squared radius; without slow, faiss's alone."""
    found = faiss()
    asked = queries.numpy()
    if found is not None:
        index = found.module.IndexFlatL2(x.shape[1])
        index.add(x.numpy())
        yield FAISS, found.title, lambda: index.range_search(asked, radius)
    if not slow:
        return
    squares = x.square().sum(1)
    for block in [block for block in BLOCKS if block < len(x)] or [len(x)]:
        yield TORCH, f"blocks of {block}", _block_range(queries, x, squares, radius, block)
    searcher = _sklearn(x)
    if searcher is not None:
        yield SKLEARN, "brute force", lambda: _as_lists(*searcher.radius_neighbors(asked, radius))


def _as_lists(distances: Any, positions: Any) -> tuple[Any, ...]:
    lims = np.concatenate([[0], np.cumsum([len(own) for own in positions])])
    return lims, np.concatenate(list(distances)), np.concatenate(list(positions))


def _block_range(queries: Tensor, x: Tensor, squares: Tensor, radius: float, block: int) -> Step:
    def step() -> tuple[Tensor, Tensor, Tensor]:
        own = queries.square().sum(1)
        askers, distances, positions = [], [], []
        for start in range(0, len(x), block):
            part, norms = x[start : start + block], squares[start : start + block]
            scores = torch.addmm(norms, queries, part.t(), alpha=-2)
            who, where = (scores < (radius - own).unsqueeze(1)).nonzero(as_tuple=True)
            distances.append(scores[who, where] + own[who])
            askers.append(who)
            positions.append(where + start)
        who = torch.cat(askers)
        order = who.argsort(stable=True)
        lims = torch.zeros(len(queries) + 1, dtype=torch.int64)
        torch.cumsum(who.bincount(minlength=len(queries)), 0, out=lims[1:])
        return lims, torch.cat(distances)[order], torch.cat(positions)[order]

    return step


# --- packed bits ----------------------------------------------------------------------------------


def unpacked(x: Tensor) -> Tensor:
    """Packed bits [N, bytes] as -1 and 1, [N, bits]."""
    shifts = torch.arange(8, dtype=torch.uint8)
    bits = (x.unsqueeze(2) >> shifts) & 1
    return bits.flatten(1).float() * 2 - 1


def hamming(queries: Tensor, x: Tensor, k: int) -> Iterator[Way]:
    """Ways to find the k nearest of packed bits x [N, bytes]."""
    bits = 8 * x.shape[1]
    found = faiss()
    if found is not None:
        asked = queries.numpy()
        for heap in (True, False):
            index = found.module.IndexBinaryFlat(bits)
            index.add(x.numpy())
            index.use_heap = heap
            title = f"{found.module.__version__}, {'heap' if heap else 'counting'}"
            yield FAISS, title, partial(index.search, asked, k)
    signs, own = unpacked(x), unpacked(queries)
    offsets = torch.full((len(x),), float(bits))
    for block in [block for block in BLOCKS if block < len(x)] or [len(x)]:
        # q·g counts equal bits less those that differ, so that bits - q·g is twice the distance.
        step = _blockwise(own, signs, offsets, k, block, -1, lambda best: best / 2)
        yield TORCH, f"product of signs, blocks of {block}", step
