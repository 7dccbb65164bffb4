"""A gallery spread over ranks, against one process that has all of it: the same bits.

Each test starts its processes once and makes many checks in them, since starting them is what
takes the time.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_distributed import _start, _worker, run, split

import siamcuda
from siamcuda import Gallery, _stores
from siamcuda.distributed import ShardedGallery
from siamcuda.distributed import gallery as sharded

METRICS = ("sqeuclidean", "euclidean", "cosine", "hamming")
COLUMNS = 19
#: Rows of each rank, queries of each rank, k: some ranks have none, some lists are never full.
SIZES = {
    2: [((130, 90), (5, 9), 12), ((220, 0), (0, 7), 1), ((1, 6), (3, 300), 25)],
    4: [((60, 0, 90, 41), (3, 7, 0, 2), 12), ((0, 0, 5, 0), (4, 0, 0, 0), 8)],
}


def data(metric: str, count: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if metric == "hamming":
        return torch.randint(0, 4, (count, 3), generator=generator).to(torch.uint8)
    return torch.randn(count, COLUMNS, generator=generator).to(dtype)


def tied(metric: str, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of which each stands about seven times, on several ranks."""
    return data(metric, max(1, count // 7), 1, dtype)[torch.arange(count) % max(1, count // 7)]


def same_bits(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype, (one.dtype, other.dtype)
        assert one.shape == other.shape, (one.shape, other.shape)
        np.testing.assert_array_equal(one, other)  # says where they differ
        assert one.tobytes() == other.tobytes()  # NaN and signs too


def expect(whole: Gallery, queries: torch.Tensor, k: int, radius: float) -> tuple[Any, Any]:
    """What one process answers; of no queries, which it refuses, the types."""
    count = len(queries)
    some = queries if count else queries.new_zeros(1, queries.shape[1])
    nearest, within = whole.search(some, k), whole.range_search(some, radius)
    if count:
        return nearest, within
    lims, distances, ids = within
    return [part[:0] for part in nearest], [lims[:1], distances[:0], ids[:0]]


def compare(
    rank: int,
    rows: torch.Tensor,
    queries: torch.Tensor,
    row_sizes: tuple[int, ...],
    query_sizes: tuple[int, ...],
    k: int,
    metric: str = "sqeuclidean",
    ids: torch.Tensor | None = None,
    path: Path | None = None,
    **options: Any,
) -> None:
    mine, asked = split(rows, row_sizes, rank), split(queries, query_sizes, rank)
    whole = Gallery(rows, ids, metric, nonfinite="allow")
    radius = float(whole.search(queries[:1], min(9, len(rows))).distances[0, -1])  # not inside
    shard: Any = mine
    if path is not None:
        shard = path / f"{metric} {rank}.npy"
        np.save(shard, mine.numpy())
    own_ids = None if ids is None else split(ids, row_sizes, rank)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gallery = ShardedGallery(
            shard, own_ids, metric, nonfinite=options.pop("nonfinite", "allow"), **options
        )
    assert len(gallery) == len(rows)
    assert gallery.counts == row_sizes
    nearest, within = expect(whole, asked, k, radius)
    same_bits(gallery.search(asked, k), nearest)
    same_bits(gallery.range_search(asked, radius), within)
    same_bits(gallery.range_search(asked, math.inf), expect(whole, asked, k, math.inf)[1])


def _answers(rank: int, size: int, folder: Path) -> None:
    _start(folder / "store", rank, size)
    _stores._PART_BYTES = 2000  # so that small files are streamed in parts
    for metric in METRICS:
        for row_sizes, query_sizes, k in SIZES[size]:
            rows, queries = tied(metric, sum(row_sizes)), data(metric, sum(query_sizes), 2)
            queries[: len(rows)][::3] = rows[: len(queries)][::3]
            compare(rank, rows, queries, row_sizes, query_sizes, k, metric)
            ids = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3)) * size + 7
            compare(rank, rows, queries, row_sizes, query_sizes, k, metric, ids)
        compare(rank, rows, queries, row_sizes, query_sizes, k, metric, ids, folder)
        row_sizes, query_sizes, _ = SIZES[size][0]
        rows, queries = tied(metric, sum(row_sizes)), data(metric, sum(query_sizes), 4)
        compare(rank, rows, queries, row_sizes, query_sizes, 3, metric, path=folder)
        compare(rank, rows, queries, row_sizes, query_sizes, len(rows) + 5, metric)
        kept, sharded._ROUND_BYTES = sharded._ROUND_BYTES, 1000  # several rounds of merging
        compare(rank, rows, queries, row_sizes, query_sizes, 10, metric)
        sharded._ROUND_BYTES = kept
    for check in (_types, _nonfinite, _roots, _ids, _arrays, _faults, _middle, _files, _groups):
        check(rank, size, folder)
    _traffic(rank, size, folder)


def test_two_ranks_equal_one(tmp_path):
    run(_answers, 2, tmp_path)


def test_four_ranks_equal_one(tmp_path):
    run(_answers, 4, tmp_path)


def _types(rank: int, size: int, folder: Path) -> None:
    """Half and double precision, strided rows; queries of another float type on each rank."""
    row_sizes, query_sizes, k = SIZES[size][0]
    count = sum(row_sizes)
    kinds = (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16)
    for metric in ("sqeuclidean", "cosine"):
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            rows, queries = tied(metric, count, dtype), data(metric, sum(query_sizes), 5, dtype)
            compare(rank, rows, queries, row_sizes, query_sizes, k, metric)
            mine = split(data(metric, 4 * size, 6), (4,) * size, rank).to(kinds[rank])
            gallery = ShardedGallery(split(rows, row_sizes, rank), metric=metric)
            same_bits(gallery.search(mine, k), Gallery(rows, metric=metric).search(mine, k))
        rows = data(metric, count, 8)
        apart = torch.cat([rows, rows], 1)[:, :COLUMNS].requires_grad_()
        compare(rank, apart, rows[: sum(query_sizes)], row_sizes, query_sizes, k, metric)
        for screening in ("float32", "auto"):
            compare(rank, rows, rows, row_sizes, row_sizes, k, metric, screening=screening)


def _nonfinite(rank: int, size: int, folder: Path) -> None:
    """Finite, +inf, NaN, padding, over all ranks; a rank warns of its own rows."""
    row_sizes, query_sizes, _ = SIZES[size][0]
    rows, queries = tied("sqeuclidean", sum(row_sizes)), data("sqeuclidean", sum(query_sizes), 9)
    rows[::5, 3], rows[1::7, 0], rows[2::9] = math.nan, math.inf, 3e38
    queries[1, 2], queries[2, 0], queries[4] = math.nan, -math.inf, -3e38
    for metric in ("sqeuclidean", "euclidean", "cosine"):
        compare(rank, rows, queries, row_sizes, query_sizes, len(rows) + 3, metric)
        compare(rank, rows, queries, row_sizes, query_sizes, 40, metric, path=folder)
    rows[:] = 0
    if rank == 0:
        rows[1, 0] = math.nan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gallery = ShardedGallery(split(rows, row_sizes, rank))
    wanted = f"vectors: 1 of {row_sizes[0]} rows hold NaN or infinities; they come after all others"
    assert [str(w.message) for w in caught] == [wanted] * (rank == 0)
    assert all(w.filename == __file__ for w in caught)
    assert gallery.nonfinite == (rank == 0)


def _roots(rank: int, size: int, folder: Path) -> None:
    """Different squares with equal roots are ordered by the squares, whichever rank has them."""
    rows = torch.zeros(size, 8)
    rows[:, 0] = 1.5
    for j in range(size):  # 2.25 + 2^-21 before 2.25 + 2^-22, which have one root
        rows[j, 1 : 3 - j % 2] = 2.0**-11
    gallery = ShardedGallery(rows[rank : rank + 1], metric="euclidean")
    distances, ids = gallery.search(torch.zeros(1, 8), size)
    assert len(set(distances[0].tolist())) == 1
    assert ids[0].tolist() == [*range(1, size, 2), *range(0, size, 2)]
    found = gallery.range_search(torch.zeros(1, 8), 2.0)
    assert found.ids.tolist() == ids[0].tolist()


def _ids(rank: int, size: int, folder: Path) -> None:
    """Ids may be any and need none where there are no rows; twice is an error that says where."""
    last = size - 1
    rows = torch.arange(3.0).unsqueeze(1) + 10 * rank
    own = torch.tensor([2**63 - 1 - rank, rank, 2**40 * size + rank * size])
    gallery = ShardedGallery(rows, own)
    assert gallery.search(rows[1:2], 1).ids.tolist() == [[rank]]
    assert gallery.search(rows[:1], 1).ids.tolist() == [[2**63 - 1 - rank]]
    message = f"ids: must be unique over all ranks, 5 stands on rank 0 and on rank {last}"
    for others in (100 * rank + 40, (100 * rank + 40) * size):
        ids = torch.tensor([others, 5 if rank in (0, last) else others + 1, others + 2])
        with pytest.raises(ValueError, match=message):
            ShardedGallery(rows, ids)
    with pytest.raises(ValueError, match=r"unique over all ranks, 0 stands on rank 0 and on rank"):
        ShardedGallery(rows, torch.arange(3))
    with pytest.raises(ValueError, match=r"rank 1: ids: must be unique, 8 stands twice"):
        ShardedGallery(rows, [8, 7, 8] if rank == 1 else own)
    with pytest.raises(ValueError, match=r"whether ids are given: given on rank 0, not given on"):
        ShardedGallery(rows, None if rank == 1 else own)
    some = ShardedGallery(rows[:0], None) if rank == 1 else ShardedGallery(rows, own)
    assert some.search(rows[:1], 1).ids.shape == (1, 1)


def _arrays(rank: int, size: int, folder: Path) -> None:
    """Arrays in, arrays out; a memory map is streamed; what it holds is told."""
    rows = data("sqeuclidean", 20 * size, 10)
    np.save(folder / f"map {rank}.npy", split(rows, (20,) * size, rank).numpy())
    shard = np.load(folder / f"map {rank}.npy", mmap_mode="r")
    gallery = ShardedGallery(shard)
    found = gallery.search(rows[:2].numpy(), 3)
    assert isinstance(found.distances, np.ndarray)
    same_bits(found, Gallery(rows).search(rows[:2].numpy(), 3))
    inside = gallery.range_search(rows[:2].numpy(), 30.0)
    assert isinstance(inside.lims, np.ndarray)
    same_bits(inside, Gallery(rows).range_search(rows[:2].numpy(), 30.0))
    assert f"{20 * size} x {COLUMNS}, rows {20 * rank} to {20 * rank + 20} here" in repr(gallery)
    assert (gallery.metric, gallery.columns, gallery.dtype, gallery.device) == (
        "sqeuclidean", COLUMNS, torch.float32, torch.device("cpu"),
    )  # fmt: skip
    steps = []
    gallery.search(rows[:2], 3, progress=lambda done, count: steps.append((done, count)))
    assert steps[-1] == (20, 20)


def refused(what: object, error: type[Exception], match: str, call: Any) -> None:
    with pytest.raises(error) as caught:
        call()
    assert re.search(match, str(caught.value)), (str(what)[:99], str(caught.value)[:999])


def _faults(rank: int, size: int, folder: Path) -> None:
    """What is wrong on rank 1 raises on all, with one message, and the next call works."""
    x = data("sqeuclidean", 6, 11)
    made: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"vectors": x[0]}, ValueError, r"rank 1: vectors: shape \(N, D\) is expected"),
        ({"vectors": None}, TypeError, "rank 1: vectors: a tensor or an array"),
        ({"vectors": x.long()}, TypeError, "rank 1: vectors: float16, bfloat16"),
        ({"vectors": "none.npy"}, RuntimeError, "rank 1: FileNotFoundError: .*none.npy"),
        ({"vectors": "\udcff\U0001f600" * 600}, Exception, "rank 1: "),
        ({"vectors": x * math.nan, "nonfinite": "raise"}, ValueError, "rank 1: .*6 of 6 rows"),
        ({"ids": [1, 1, 2, 3, 4, 5]}, ValueError, "rank 1: ids: must be unique, 1 stands twice"),
        ({"metric": "l3"}, ValueError, "rank 1: metric must be one of"),
        ({"screening": "pq"}, ValueError, "rank 1: screening must be one of"),
        ({"metric": "cosine"}, ValueError, "the metric: sqeuclidean on rank 0, cosine on rank 1"),
        ({"vectors": x[:, :5]}, ValueError, "differ in D.*19 on rank 0, 5 on rank 1"),
        ({"vectors": x[:0, :5]}, ValueError, "differ in D.*19 on rank 0, 5 on rank 1"),
        ({"vectors": x.half()}, TypeError, "dtype of vec.*: float32 on rank 0, float16 on rank 1"),
    ]
    for change, error, match in made:
        arguments = {"vectors": x} | (change if rank == 1 else {})
        refused(change, error, match, lambda a=arguments: ShardedGallery(**a))

    gallery = ShardedGallery(x)
    asked: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("search", {"k": 0}, ValueError, "rank 1: k must be at least 1, got 0"),
        ("search", {"k": 1.5}, TypeError, "rank 1: k must be an integer"),
        ("search", {"k": 4}, ValueError, r"the search: search\(k=3\).*rank 0, search\(k=4\).*1$"),
        ("search", {"k": 10**4250}, ValueError, "rank 1: arguments too long"),
        ("search", {"queries": x[:, :3]}, ValueError, "rank 1: queries: have 3 columns"),
        ("search", {"queries": x[:0, :3]}, ValueError, "rank 1: queries: have 3 columns"),
        ("search", {"queries": x[0]}, ValueError, r"rank 1: queries: shape \(N, D\)"),
        ("search", {"queries": x.double()}, TypeError, "rank 1: queries: float64 needs"),
        ("search", {"queries": None}, TypeError, "rank 1: queries: a tensor or an array"),
        ("search", {"queries": x.to("meta")}, ValueError, "rank 1: queries: are on meta"),
        ("range_search", {"radius": math.nan}, ValueError, "rank 1: radius must not be NaN"),
        ("range_search", {"radius": "far"}, ValueError, "rank 1: could not convert"),
        ("range_search", {"radius": 2.5}, ValueError, r"radius=2\.0.*rank 0, .*radius=2\.5.*1$"),
    ]
    for method, change, error, match in asked:
        option = {"k": 3} if method == "search" else {"radius": 2.0}
        arguments = {"queries": x, **option} | (change if rank == 1 else {})
        refused(change, error, match, lambda a=arguments, m=method: getattr(gallery, m)(**a))
    other = (lambda: gallery.search(x, 3), lambda: gallery.range_search(x, 3.0))[rank == 1]
    refused("other search", ValueError, r"search\(k=3\).*range_search\(radius=3\.0\)", other)
    loss = siamcuda.distributed.batch_triplet_loss
    other = (lambda: gallery.search(x, 3), lambda: loss(x, torch.arange(6)))[rank == 1]
    refused("a loss", ValueError, r"search\(k=3\) of .* on rank 0, batch_triplet_loss\(", other)

    refused("none", ValueError, "no rank has any", lambda: gallery.search(x[:0], 3))
    empty = ShardedGallery(x[:0])
    assert len(empty) == 0
    refused("empty", ValueError, "rank 0: gallery: is empty", lambda: empty.search(x, 3))
    refused("empty", ValueError, "gallery: is empty", lambda: empty.range_search(x, 3.0))
    whole = Gallery(x.repeat(size, 1))
    same_bits(gallery.search(x, 3), whole.search(x, 3))
    # k=3 of numpy and a radius of 2 and 2.0 are one.
    same_bits(gallery.search(x, (3, np.int64(3))[rank == 1]), whole.search(x, 3))
    same_bits(gallery.range_search(x, (2, 2.0)[rank == 1]), whole.range_search(x, 2.0))


