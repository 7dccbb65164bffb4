"""Exact search in a gallery that was built beforehand, and the building itself.

Peers come from bench/search_peers.py. Ours screens by 8-bit codes (mode int8) or in float32; the
results are the same bits, so each has cases of its own, the slower peers only beside float32. Every
peer's distances, and the exact distances of the rows that it found, are compared with a search in
float64.

Random rows are the hard case: their distances are all about the same, so screening leaves many.
Operations are counted as 2QND, one multiply-add for each query, row and column, whatever is done.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import siamcuda
from bench import search_peers
from bench.harness import Case, Goal, Peer, Task
from bench.search_peers import FAISS

SUITE = "gallery"
QUERIES, ROWS = 1000, 100_000
MODES = ("float32", "int8")
#: Results a query that a radius is chosen for, and how many an exact search looks at for it.
WITHIN, LOOKED_AT = 30, 300
#: Steps here take tenths of a second, and seconds of a million rows.
ROUNDS, FEW_ROUNDS = 15, 7
#: Bytes that a case may take for each float of its gallery: copies of peers, the exact result.
ROOM = 24


def inputs(queries: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Normal rows: (Q, D) and (N, D)."""
    generator = torch.Generator().manual_seed(rows + columns)
    x = torch.randn(rows, columns, generator=generator)
    return torch.randn(queries, columns, generator=generator), x


