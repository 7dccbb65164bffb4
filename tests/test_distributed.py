"""Losses over the joined batch of ranks, against one process that has the joined batch.

Each test starts its processes once and makes many checks in them, since starting them is what
takes the time.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import itertools
import os
import re
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import BATCH_CASES, BatchCase

import siamcuda

REDUCTIONS = ("mean", "mean_active", "sum", "none")
ONE_EACH = list({case.name: case for case in reversed(BATCH_CASES)}.values())


def _start(file, rank: int, size: int, seconds: float = 60) -> None:
    timeout = datetime.timedelta(seconds=seconds)
    store = f"file://{file}"
    dist.init_process_group("gloo", store, rank=rank, world_size=size, timeout=timeout)


def _worker(rank: int, check: Callable[..., None], size: int, folder, queue) -> None:
    """Runs ``check`` and sends what it raised; leaves at once, since threads of torch's process
    group sometimes abort an orderly exit."""
    torch.set_num_threads(1)
    try:
        check(rank, size, folder)
        queue.put(None)
    except BaseException:
        queue.put(f"rank {rank}:\n{traceback.format_exc()}")
    if dist.is_initialized():
        dist.destroy_process_group()
    os._exit(0)


def run(check: Callable[..., None], size: int, folder, answers: int | None = None) -> None:
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_worker, (check, size, folder, queue), nprocs=size)
    failures = [queue.get() for _ in range(size if answers is None else answers)]
    assert not any(failures), "\n".join(f for f in failures if f)


def split(whole: torch.Tensor, sizes: tuple[int, ...], rank: int) -> torch.Tensor:
    return whole.split(list(sizes))[rank]


def compare(
    case: BatchCase,
    rank: int,
    sizes: tuple[int, ...],
    reduction: str,
    dtype: torch.dtype,
    tolerance: float,
    spoil: float | None = None,
) -> None:
    (x,), (y,) = case.make(sum(sizes), 5, dtype)
    if spoil is not None:
        x.data[3, 1] = spoil
    expected = case.call(case.function, [x], [y], reduction=reduction)
    upstream = torch.linspace(0.5, 2, sum(sizes), dtype=dtype)
    if reduction != "none":
        upstream = torch.tensor(-1.5, dtype=dtype)
    (wanted,) = torch.autograd.grad(expected, x, upstream)

    mine = split(x, sizes, rank).detach().clone().requires_grad_()
    function = getattr(siamcuda.distributed, case.name)
    loss = function(mine, split(y, sizes, rank), **case.options, reduction=reduction)
    if reduction == "none":
        expected, upstream = split(expected, sizes, rank), split(upstream, sizes, rank)
    loss.backward(upstream)
    what = f"{case.id} {reduction} {sizes} {dtype}"
    close(what, loss.detach(), expected.detach(), tolerance)
    close(f"gradient of {what}", mine.grad, split(wanted, sizes, rank), tolerance)


def close(what: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Errors relative to the largest entry: sums are rounded by their terms."""
    largest = float(expected.nan_to_num(0).abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        actual,
        expected,
        rtol=tolerance,
        atol=tolerance * largest,
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )


def _losses(rank: int, size: int, folder) -> None:
    _start(folder / "store", rank, size)
    patterns = {2: [(7, 9), (8, 8), (13, 0), (0, 0)], 4: [(3, 9, 0, 6), (5, 5, 5, 5)]}[size]
    for case, reduction in itertools.product(BATCH_CASES, REDUCTIONS):
        compare(case, rank, patterns[0], reduction, torch.float64, 1e-12)
    for case, reduction, sizes in itertools.product(ONE_EACH, REDUCTIONS, patterns):
        compare(case, rank, sizes, reduction, torch.float32, 1e-6)
    if size == 2:
        for case, reduction in itertools.product(ONE_EACH, REDUCTIONS):
            compare(case, rank, patterns[0], reduction, torch.bfloat16, 0.02)
            compare(case, rank, patterns[0], reduction, torch.float32, 1e-6, spoil=float("nan"))
        for check in (_labels, _options, _partly, _faults, _groups):
            check(rank, size)


def test_two_ranks_equal_one(tmp_path):
    run(_losses, 2, tmp_path)


def test_four_ranks_equal_one(tmp_path):
    run(_losses, 4, tmp_path)