def _middle(rank: int, size: int, folder: Path) -> None:
    """A rank that fails while it searches tells the others, which wait for its lists."""
    x = data("sqeuclidean", 6, 12)
    gallery = ShardedGallery(x)
    causes: list[tuple[BaseException, type[BaseException], str]] = [
        (ValueError("no more"), ValueError, "^rank 1: no more$"),
        (MemoryError(), RuntimeError, "^rank 1: MemoryError: $"),
        (OSError(5, "disk"), RuntimeError, "rank 1: OSError: .*disk"),
        (KeyboardInterrupt(), RuntimeError, "rank 1: KeyboardInterrupt"),
    ]
    for cause, error, match in causes:

        def progress(done: int, count: int, cause: BaseException = cause) -> None:
            if rank == 1:
                raise cause

        for method, option in (("search", 3), ("range_search", 4.0)):
            if rank == 1 and isinstance(cause, KeyboardInterrupt):
                with pytest.raises(KeyboardInterrupt):  # stays what it is where it came
                    getattr(gallery, method)(x, option, progress=progress)
                continue
            with pytest.raises(error) as caught:
                getattr(gallery, method)(x, option, progress=progress)
            assert re.search(match, str(caught.value)), str(caught.value)
            assert (caught.value.__cause__ is cause) == (rank == 1)
    if rank == 1:
        x[0] = 9
    refused("changed", RuntimeError, "rank 1: .*changed in place", lambda: gallery.search(x, 3))


