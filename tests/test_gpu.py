"""What only a GPU can show: graphs, streams, synchronisation, memory, sizes beyond an emulator.

Values at small sizes, and everything else that a backend owes, run on a GPU from the case table in
the other files: ``pytest -m gpu`` takes them all.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import BATCH_CASES, CASES, ONE_EACH, BatchCase, Case
from test_distributed import REDUCTIONS, run, split

import siamcuda
from siamcuda.verification import evaluate, from_distances

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

HARD_BATCH_CASES = [case for case in BATCH_CASES if not case.options.get("soft")]


def paired_step(case: Case, dtype: torch.dtype = torch.float32, rows: int = 70):
    """A step over inputs on the GPU, and the inputs: the loss and its gradients."""
    tensors, target = case.make((rows, 128), dtype, "cuda")

    def step() -> list[torch.Tensor]:
        loss = case.function(*case.arguments(tensors, target), **case.keywords(case.reductions[-1]))
        return [loss, *torch.autograd.grad(loss.sum(), tensors)]

    return step, tensors


def batch_step(case: BatchCase, dtype: torch.dtype = torch.float32, rows: int = 300, **options):
    x, y = case.make(rows, 64, dtype, classes=20)
    x, y = [t.detach().cuda().requires_grad_() for t in x], [t.cuda() for t in y]

    def step() -> list[torch.Tensor]:
        found = case.call(case.function, x, y, **options)
        loss, stats = found if options.get("return_stats") else (found, ())
        return [loss, *stats, *torch.autograd.grad(loss.sum(), x)]

    return step, x


STEPS = [
    *(pytest.param(paired_step, case, id=case.id) for case in CASES),
    *(pytest.param(batch_step, case, id=case.id) for case in BATCH_CASES),
]


@pytest.mark.parametrize(("make", "case"), STEPS)
def test_promise_4_a_graph_replays_what_was_captured(make, case):
    step, inputs = make(case)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(2):
        torch.manual_seed(seed)
        with torch.no_grad():
            for x in inputs:
                x.copy_(torch.randn_like(x) / x.shape[-1] ** 0.5)
        graph.replay()
        for found, wanted in zip(captured, step(), strict=True):
            assert torch.equal(found, wanted)


def test_a_replayed_backward_reads_the_upstream_gradient_anew():
    """See Note [Gradients made in forward]: the host must not have looked at it."""
    x = [torch.randn(70, 128, device="cuda", requires_grad=True) for _ in range(2)]
    target, upstream = torch.arange(70, device="cuda") % 2, torch.ones((), device="cuda")

    def step() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(siamcuda.contrastive_loss(*x, target), x, upstream)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for factor in (0.25, 1.0, -4.0):
        upstream.fill_(factor)
        graph.replay()
        for found, wanted in zip(captured, step(), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize(("make", "case"), STEPS)
def test_nothing_waits_for_the_device(make, case):
    options = {"return_stats": True} if make is batch_step else {}
    step, _ = make(case, **options)
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("make", "case"), STEPS)
def test_work_goes_to_the_current_stream(make, case):
    step, inputs = make(case)
    values = [torch.randn_like(x) / x.shape[-1] ** 0.5 for x in inputs]
    with torch.no_grad():
        for x, value in zip(inputs, values, strict=True):
            x.copy_(value)
    expected = step()
    with torch.no_grad():
        for x in inputs:
            x.fill_(float("nan"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        torch.cuda._sleep(20_000_000)  # another stream would read before this one writes
        for x, value in zip(inputs, values, strict=True):
            x.copy_(value)
        with torch.enable_grad():
            found = step()
    stream.synchronize()
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f, e)


def test_a_bad_label_is_nan_or_with_validation_an_error(monkeypatch):
    x1, x2 = torch.randn(2, 5, 8, device="cuda")
    target = torch.tensor([0, 1, 2, 1, 0], device="cuda")
    loss = siamcuda.contrastive_loss(x1, x2, target, reduction="none")
    assert loss.isnan().tolist() == [False, False, True, False, False]
    monkeypatch.setenv("SIAMCUDA_VALIDATE", "1")
    with pytest.raises(ValueError, match="target"):
        siamcuda.contrastive_loss(x1, x2, target)


# --- sizes that an emulator does not reach --------------------------------------------------------


def _rows_apart(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> float:
    """The share of rows that are not within the tolerance of the largest row."""
    found, wanted = found.detach().cpu().double(), wanted.detach().double()
    assert found.shape == wanted.shape
    largest = wanted.norm(dim=-1).max()
    apart = (found - wanted).norm(dim=-1) > tolerance * largest
    return float((apart | found.isnan().any(-1)).double().mean())


@pytest.mark.parametrize("case", BATCH_CASES, ids=lambda c: c.id)
@pytest.mark.parametrize(
    ("rows", "columns", "refs"), [(1500, 128, None), (5000, 40, None), (700, 300, 1500)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_large_batches_give_what_the_cpu_gives_in_float64(case, rows, columns, refs, dtype):
    if rows == 5000 and (dtype.itemsize == 2 or case.options.get("soft")):
        pytest.skip("seconds of the CPU for what the other sizes show")
    x, y = case.make(rows, columns, dtype, refs, classes=rows // 8)
    wide = [t.detach().double().requires_grad_() for t in x]
    exact = case.call(case.function, wide, y)
    wanted = torch.autograd.grad(exact, wide)
    here = [t.detach().cuda().requires_grad_() for t in x]
    loss = case.call(case.function, here, [t.cuda() for t in y])
    found = torch.autograd.grad(loss, here)
    relative = {torch.float64: 1e-12, torch.float32: 2e-5}.get(dtype, 1e-2)
    got, value = float(loss.detach()), float(exact.detach())
    assert abs(got - value) <= relative * abs(value), (got, value)
    # Distances that are equal but for rounding are mined the other way round now and then.
    mined = case.options.get("mining", "all") != "all" and dtype != torch.float64
    for f, w in zip(found, wanted, strict=True):
        assert _rows_apart(f, w, 10 * relative) <= (0.03 if mined else 0)


@pytest.mark.parametrize("case", HARD_BATCH_CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_promise_8_a_batch_of_65536_rows_in_64_mib_and_one_array(case, dtype):
    rows, columns = 65536, 128
    x = torch.randn(rows, columns, device="cuda").to(dtype).requires_grad_()
    labels = torch.arange(rows, device="cuda") // 8
    array = rows * columns * 4 / 2**20
    case.call(case.function, [x[:256]], [labels[:256]]).backward()
    x.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    case.call(case.function, [x], [labels]).backward()
    torch.cuda.synchronize()
    extra = (torch.cuda.max_memory_allocated() - before) / 2**20 - x.grad.nbytes / 2**20
    assert bool(x.grad.isfinite().all())
    print(f"{case.id} {dtype}: {extra:.1f} MiB")
    assert extra <= array + 64


def test_squared_cdist_beyond_2_to_the_31_distances():
    x1 = torch.randn(70000, 16, device="cuda", dtype=torch.bfloat16)
    x2 = torch.randn(33000, 16, device="cuda", dtype=torch.bfloat16)
    found = siamcuda.squared_cdist(x1, x2)
    rows = torch.tensor([0, 1, 65535, 65536, 69999])
    wanted = siamcuda.squared_cdist(x1[rows.cuda()].double(), x2.double())
    torch.testing.assert_close(found[rows.cuda()].double(), wanted, rtol=1e-2, atol=1e-2)
    del found
    torch.cuda.empty_cache()


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.id)
def test_pairs_beyond_2_to_the_31_elements(case):
    rows, columns = 2**21 + 3, 1024
    generator = torch.Generator("cuda").manual_seed(0)
    tensors = [
        torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16, generator=generator)
        for _ in range(case.inputs)
    ]
    target = torch.arange(rows, device="cuda") % 2 if case.has_target else None
    found = case.value_and_grad(*case.arguments(tensors, target), **case.keywords("none"))
    for at in (slice(0, 3), slice(2**21 - 2, None)):
        part = [t[at].contiguous() for t in tensors]
        label = None if target is None else target[at].contiguous()
        loss, gradients = case.value_and_grad(*case.arguments(part, label), **case.keywords("none"))
        assert torch.equal(found[0][at], loss)
        for whole, gradient in zip(found[1], gradients, strict=True):
            assert torch.equal(whole[at], gradient)
    del found, tensors
    torch.cuda.empty_cache()


# --- search ---------------------------------------------------------------------------------------

SEARCHED = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8]


def searched(count: int, columns: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(256, (count, columns), generator=generator, dtype=dtype)
    return torch.randn(count, columns, generator=generator).to(dtype)


def empty_lists(queries: int, k: int, dtype: torch.dtype) -> list[torch.Tensor]:
    exact = {torch.uint8: torch.int32, torch.float64: torch.float64}.get(dtype, torch.float32)
    padding = 2**31 - 1 if dtype == torch.uint8 else float("inf")
    distances = torch.full((queries, k), padding, dtype=exact)
    return [distances, torch.full((queries, k), -1, dtype=torch.int64)]


@pytest.mark.parametrize("dtype", SEARCHED, ids=str)
@pytest.mark.parametrize(
    ("count", "rows", "columns", "k"),
    [(1000, 50000, 128, 10), (1, 300000, 64, 100), (4, 70000, 33, 5), (20, 40000, 16, 3000)],
)
def test_promise_5_search_gives_the_bits_of_the_cpu(count, rows, columns, k, dtype):
    metric = "hamming" if dtype == torch.uint8 else "sqeuclidean"
    q, r = searched(count, columns, dtype, 1), searched(rows, columns, dtype, 2)
    r[rows // 2 : rows // 2 + 50] = r[:50]
    lists = empty_lists(count, k, dtype)
    wanted = torch.ops.siamcuda.gallery_knn(q, r, [], 0, metric, *lists)
    here = [t.cuda() for t in (q, r, *lists)]
    found = torch.ops.siamcuda.gallery_knn(here[0], here[1], [], 0, metric, *here[2:])
    for f, w in zip(found, wanted, strict=True):
        assert torch.equal(f.cpu(), w)
    radius = float(wanted[0][:, -1].double().median())
    ranges = [(q, r), here[:2]]
    on_cpu, on_gpu = (
        torch.ops.siamcuda.gallery_range(*pair, [], 0, metric, radius) for pair in ranges
    )
    for f, w in zip(on_gpu, on_cpu, strict=True):
        assert torch.equal(f.cpu(), w)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
def test_a_gallery_on_a_gpu_is_the_gallery(metric):
    q, r = searched(300, 50, torch.float32, 3), searched(20000, 50, torch.float32, 4)
    r[7] = q[2] = 0
    on_cpu, on_gpu = siamcuda.Gallery(r, metric=metric), siamcuda.Gallery(r.cuda(), metric=metric)
    for found, wanted in (
        (on_gpu.search(q.cuda(), 9), on_cpu.search(q, 9)),
        (on_gpu.range_search(q.cuda(), 0.7), on_cpu.range_search(q, 0.7)),
    ):
        for f, w in zip(found, wanted, strict=True):
            assert torch.equal(f.cpu(), w)


@pytest.mark.parametrize(("count", "k"), [(300, 10), (1, 10), (3, 2000)])
def test_a_search_waits_for_nothing_and_can_be_captured(count, k):
    q, r = (searched(n, 64, torch.float32, n).cuda() for n in (count, 30000))
    lists = [t.cuda() for t in empty_lists(count, k, torch.float32)]

    def step() -> tuple[torch.Tensor, ...]:
        return torch.ops.siamcuda.gallery_knn(q, r, [], 0, "sqeuclidean", *lists)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        q.copy_(torch.randn_like(q))
        graph.replay()
        for found, wanted in zip(captured, step(), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8], ids=str)
@pytest.mark.parametrize(("count", "rows", "k"), [(20000, 200000, 10), (1, 2**22, 100)])
def test_promise_8_a_search_takes_64_mib_and_what_it_returns(count, rows, k, dtype):
    metric = "hamming" if dtype == torch.uint8 else "sqeuclidean"
    q, r = searched(count, 32, dtype, 5).cuda(), searched(rows, 32, dtype, 6).cuda()
    lists = [t.cuda() for t in empty_lists(count, k, dtype)]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = torch.ops.siamcuda.gallery_knn(q, r, [], 0, metric, *lists)
    torch.cuda.synchronize()
    own = sum(t.nbytes for t in found) + (count * 32 * 4 if dtype == torch.float16 else 0)
    extra = (torch.cuda.max_memory_allocated() - before - own) / 2**20
    print(f"{dtype}, {count} x {rows}: {extra:.1f} MiB")
    assert extra <= 64


def test_search_beyond_2_to_the_31_elements():
    rows, columns = 2**21 + 3, 1024
    generator = torch.Generator("cuda").manual_seed(0)
    r = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16, generator=generator)
    at = torch.tensor([0, 2**20, 2**21 - 1, 2**21 + 2], device="cuda")
    for q in (r[at].float(), r[at].float().repeat(3, 1)):
        lists = [t.cuda() for t in empty_lists(len(q), 3, r.dtype)]
        first = 2**40
        found = torch.ops.siamcuda.gallery_knn(q, r, [], first, "sqeuclidean", *lists)
        assert torch.equal(found[1][:, 0], at.repeat(len(q) // 4) + first)
        assert found[0][:, 0].count_nonzero() == 0
        counts, _, positions = torch.ops.siamcuda.gallery_range(
            q, r, [], first, "sqeuclidean", 1e-3
        )
        assert counts.tolist() == [1] * len(q)
        assert torch.equal(positions, at.repeat(len(q) // 4) + first)
    del r
    torch.cuda.empty_cache()


# --- verification ---------------------------------------------------------------------------------


def people(rows: int, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    labels = torch.randint(rows // 8, (rows,), device="cuda", generator=generator)
    centres, noise = (
        torch.randn(n, columns, device="cuda", generator=generator) for n in (rows // 8, rows)
    )
    return (centres[labels] + noise).to(dtype), labels


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize(
    ("dtype", "columns"),
    [(torch.float32, 17), (torch.float32, 200), (torch.bfloat16, 64), (torch.float64, 40)],
)
def test_verification_is_exact_by_the_distances_of_the_gpu(dtype, columns, metric):
    x, labels = people(4000, columns, dtype)
    report = evaluate(x, labels, (0.1, 1e-3, 1e-5), metric=metric, hardest=30, bootstrap=64)
    assert report.binned
    wide = x.double() if dtype == torch.float64 else x.float()
    unit = torch.ops.siamcuda.gallery_normalize(wide) if metric == "cosine" else wide
    distance = siamcuda.squared_cdist(unit, unit)
    assert torch.equal(distance, distance.T)
    i, j = torch.triu_indices(4000, 4000, 1, device="cuda")
    same = (labels[i] == labels[j]).cpu().numpy()
    distance = distance[i, j].cpu().numpy()
    if metric != "sqeuclidean":
        distance = np.sqrt(distance) if metric == "euclidean" else distance * 0.5
    exact = from_distances(distance[same], distance[~same])
    assert (report.eer, report.eer_threshold) == (exact.eer, exact.eer_threshold)
    for far in (0.1, 1e-3, 1e-5):
        assert report.threshold(far) == exact.threshold(far)
        assert report.frr(far) == exact.frr(far)
    np.testing.assert_allclose(report.spread, exact.spread, rtol=1e-9)
    i, j = i.cpu().numpy(), j.cpu().numpy()
    for found, kind, sign in (
        (report.hardest_genuine, same, -1),
        (report.hardest_impostor, ~same, 1),
    ):
        order = np.lexsort((j[kind], i[kind], sign * distance[kind]))[:30]
        assert np.array_equal(found.distance, distance[kind][order])
        assert np.array_equal(found.pairs, np.stack([i[kind], j[kind]], 1)[order])
    again = evaluate(x, labels, (0.1, 1e-3, 1e-5), metric=metric, hardest=30, bootstrap=64)
    assert again.spread == report.spread
    assert again.confidence == report.confidence
    assert np.array_equal(again.identification.rank, report.identification.rank)
    # Distances differ in their last bits from the CPU's, and rates by a few pairs.
    host = evaluate(x.cpu(), labels.cpu(), (0.1,), metric=metric)
    assert report.eer == pytest.approx(host.eer, abs=1e-4)
    assert (report.identification.rank != host.identification.rank).mean() < 5e-2


def test_promise_8_verification_takes_64_mib_and_a_copy():
    x, labels = people(300_000, 32, torch.float32)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    report = evaluate(x, labels, hardest=100)
    extra = (torch.cuda.max_memory_allocated() - before - x.nbytes) / 2**20
    print(f"{extra:.1f} MiB")
    assert extra <= 64
    assert report.genuine + report.impostor == 300_000 * 299_999 // 2
    assert report.impostor_within[-1] == report.impostor


def test_verification_works_on_the_current_stream():
    x, labels = people(3000, 64, torch.float32)
    wanted = evaluate(x, labels)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        y = x + 1  # not there for a while
        found = evaluate(y - 1, labels)
    reference = evaluate((x + 1) - 1, labels)
    assert np.array_equal(found.impostor_within, reference.impostor_within)
    assert found.impostor == wanted.impostor


def test_queries_and_gallery_on_two_devices_are_an_error():
    x, labels = people(64, 8, torch.float32)
    with pytest.raises(ValueError, match="gallery must be on the device of embeddings"):
        evaluate(x, labels, gallery=x.cpu(), gallery_labels=labels)


# --- PyTorch on a GPU -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.id)
def test_compile_with_inductor(case):
    tensors, target = case.make((70, 32), torch.float32, "cuda")

    def loss(*arguments):
        return case.function(*(a * 1 for a in arguments), **case.keywords("none")).sum()

    torch._dynamo.reset()
    arguments = case.arguments(tensors, target)
    value, exact = torch.compile(loss, fullgraph=True)(*arguments), loss(*arguments)
    torch.testing.assert_close(value, exact)
    found, wanted = torch.autograd.grad(value, tensors), torch.autograd.grad(exact, tensors)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("case", HARD_BATCH_CASES, ids=lambda c: c.id)
def test_autocast_of_a_batch(case):
    x, y = case.make(60, 32, torch.float16)
    x, y = [t.detach().cuda() for t in x], [t.cuda() for t in y]
    with torch.autocast("cuda", torch.float16):
        found = case.call(case.function, x, y)
    assert found.dtype == torch.float32
    wanted = case.call(case.function, [t.float() for t in x], y)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def _two_ranks(rank: int, size: int, file) -> None:
    torch.distributed.init_process_group("gloo", f"file://{file}/store", rank=rank, world_size=size)
    for case in HARD_BATCH_CASES:
        for reduction in REDUCTIONS:
            (x,), (y,) = case.make(30, 16, torch.float32)
            x, y, sizes = x.detach().cuda().requires_grad_(), y.cuda(), (11, 19)
            loss = case.call(case.function, [x], [y], reduction=reduction)
            (wanted,) = torch.autograd.grad(loss.sum(), x)
            mine = split(x.detach(), sizes, rank).clone().requires_grad_()
            function = getattr(siamcuda.distributed, case.name)
            found = function(
                mine, split(y, sizes, rank), **case.options, reduction=reduction, ddp=False
            )
            expected = split(loss, sizes, rank) if reduction == "none" else loss
            torch.testing.assert_close(found, expected)
            (gradient,) = torch.autograd.grad(found.sum(), mine)
            torch.testing.assert_close(gradient, split(wanted, sizes, rank), rtol=1e-5, atol=1e-6)


def test_two_ranks_on_one_gpu_give_what_one_process_gives(tmp_path):
    run(_two_ranks, 2, tmp_path)