def code_bytes(rows: int, columns: int) -> int:
    """Bytes of codes that screening reads: of each row its codes, scale and norm; panel bounds."""
    panels = -(-rows // 32)
    return panels * (32 * (4 * -(-columns // 4) + 8) + 16)


def screens() -> tuple[str, ...]:
    """The modes that this machine has."""
    try:
        siamcuda.Gallery(torch.zeros(1, 1), screening="int8")
    except ValueError:
        return MODES[:1]
    return MODES


# --- the exact results ----------------------------------------------------------------------------


def exact_nearest(queries: Tensor, x: Tensor, k: int) -> Tensor:
    """(Q, k) squared distances in float64."""
    wide = queries.double()
    found = wide.new_empty(len(queries), 0)
    for part in x.split(16384):
        rows = part.double()
        distances = torch.addmm(rows.square().sum(1), wide, rows.t(), alpha=-2)
        best = distances.topk(min(k, len(rows)), largest=False).values
        found = torch.cat([found, best], 1).topk(min(k, found.shape[1] + len(rows)), 1, False)[0]
    return found.sort(1).values + wide.square().sum(1, keepdim=True)


def distances_at(queries: Tensor, x: Tensor, positions: Tensor) -> Tensor:
    """(Q, k) exact squared distances of the rows at positions (Q, k)."""
    parts = [
        (x[at].double() - some.double().unsqueeze(1)).square().sum(2)
        for some, at in zip(queries.split(100), positions.split(100), strict=True)
    ]
    return torch.cat(parts)


def bits_at(queries: Tensor, x: Tensor, positions: Tensor) -> Tensor:
    """(Q, k) bits in which the packed rows at positions (Q, k) differ."""
    ones = torch.tensor([byte.bit_count() for byte in range(256)])
    return ones[(x[positions] ^ queries.unsqueeze(1)).long()].sum(2)


def _tensors(found: Sequence[Any]) -> list[Tensor]:
    return [torch.as_tensor(one) for one in found]


# --- tasks ----------------------------------------------------------------------------------------


def _peers(
    ours: Callable[[], tuple[Any, ...]], ways: Iterator[search_peers.Way],
    outputs: Callable[[Sequence[Tensor]], list[Tensor]], reads: int = 0,
) -> list[Peer]:  # fmt: skip
    """Ours first; the others read the rows themselves, whatever ours reads."""

    def peer(family: str, variant: str, step: Callable[[], tuple[Any, ...]], own: int) -> Peer:
        return Peer(family, variant, step, lambda: outputs(_tensors(step())), reads=own)

    return [peer("ours", "siamcuda", ours, 0), *(peer(*way, reads) for way in ways)]


def _search(mode: str, queries: int, rows: int, columns: int, k: int, slow: bool) -> Task:
    q, x = inputs(queries, rows, columns)
    gallery = siamcuda.Gallery(x, screening=mode)
    found = _peers(
        lambda: gallery.search(q, k),
        search_peers.nearest(q, x, k, slow=slow),
        lambda result: [result[0], distances_at(q, x, result[1])],
        reads=4 * x.numel(),
    )
    # The expanded form of float32 errs by some of |q|² + |x|², not of the distance.
    return Task(found, lambda: [exact_nearest(q, x, k)] * 2, rtol=1e-5, atol=1e-5)


def _radius(queries: Tensor, x: Tensor) -> tuple[float, Tensor]:
    """A radius without a distance near it, WITHIN results a query inside, and those distances."""
    nearest = exact_nearest(queries, x, min(LOOKED_AT, len(x)))
    ordered = nearest.flatten().sort().values
    middle = WITHIN * len(queries)
    near = ordered[middle - middle // 50 : middle + middle // 50 + 2]
    gap = int((near[1:] - near[:-1]).argmax())
    radius = float((near[gap] + near[gap + 1]) / 2)
    if len(x) > LOOKED_AT and bool((nearest[:, -1] < radius).any()):
        raise AssertionError(f"a query has more than {LOOKED_AT} results")
    return radius, nearest


def _range(mode: str, queries: int, rows: int, columns: int, slow: bool) -> Task:
    q, x = map(F.normalize, inputs(queries, rows, columns))
    radius, nearest = _radius(q, x)
    gallery = siamcuda.Gallery(x, screening=mode)

    def outputs(result: Sequence[Tensor]) -> list[Tensor]:
        lims, distances, positions = result
        counts = lims.long().diff()  # faiss's are unsigned, which torch can't subtract
        who = torch.repeat_interleave(torch.arange(queries), counts)
        exact = distances_at(q[who], x, positions.unsqueeze(1))[:, 0]
        parts = tuple(counts.tolist())
        return [counts, *(torch.cat([p.sort().values for p in d.split(parts)])
                          for d in (distances, exact))]  # fmt: skip

    def expected() -> list[Tensor]:
        inside = nearest < radius
        return [inside.sum(1), nearest[inside], nearest[inside]]

    ways = search_peers.within(q, x, radius, slow=slow)
    found = _peers(lambda: gallery.range_search(q, radius), ways, outputs)
    return Task(found, expected, rtol=1e-5, atol=1e-5)


def _hamming(queries: int, rows: int, bits: int, k: int) -> Task:
    generator = torch.Generator().manual_seed(bits)
    shape = (queries + rows, bits // 8)
    both = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    q, x = both[:queries].clone(), both[queries:].clone()
    gallery = siamcuda.Gallery(x, metric="hamming")

    def expected() -> list[Tensor]:
        signs = search_peers.unpacked(torch.cat([q, x])).clamp(min=0)
        nearest = exact_nearest(signs[:queries], signs[queries:], k)
        return [nearest, nearest]

    found = _peers(
        lambda: gallery.search(q, k),
        search_peers.hamming(q, x, k),
        lambda result: [result[0], bits_at(q, x, result[1])],
    )
    return Task(found, expected, rtol=1e-9, atol=1e-9)


def _build(mode: str, rows: int, columns: int) -> Task:
    """A gallery from rows in memory: ours borrows them and makes its codes, faiss copies them."""
    q, x = inputs(4, rows, columns)
    found = [_built("ours", "siamcuda", lambda: siamcuda.Gallery(x, screening=mode), q)]
    other = search_peers.faiss()
    if other is not None:
        module, title = other

        def add() -> Any:
            index = module.IndexFlatL2(columns)
            index.add(x.numpy())
            return index

        found.append(_built(FAISS, title, add, q))
    return Task(found, lambda: [exact_nearest(q, x, 3)], rtol=1e-5, atol=1e-5)


def _built(family: str, variant: str, build: Callable[[], Any], queries: Tensor) -> Peer:
    def outputs() -> list[Tensor]:
        asked: Any = queries if family == "ours" else queries.numpy()
        return _tensors(build().search(asked, 3))[:1]

    return Peer(family, variant, build, outputs)


# --- the table of cases ---------------------------------------------------------------------------


def _available() -> float:
    """Bytes of memory that can be had."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return float("inf")


def _case(op: str, mode: str, rows: int, columns: int, make: Callable[[], Task],
          **options: Any) -> Case:  # fmt: skip
    options.setdefault("rounds", ROUNDS)
    return Case(SUITE, op, mode, rows, columns, make, allocators=("warm",), **options)


def _search_case(
    mode: str, rows: int, columns: int, k: int = 10, queries: int = QUERIES, **options: Any
) -> Case:
    many = "query" if queries == 1 else "queries"
    return _case(
        f"search[{queries} {many}, k={k}]", mode, rows, columns,
        lambda: _search(mode, queries, rows, columns, k, slow=mode == "float32"), **options,
    )  # fmt: skip


def cases(quick: bool = False) -> Iterator[Case]:
    """Every case that this machine can run; the quick ones are a sample that touches each kind."""
    for case in _all_cases(quick):
        needed = ROOM * case.rows * case.columns
        if needed > _available():
            print(f"    left out: {case.name}: needs {needed / 2**30:.0f} GiB", file=sys.stderr)
        else:
            yield case


def _all_cases(quick: bool) -> Iterator[Case]:
    modes = screens()
    if quick:
        for mode in modes:
            yield _search_case(mode, 5000, 64, queries=100, flops=2 * 100 * 5000 * 64)
            yield _range_case(mode, 100, 5000, 64, ())
        yield _search_case("float32", 5000, 64, queries=1, reads=4 * 5000 * 64)
        yield _hamming_case(100, 5000, 256, ())
        yield _build_case(modes[-1], 5000, 64)
        return
    for columns in (64, 128, 512, 768):
        for k in (10, 100) if columns <= 128 else (10,):
            for mode in modes:
                yield _many_queries(mode, columns, k)
    for mode in modes:
        goals = (Goal(FAISS, 1.3 if mode == "float32" else 2.0),)
        yield _range_case(mode, QUERIES, ROWS, 128, goals)
    for bits in (64, 256, 1024):
        yield _hamming_case(QUERIES, ROWS, bits, (Goal(FAISS, 1.0),))
    for rows in (ROWS, 1_000_000):
        for mode in modes:
            reads = code_bytes(rows, 128) if mode == "int8" else 4 * rows * 128
            yield _search_case(mode, rows, 128, queries=1, reads=reads, limit_goal=0.9)
    for mode in modes:
        yield _build_case(mode, ROWS, 128)
    # Over the size of the gallery; ROWS is above.
    for rows in (1000, 10_000, 1_000_000):
        for mode in modes:
            few = FEW_ROUNDS if rows > ROWS else ROUNDS
            yield _search_case(mode, rows, 128, flops=2 * QUERIES * rows * 128, rounds=few)


def _many_queries(mode: str, columns: int, k: int) -> Case:
    """A thousand queries at the size that goals are set for."""
    small = columns <= 128
    if mode == "float32":
        value, share = (1.3, None) if small else (1.0, 0.85)
    else:  # above 1, screening is faster than multiply-adds of float32 could be
        value, share = (2.0 if small else 1.7), 1.0
    return _search_case(
        mode, ROWS, columns, k, goals=(Goal(FAISS, value),),
        flops=2 * QUERIES * ROWS * columns, limit_goal=share if k == 10 else None,
    )  # fmt: skip


def _range_case(mode: str, queries: int, rows: int, columns: int, goals: tuple[Goal, ...]) -> Case:
    return _case(
        f"range_search[{queries} queries, {WITHIN} results]", mode, rows, columns,
        lambda: _range(mode, queries, rows, columns, slow=mode == "float32"),
        goals=goals, flops=2 * queries * rows * columns,
    )  # fmt: skip


def _hamming_case(queries: int, rows: int, bits: int, goals: tuple[Goal, ...]) -> Case:
    return _case(
        f"hamming[{queries} queries, k=10]", "bits", rows, bits,
        lambda: _hamming(queries, rows, bits, 10), goals=goals, dtype="uint8",
    )  # fmt: skip


def _build_case(mode: str, rows: int, columns: int) -> Case:
    return _case("build", mode, rows, columns, lambda: _build(mode, rows, columns))