def _files(rank: int, size: int, folder: Path) -> None:
    """A shard's file that is cut, or holds NaN, is found out in the search, on all ranks."""
    rows = data("sqeuclidean", 300, 13)
    for fault, match in (
        ("short", r"rank 1: .*short 1\.npy: truncated: 300 rows"),
        ("nan", r"rank 1: .*nan 1\.npy: row 170 holds NaN or an infinity"),
        ("gone", r"rank 1: FileNotFoundError: .*gone 1\.npy"),
    ):
        path = folder / f"{fault} {rank}.npy"
        mine = rows.clone()
        if fault == "nan" and rank == 1:
            mine[170, 2] = math.nan
        np.save(path, mine.numpy())
        gallery = ShardedGallery(path)
        if rank == 1 and fault == "short":
            os.truncate(path, 9000)
        elif rank == 1 and fault == "gone":
            path.unlink()
        kind = RuntimeError if fault == "gone" else ValueError
        for _ in range(2):
            refused(fault, kind, match, lambda g=gallery: g.search(rows[:3], 3))
        refused(fault, kind, match, lambda g=gallery: g.range_search(rows[:3], 3.0))


def _groups(rank: int, size: int, folder: Path) -> None:
    """A group of some ranks, whose messages count as the world does; one of one; none."""
    x = data("sqeuclidean", 5 * size, 14)
    members = [0, size - 1]
    group = dist.new_group(members)
    alone = dist.new_group([1])
    if rank in members:
        place = members.index(rank)
        gallery = ShardedGallery(x[5 * place : 5 * place + 5], group=group)
        assert gallery.counts == (5, 5)
        same_bits(gallery.search(x, 4), Gallery(x[:10]).search(x, 4))
        k = 3 if rank == 0 else 0
        match = f"rank {size - 1}: k must be at least 1"
        refused("group", ValueError, match, lambda: gallery.search(x, k))
    else:
        refused("group", RuntimeError, "not in the group", lambda: ShardedGallery(x, group=group))
    if rank == 1:
        gallery = ShardedGallery(x, list(range(9, 9 + len(x))), group=alone)
        same_bits(gallery.search(x, 4), Gallery(x, gallery._shard.ids).search(x, 4))
    dist.barrier()


