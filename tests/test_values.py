"""Values and gradients of every case on every backend, against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, ONE_EACH, SIZES, assert_close, exact

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def rows(shape):
    return torch.Size(shape[:-1]).numel()


def check(case, backend, shape, dtype, reduction, seed=0):
    tensors, target = case.make(shape, dtype, backend.device, seed)
    value = case.function(*case.arguments(tensors, target), **case.keywords(reduction))
    assert value.dtype == dtype
    assert value.device.type == backend.device
    generator = torch.Generator().manual_seed(seed + 1)
    upstream = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5
    upstream = upstream.to(dtype).to(backend.device)
    expected, gradients = exact(case, tensors, target, reduction, upstream)
    per_row, _ = exact(case, tensors, target, "none", torch.ones(shape[:-1]))
    largest = float(per_row.abs().max()) if per_row.numel() else 0.0
    if not expected.isnan().any():
        assert_close(value, expected, case, shape[-1], f"value ({reduction})", largest)
    found = torch.autograd.grad(value, tensors, upstream)
    for j, (actual, wanted) in enumerate(zip(found, gradients, strict=True)):
        assert actual.dtype == dtype
        terms = case.gradient_terms(tensors) * float(upstream.abs().max()) if rows(shape) else 0.0
        assert_close(actual, wanted, case, shape[-1], f"gradient {j} ({reduction})", terms)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(case, backend, dtype):
    many = 70 if backend.emulated else 300
    for reduction in case.reductions:
        check(case, backend, (many, 33), dtype, reduction)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
@pytest.mark.parametrize("columns", SIZES)
def test_columns(case, backend, columns):
    for dtype in (torch.float32, torch.float16):
        check(case, backend, (5, columns), dtype, "none")


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
@pytest.mark.parametrize("count", SIZES)
def test_rows(case, backend, count):
    check(case, backend, (count, 8), torch.float32, case.reductions[-1])


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_aligned_columns(case, backend):
    """Whole 16-byte accesses: the other code path of the CUDA kernels."""
    for columns, dtype in (
        (128, torch.float32),
        (512, torch.float32),
        (1024, torch.float32),
        (128, torch.float16),
        (64, torch.float64),
        (4, torch.float32),
    ):
        check(case, backend, (9, columns), dtype, case.reductions[-1])


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_gradients_that_are_streamed_past_the_cache(case, backend):
    if backend.emulated:
        pytest.skip("the emulator has no cache")
    check(case, backend, (20000, 64), torch.float32, case.reductions[-1])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_value_and_grad_equals_autograd(case, backend):
    for dtype in (torch.float32, torch.bfloat16):
        for reduction in case.reductions:
            tensors, target = case.make((67, 33), dtype, backend.device)
            arguments = case.arguments(tensors, target)
            value = case.function(*arguments, **case.keywords(reduction))
            expected = torch.autograd.grad(value.sum(), tensors)
            keywords = {**case.options, "reduction": reduction}
            loss, gradients = case.value_and_grad(*arguments, **keywords)
            assert not loss.requires_grad
            assert torch.equal(loss, value)
            for actual, wanted in zip(gradients, expected, strict=True):
                assert torch.equal(actual, wanted)
            _, scaled = case.value_and_grad(*arguments, **keywords, grad_scale=4.0)
            for actual, wanted in zip(scaled, expected, strict=True):
                assert torch.allclose(
                    actual, 4 * wanted, rtol=1e-2 if dtype.itemsize == 2 else 1e-6
                )


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
@pytest.mark.parametrize(
    "shapes",
    [
        [(5, 1, 7), (1, 6, 7), (5, 6, 7)],
        [(7,), (4, 7), (1, 7)],
        [(2, 1, 3, 1, 7), (1, 4, 1, 5, 7), (2, 4, 3, 5, 7)],
        [(2, 1, 3, 1, 2, 7), (1, 4, 1, 5, 1, 7), (2, 4, 1, 1, 2, 7)],
        [(7,), (7,), (7,)],
    ],
    ids=str,
)
def test_leading_dimensions_broadcast_as_torch_does_it(case, backend, shapes):
    shapes = shapes[: case.inputs]
    if case.name == "triplet_margin_loss" and len({len(s) for s in shapes}) > 1:
        pytest.skip("torch asks for equal numbers of dimensions here")
    generator = torch.Generator().manual_seed(3)
    tensors = [
        torch.randn(s, generator=generator).to(backend.device).requires_grad_() for s in shapes
    ]
    leading = torch.broadcast_shapes(*shapes)[:-1]
    target = torch.randint(0, 2, leading).to(backend.device) if case.has_target else None
    value = case.function(*case.arguments(tensors, target), **case.keywords("none"))
    upstream = torch.rand(leading).to(backend.device)
    expected, gradients = exact(case, tensors, target, "none", upstream)
    assert_close(value, expected, case, 7, "value")
    for actual, wanted in zip(
        torch.autograd.grad(value, tensors, upstream), gradients, strict=True
    ):
        assert_close(actual, wanted, case, 7 * 200, "gradient")