def _labels(rank: int, size: int) -> None:
    """Every integer type, another on each rank, and classes far from 0."""
    x, y = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3
    expected = siamcuda.batch_triplet_loss(x, y)
    types = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    for k, kind in enumerate(types):
        kinds = (kind, types[(k + 2) % 5])
        mine = split(y, (4, 6), rank).to(kinds[rank])
        loss = siamcuda.distributed.batch_triplet_loss(split(x, (4, 6), rank), mine)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    far = split(y * 2**61 - 2**62, (4, 6), rank)
    loss = siamcuda.distributed.batch_triplet_loss(split(x, (4, 6), rank), far)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def _options(rank: int, size: int) -> None:
    """Statistics, autocast, ddp, D = 0, strides, one answer on all ranks, no second derivative."""
    for case in ONE_EACH:
        (x,), (y,) = case.make(11, 6, torch.float32)
        function = getattr(siamcuda.distributed, case.name)
        mine, own = split(x, (4, 7), rank).detach(), split(y, (4, 7), rank)
        expected, stats = case.call(case.function, [x], [y], return_stats=True)
        loss, found = function(mine, own, **case.options, return_stats=True)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
        assert found == stats, (found, stats)
        everybody = [torch.zeros(()) for _ in range(size)]
        dist.all_gather(everybody, loss)
        assert torch.equal(everybody[0], everybody[1])

        gradients = []
        for ddp, reduction in itertools.product((False, True), ("mean", "none")):
            leaf = torch.cat([mine, mine], 1)[:, :6].requires_grad_()  # a slice: strided rows
            value = function(leaf, own, **case.options, reduction=reduction, ddp=ddp)
            gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
        torch.testing.assert_close(gradients[2], size * gradients[0])
        torch.testing.assert_close(gradients[3], size * gradients[1])

        low = mine.bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = function(low, own, **case.options)
        assert value.dtype == torch.float32
        value.backward()
        assert low.grad.dtype == torch.bfloat16

        assert torch.isfinite(function(mine[:, :0], own, **case.options))
        for reduction in ("mean", "none"):
            leaf = mine.clone().requires_grad_()
            value = function(leaf, own, **case.options, reduction=reduction).sum()
            with pytest.raises(RuntimeError, match="no second derivative"):
                torch.autograd.grad(value, leaf, create_graph=True)


def _partly(rank: int, size: int) -> None:
    """Only one rank wants a gradient: the others still give their part of it."""
    for case in ONE_EACH:
        (x,), (y,) = case.make(12, 5, torch.float32)
        (wanted,) = torch.autograd.grad(case.call(case.function, [x], [y]), x)
        mine = split(x, (5, 7), rank).detach().clone().requires_grad_(rank == 1)
        function = getattr(siamcuda.distributed, case.name)
        loss = function(mine, split(y, (5, 7), rank), **case.options)
        assert loss.requires_grad == (rank == 1)
        if rank == 1:
            loss.backward()
            torch.testing.assert_close(mine.grad, split(wanted, (5, 7), rank))
        with pytest.raises(ValueError, match="whether embeddings require a gradient"):
            function(mine, split(y, (5, 7), rank), reduction="none")


def _faults(rank: int, size: int) -> None:
    """What is wrong on rank 1 raises on both, and the next call works."""
    x, y = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    faults: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"embeddings": x[0]}, ValueError, r"rank 1: .*embeddings must have shape \(B, D\)"),
        ({"embeddings": None}, TypeError, "rank 1: .*embeddings must be a Tensor"),
        ({"embeddings": torch.tensor(1.0)}, ValueError, "rank 1: .*embeddings must have shape"),
        ({"labels": y[:3]}, ValueError, "rank 1: .*one entry for each row"),
        ({"labels": y.float()}, TypeError, "rank 1: .*labels must be integers"),
        ({"margin": float("nan")}, ValueError, "rank 1: .*margin must be a finite number"),
        ({"margin": "wide"}, TypeError, "rank 1: .*margin must be a float"),
        ({"mining": "hardest"}, ValueError, "rank 1: .*mining must be"),
        ({"reduction": "average"}, ValueError, "rank 1: .*reduction must be"),
        ({"embeddings": x[:, :2]}, ValueError, "differ in D.*3 on rank 0, 2 on rank 1"),
        ({"embeddings": x.double()}, TypeError, "dtype.*float32 on rank 0, float64 on rank 1"),
        ({"margin": 0.5}, ValueError, "the loss.*margin=0.2.*rank 0.*margin=0.5.*on rank 1"),
        ({"mining": "hard"}, ValueError, "mining='all'.*mining='hard'"),
        ({"reduction": "sum"}, ValueError, "reduction='mean'.*reduction='sum'"),
        ({"ddp": True}, ValueError, "ddp=False.*ddp=True"),
    ]
    good = {"embeddings": x, "labels": y}
    for change, error, match in faults:
        with pytest.raises(error) as caught:
            siamcuda.distributed.batch_triplet_loss(**(good | (change if rank == 1 else {})))
        assert re.search(match, str(caught.value)), (change, str(caught.value))
    function = getattr(siamcuda.distributed, ("batch_triplet_loss", "batch_chopra_loss")[rank])
    with pytest.raises(ValueError, match=r"batch_triplet_loss\(.*batch_chopra_loss\("):
        function(x, y)

    # A rank that fails later, in its own part, tells the others too.
    call = siamcuda.distributed.losses._Call
    kept = call.compute
    if rank == 1:
        call.compute = lambda *_: (_ for _ in ()).throw(MemoryError("no memory left"))
    message = "rank 1 failed while it computed its part" + (": no memory left" if rank else "; its")
    with pytest.raises(RuntimeError, match=message):
        siamcuda.distributed.batch_triplet_loss(x, y)
    call.compute = kept
    # margin=1 and margin=1.0 are one option.
    assert torch.isfinite(siamcuda.distributed.batch_triplet_loss(x, y, margin=(1, 1.0)[rank]))