def _traffic(rank: int, size: int, folder: Path) -> None:
    """Queries and lists move, rows don't; what comes in at once is bounded."""
    counts = {"all": 0, "most": 0}

    def counting(function: Any) -> Any:
        def call(out: Any, *args: Any, **kwargs: Any) -> Any:
            got = sum(t.nbytes for t in out) if isinstance(out, list) else out.nbytes
            counts["all"] += got
            counts["most"] = max(counts["most"], got)
            return function(out, *args, **kwargs)

        return call

    rows = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(rank))
    queries, k = rows[: 10 if rank else 0], 5
    names = ("all_gather", "broadcast", "all_to_all_single")
    kept = {name: getattr(dist, name) for name in names}
    try:
        for name in names:
            setattr(dist, name, counting(kept[name]))
        gallery = ShardedGallery(rows, torch.arange(len(rows)) + rank * len(rows))
        ids, counts["all"] = counts["all"], 0
        assert ids < 8 * len(rows) * 1.1 + 20_000 * size  # about a share of all
        gallery.search(queries, k)
        asked = 10 * (size - 1)
        headers = 2 * 4096 * size
        assert counts["all"] <= headers + asked * 64 * 4 + len(queries) * size * k * 12
        sharded._ROUND_BYTES, counts["most"] = 500, 0
        gallery.search(queries, 40)
        assert counts["most"] <= 4096 * size  # one query's lists are 40 * size * 12
    finally:
        sharded._ROUND_BYTES = 1 << 24
        for name in names:
            setattr(dist, name, kept[name])


