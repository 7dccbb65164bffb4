"""The operators as citizens of PyTorch: opcheck, compile, export, vmap, autocast, DDP, threads."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch
from cases import CASES, ONE_EACH

import siamcuda

SUFFIXES = ["", "_backward", "_double_backward", "_value_and_grad", "_stats"]


def operator_arguments(case, suffix, requires_grad, dtype=torch.float64):
    tensors, target = case.make((5, 6), dtype, requires_grad=requires_grad)
    arguments = case.arguments(tensors, target)
    options = dict(case.options)
    upstream = torch.rand(5, dtype=dtype, requires_grad=requires_grad)
    if suffix == "_stats":
        return arguments, options
    if suffix in ("", "_value_and_grad"):
        return arguments, {**options, "reduction": case.reductions[-1]}
    mask = [True] * case.inputs
    options["reduction"] = "none"
    if suffix == "_backward":
        return [upstream, *arguments, mask], options
    tangents = [torch.rand_like(t) for t in tensors]
    return [upstream, tangents, *arguments, mask], options


@pytest.mark.parametrize(
    ("case", "suffix"),
    [(c, s) for c in ONE_EACH for s in SUFFIXES if s != "_stats" or c.reductions != ("none",)],
    ids=lambda x: getattr(x, "name", x),
)
def test_opcheck(case, suffix):
    operator = getattr(torch.ops.siamcuda, case.name + suffix).default
    for requires_grad in (False, True):
        args, kwargs = operator_arguments(case, suffix, requires_grad)
        utilities = ["test_schema", "test_autograd_registration", "test_faketensor"]
        # A third derivative is refused, and no-graph operators have none: nothing to trace there.
        if suffix in ("", "_backward") or not requires_grad:
            utilities.append("test_aot_dispatch_dynamic")
        result = torch.library.opcheck(operator, tuple(args), kwargs, test_utils=utilities)
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_compile_forward_and_backward(case):
    def step(*arguments):
        return case.function(*arguments, **case.keywords(case.reductions[-1])).sum() * 2

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((5, 6), (7, 9)):
        tensors, target = case.make(shape, torch.float32)
        arguments = case.arguments(tensors, target)
        expected = torch.autograd.grad(step(*arguments), tensors)
        value = compiled(*arguments)
        assert torch.equal(value, step(*arguments))
        for a, e in zip(torch.autograd.grad(value, tensors), expected, strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_compile_with_inductor(case):
    def step(*arguments):
        return case.function(*(a * 1 for a in arguments), **case.keywords("none")).sum()

    tensors, target = case.make((8, 16), torch.float32)
    arguments = case.arguments(tensors, target)
    torch._dynamo.reset()
    value = torch.compile(step, fullgraph=True, dynamic=True)(*arguments)
    torch.testing.assert_close(value, step(*arguments))
    expected = torch.autograd.grad(step(*arguments), tensors)
    for a, e in zip(torch.autograd.grad(value, tensors), expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_compile_value_and_grad_and_statistics(case):
    tensors, target = case.make((8, 16), torch.float32, requires_grad=False)
    arguments = case.arguments(tensors, target)

    def both(*arguments):
        return case.value_and_grad(*arguments, **case.options)

    torch._dynamo.reset()
    loss, gradients = torch.compile(both, fullgraph=True, backend="aot_eager")(*arguments)
    expected, wanted = both(*arguments)
    assert torch.equal(loss, expected)
    assert all(torch.equal(a, e) for a, e in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
@pytest.mark.parametrize("strict", [False, True])
def test_export(case, strict):
    class Model(torch.nn.Module):
        def forward(self, *arguments):
            return case.function(*arguments, **case.keywords("none"))

    tensors, target = case.make((8, 6), torch.float32, requires_grad=False)
    arguments = tuple(case.arguments(tensors, target))
    rows = torch.export.Dim("rows")
    shapes = (tuple({0: rows} for _ in arguments),)
    program = torch.export.export(Model(), arguments, dynamic_shapes=shapes, strict=strict)
    assert any(f"siamcuda.{case.name}" in str(n.target) for n in program.graph.nodes)
    tensors, target = case.make((5, 6), torch.float32, requires_grad=False)
    arguments = tuple(case.arguments(tensors, target))
    assert torch.equal(
        program.module()(*arguments), case.function(*arguments, **case.keywords("none"))
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_vmap(case):
    tensors, target = case.make((4, 5, 6), torch.float32, requires_grad=False)
    for reduction in case.reductions:

        def one(*arguments, reduction=reduction):
            return case.function(*arguments, **case.keywords(reduction))

        arguments = case.arguments(tensors, target)
        expected = torch.stack([one(*(a[i] for a in arguments)) for i in range(4)])
        torch.testing.assert_close(torch.vmap(one)(*arguments), expected)
        moved = [a.movedim(0, -1) for a in arguments]
        torch.testing.assert_close(torch.vmap(one, in_dims=-1)(*moved), expected)
        shared = [arguments[0], *(a[0] for a in arguments[1:])]
        expected = torch.stack([one(shared[0][i], *shared[1:]) for i in range(4)])
        in_dims = (0, *(None for _ in shared[1:]))
        torch.testing.assert_close(torch.vmap(one, in_dims=in_dims)(*shared), expected)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_vmap_of_gradients_and_statistics(case):
    tensors, target = case.make((4, 5, 6), torch.float32, requires_grad=False)
    arguments = case.arguments(tensors, target)
    in_dims = (None, *(0 for _ in arguments[1:]))
    shared = [arguments[0][0], *arguments[1:]]
    for reduction in case.reductions:

        def one(*arguments, reduction=reduction):
            return case.value_and_grad(*arguments, **case.options, reduction=reduction)

        losses, gradients = torch.vmap(one, in_dims=in_dims)(*shared)
        for i in range(4):
            loss, expected = one(shared[0], *(a[i] for a in shared[1:]))
            torch.testing.assert_close(losses[i], loss)
            for g, e in zip(gradients, expected, strict=True):
                torch.testing.assert_close(g[i], e)
    if case.reductions == ("none",):
        return
    stats = getattr(torch.ops.siamcuda, case.name + "_stats")
    batched = torch.vmap(lambda *a: stats(*a, **case.options))(*arguments)
    single = [stats(*(a[i] for a in arguments), **case.options) for i in range(4)]
    torch.testing.assert_close(batched, torch.stack(single))


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_vmap_then_autograd(case):
    tensors, target = case.make((4, 5, 6), torch.float32)
    arguments = case.arguments(tensors, target)

    def one(*arguments):
        return case.function(*arguments, **case.keywords(case.reductions[-1]))

    batched = torch.autograd.grad(torch.vmap(one)(*arguments).sum(), tensors)
    single = sum(one(*(a[i] for a in arguments)).sum() for i in range(4))
    for a, e in zip(batched, torch.autograd.grad(single, tensors), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_func_grad_is_a_clear_error(case):
    tensors, target = case.make((4, 5), torch.float32, requires_grad=False)

    def one(first):
        return case.function(*case.arguments([first, *tensors[1:]], target)).sum()

    with pytest.raises(RuntimeError, match=f"{case.name}: torch.func.grad.*siamcuda.reference"):
        torch.func.grad(one)(tensors[0])


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_autocast_joins_mixed_precisions_in_float32(case):
    tensors, target = case.make((4, 5), torch.float32, requires_grad=False)
    mixed = [tensors[0].bfloat16(), *tensors[1:]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = case.function(*case.arguments(mixed, target))
    wide = [tensors[0].bfloat16().float(), *tensors[1:]]
    assert torch.equal(value, case.function(*case.arguments(wide, target)))


def test_autocast_in_a_training_step():
    torch.manual_seed(0)
    encoder = torch.nn.Linear(8, 4)
    x1, x2, y = torch.randn(6, 8), torch.randn(6, 8), torch.randint(0, 2, (6,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = siamcuda.contrastive_loss(encoder(x1), encoder(x2), y)
    assert loss.dtype == torch.float32
    loss.backward()
    assert encoder.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
@pytest.mark.parametrize("kept", [False, True])
def test_compiled_autograd_of_an_eager_forward(case, kept):
    tensors, target = case.make((6, 5), torch.float32)

    def step():
        value = case.function(*case.arguments(tensors, target)).sum() * 1.5
        value.backward(retain_graph=kept)
        found = [t.grad.clone() for t in tensors]
        for t in tensors:
            t.grad = None
        return found

    expected = step()
    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        actual = step()
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_checkpoint_and_saved_tensor_hooks(case):
    from torch.utils.checkpoint import checkpoint

    tensors, target = case.make((6, 5), torch.float32)

    def loss(*tensors):
        return case.function(*case.arguments([t * 2 for t in tensors], target)).sum()

    expected = torch.autograd.grad(loss(*tensors), tensors)
    found = [torch.autograd.grad(checkpoint(loss, *tensors, use_reentrant=False), tensors)]
    with torch.autograd.graph.save_on_cpu():
        value = loss(*tensors)
    found.append(torch.autograd.grad(value, tensors))
    for gradients in found:
        for a, e in zip(gradients, expected, strict=True):
            assert torch.equal(a, e)


def test_func_jvp_is_an_error():
    x = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match=r"functorch|torch.func"):
        torch.func.jvp(lambda a: siamcuda.squared_l2(a, -x), (x,), (x,))


def test_dtype_argument_of_the_operator():
    x = torch.randn(4, 8, dtype=torch.float16)
    assert torch.ops.siamcuda.squared_l2(x, -x, dtype=torch.float32).dtype == torch.float32
    with pytest.raises(TypeError, match="dtype must be that of the inputs, or float32"):
        torch.ops.siamcuda.squared_l2(x, -x, dtype=torch.float64)


def test_the_extension_has_the_operators_names_and_defaults():
    x1, x2, y = torch.randn(4, 8), torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
    loss = siamcuda._C.contrastive_loss(x1, x2, target=y, margin=2.0, reduction="sum")
    assert torch.equal(loss, siamcuda.contrastive_loss(x1, x2, y, margin=2.0, reduction="sum"))
    assert torch.equal(
        siamcuda._C.contrastive_loss(x1, x2, y), siamcuda.contrastive_loss(x1, x2, y)
    )
    x1.requires_grad_()
    siamcuda._C.contrastive_loss(x1, x2, y).backward()
    assert x1.grad is not None


def test_the_gil_is_released():
    """A Python thread makes progress while an operator runs on one thread."""
    x = torch.randn(400_000, 64)
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    thread = threading.Thread(target=tick)
    thread.start()
    try:
        siamcuda.value_and_grad.squared_l2(x, x)
        start = time.perf_counter()
        siamcuda.value_and_grad.squared_l2(x, x)
        end = time.perf_counter()
    finally:
        stop.set()
        thread.join()
        torch.set_num_threads(before)
    assert any(start < t < end for t in ticks)


def _train(rank, size, file, queue):
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=size)
    encoder = torch.nn.Linear(6, 3)
    model = torch.nn.parallel.DistributedDataParallel(encoder)
    generator = torch.Generator().manual_seed(1)
    x1, x2 = torch.randn(2, 8, 6, generator=generator)
    y = torch.randint(0, 2, (8,), generator=generator)
    part = slice(rank * 8 // size, (rank + 1) * 8 // size)
    both = model(torch.cat([x1[part], x2[part]]))
    siamcuda.contrastive_loss(*both.chunk(2), y[part]).backward()
    if rank == 0:
        reference = torch.nn.Linear(6, 3)
        reference.load_state_dict(encoder.state_dict())
        siamcuda.contrastive_loss(reference(x1), reference(x2), y).backward()
        queue.put(float((reference.weight.grad - encoder.weight.grad).abs().max()))
    del model
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # Leave at once: the threads of torch's process group sometimes abort an orderly exit.
    os._exit(0)


def test_distributed_data_parallel(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    torch.multiprocessing.spawn(_train, (2, tmp_path / "store", queue), nprocs=2)
    assert queue.get() < 1e-6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_works_after_fork():
    """OpenMP's threads don't survive a fork; an operator must not wait for them."""
    x = torch.randn(5000, 64)
    expected = siamcuda.squared_l2(x, -x)
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child():
        torch.set_num_threads(1)
        queue.put(bool(torch.equal(siamcuda.squared_l2(x, -x), expected)))

    process = context.Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert queue.get()