def _groups(rank: int, size: int) -> None:
    """A group of one is the plain loss; a process outside of it is told so."""
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    alone = dist.new_group([1])
    if rank == 1:
        loss, stats = siamcuda.distributed.batch_triplet_loss(
            x, y, margin=0.7, return_stats=True, group=alone
        )
        assert torch.equal(loss, siamcuda.batch_triplet_loss(x, y, margin=0.7))
        assert stats.valid > 0
    else:
        with pytest.raises(RuntimeError, match="not in the group"):
            siamcuda.distributed.batch_triplet_loss(x, y, group=alone)
    backwards = dist.new_group([1, 0], sort_ranks=False) if _sorts() else dist.new_group([0, 1])
    dist.broadcast(x, 0)
    loss = siamcuda.distributed.batch_contrastive_loss(x, y, group=backwards)
    wanted = siamcuda.batch_contrastive_loss(torch.cat([x, x]), torch.cat([y, y]))
    torch.testing.assert_close(loss, wanted)


def _sorts() -> bool:
    return "sort_ranks" in inspect.signature(dist.new_group).parameters


def _encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 5, dtype=torch.float64),
        torch.nn.Tanh(),
        torch.nn.Linear(5, 3, dtype=torch.float64),
    )


def _ddp(rank: int, size: int, folder) -> None:
    """DistributedDataParallel with ddp=True, and a sum over ranks without, equal one process."""
    _start(folder / "store", rank, size)
    sizes = (5, 9)
    x = torch.randn(14, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.arange(14) % 4
    for case, reduction in itertools.product(ONE_EACH, REDUCTIONS):
        alone = _encoder()
        case.call(case.function, [alone(x)], [y], reduction=reduction).sum().backward()
        wanted = [p.grad for p in alone.parameters()]
        function = getattr(siamcuda.distributed, case.name)
        part, own = split(x, sizes, rank), split(y, sizes, rank)

        model = torch.nn.parallel.DistributedDataParallel(_encoder())
        loss = function(model(part), own, **case.options, reduction=reduction, ddp=True)
        loss.sum().backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], wanted)

        plain = _encoder()
        function(plain(part), own, **case.options, reduction=reduction).sum().backward()
        for p in plain.parameters():
            dist.all_reduce(p.grad)
        torch.testing.assert_close([p.grad for p in plain.parameters()], wanted)

        # The same in chunks, two on one rank and three on the other.
        model.zero_grad()
        loss_fn = functools.partial(_total, function, own, {**case.options, "reduction": reduction})
        siamcuda.cached_step(model, part.split(4), loss_fn)
        torch.testing.assert_close([p.grad for p in model.parameters()], wanted)
        del model
    dist.barrier()


def _total(function, labels, options, embeddings):
    return function(embeddings, labels, **options, ddp=True).sum()


def test_distributed_data_parallel(tmp_path):
    run(_ddp, 2, tmp_path)


def _silent(rank: int, size: int, folder) -> None:
    """A rank that does not come, and one that is dead, are errors within the timeout."""
    x, y = torch.randn(4, 3, requires_grad=True), torch.arange(4) % 2
    loss = siamcuda.distributed.batch_triplet_loss
    message = "batch_triplet_loss: another rank is gone, or did not call"
    _start(folder / "together", rank, size)  # what a slow start takes is not for a short timeout
    dist.barrier()
    dist.destroy_process_group()
    for name, silent_backward in (("forward", False), ("backward", True)):
        _start(folder / name, rank, size, seconds=3)
        done = folder / f"{name} done"
        anchors = loss(x, y, reduction="none") if silent_backward else None
        if rank == 0:
            start = time.monotonic()
            with pytest.raises(RuntimeError, match=message):
                anchors.sum().backward() if silent_backward else loss(x, y)
            assert 1 < time.monotonic() - start < 30
            done.touch()
        while not done.exists():
            time.sleep(0.05)
        dist.destroy_process_group()
    _start(folder / "dead", rank, size, seconds=5)
    loss(x, y)
    if rank == 1:
        os._exit(0)
    with pytest.raises(RuntimeError, match=message):
        loss(x, y)


def test_a_rank_that_does_not_answer(tmp_path):
    run(_silent, 2, tmp_path, answers=1)


def test_no_process_group():
    for name in siamcuda.distributed.losses.__all__:
        with pytest.raises(RuntimeError, match=f"{name}: no process group"):
            getattr(siamcuda.distributed, name)(torch.randn(3, 2), torch.arange(3))


def test_signatures_follow_the_plain_losses():
    for name in siamcuda.distributed.losses.__all__:
        ours = dict(inspect.signature(getattr(siamcuda.distributed, name)).parameters)
        plain = dict(inspect.signature(getattr(siamcuda, name)).parameters)
        assert ours.pop("ddp").default is False
        assert ours.pop("group").default is None
        assert [plain.pop(n).default for n in ("ref_embeddings", "ref_labels")] == [None, None]
        assert list(ours) == list(plain)
        assert [p.default for p in ours.values()] == [p.default for p in plain.values()]