def _gone(rank: int, size: int, folder: Path) -> None:
    """Rank 3 is killed while it searches; then rank 2 does not come. The others are told."""
    x = data("sqeuclidean", 50, 15)
    _start(folder / "killed", rank, size, seconds=8)
    gallery = ShardedGallery(x)
    gallery.search(x[:2], 3)

    def kill(done: int, count: int) -> None:
        if rank == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"ShardedGallery\.search: another rank is gone"):
        gallery.search(x[:2], 3, progress=kill)
    assert time.monotonic() - start < 30
    dist.destroy_process_group()
    _start(folder / "silent", rank, size - 1, seconds=3)
    gallery = ShardedGallery(x)
    if rank == 2:
        while not all((folder / f"done {r}").exists() for r in (0, 1)):
            time.sleep(0.05)
        return
    match = r"ShardedGallery\.range_search: another rank is gone, or did not call"
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=match):
        gallery.range_search(x[:2], 3.0)
    assert time.monotonic() - start < 30
    (folder / f"done {rank}").touch()


def test_a_rank_that_is_killed_or_silent(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    queue_like = _Putter(queue)
    processes = [
        context.Process(target=_worker, args=(rank, _gone, 4, tmp_path, queue_like))
        for rank in range(4)
    ]
    for process in processes:
        process.start()
    try:
        failures = [queue.get(timeout=120) for _ in range(3)]
        assert not any(failures), "\n".join(f for f in failures if f)
        processes[3].join(10)
        assert processes[3].exitcode == -signal.SIGKILL
    finally:
        for process in processes:
            process.join(10)
            process.kill()


class _Putter:
    """A queue whose ``put`` returns when all is sent, for a process that leaves at once."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def put(self, item: Any) -> None:
        self.queue.put(item)
        self.queue.close()
        self.queue.join_thread()


def test_torchrun_runs_the_example_of_the_documentation(tmp_path):
    page = (Path(__file__).parents[1] / "docs/gallery.md").read_text()
    (script,) = re.findall(r"```python\n(# search\.py.*?)```", page, re.S)
    (tmp_path / "search.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", "search.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"rank {r}: 2000 rows, ids right" for r in (0, 1)]


def test_no_process_group():
    with pytest.raises(RuntimeError, match=r"ShardedGallery: no process group; .* siamcuda\.Gall"):
        ShardedGallery(torch.zeros(3, 2))


def test_signatures_follow_the_gallery():
    ours = dict(inspect.signature(ShardedGallery).parameters)
    assert ours.pop("group").default is None
    assert ours == dict(inspect.signature(Gallery).parameters)
    for name in ("search", "range_search"):
        mine, plain = (inspect.signature(getattr(c, name)) for c in (ShardedGallery, Gallery))
        assert mine.parameters == plain.parameters
