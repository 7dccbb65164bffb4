"""Strides, storage offsets, aliases: the answer must not depend on how a tensor lies in memory."""

from __future__ import annotations

import pytest
import torch
from cases import ONE_EACH


def transposed(x):
    return x.t().contiguous().t()


def sliced(x):
    return torch.stack([x, -x], 1)[:, 0]


def strided_columns(x):
    return torch.stack([x, -x], -1)[..., 0]


def misaligned(x):
    storage = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    view = storage[1:].view(x.shape)
    view.copy_(x)
    return view


def flipped_negative(x):
    return torch._neg_view(-x)


LAYOUTS = [transposed, sliced, strided_columns, misaligned, flipped_negative]


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("columns", [16, 33])
def test_layout_changes_no_bit(case, backend, layout, columns):
    tensors, target = case.make((40, columns), torch.float32, backend.device, requires_grad=False)
    for reduction in case.reductions:
        keywords = case.keywords(reduction)
        dense = case.function(*case.arguments(tensors, target), **keywords)
        moved = [layout(t).requires_grad_() for t in tensors]
        value = case.function(*case.arguments(moved, target), **keywords)
        assert torch.equal(value, dense)
        leaves = [t.clone().requires_grad_() for t in tensors]
        expected = torch.autograd.grad(
            case.function(*case.arguments(leaves, target), **keywords).sum(), leaves
        )
        for actual, wanted in zip(torch.autograd.grad(value.sum(), moved), expected, strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_expanded_inputs(case, backend):
    tensors, target = case.make((1, 20), torch.float32, backend.device, requires_grad=False)
    wide = [t.expand(30, 20) for t in tensors]
    label = None if target is None else target.expand(30)
    value = case.function(*case.arguments(wide, label), **case.keywords("none"))
    single = case.function(*case.arguments(tensors, target), **case.keywords("none"))
    assert torch.equal(value, single.expand(30))


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_the_same_tensor_twice(case, backend):
    tensors, target = case.make((12, 9), torch.float32, backend.device)
    x = tensors[0]
    value = case.function(*case.arguments([x] * case.inputs, target), **case.keywords("none"))
    value.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("case", [c for c in ONE_EACH if c.has_target], ids=lambda c: c.name)
@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    ],
    ids=str,
)
def test_target_dtypes_and_strides(case, backend, dtype):
    tensors, target = case.make((33, 9), torch.float32, backend.device)
    expected = case.function(*tensors, target, **case.keywords("none"))
    label = torch.stack([target, 1 - target], 1).to(dtype)[:, 0]
    assert torch.equal(case.function(*tensors, label, **case.keywords("none")), expected)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_upstream_gradients_of_any_stride(case, backend):
    tensors, target = case.make((3, 4, 9), torch.float32, backend.device)
    value = case.function(*case.arguments(tensors, target), **case.keywords("none"))
    upstream = torch.rand(4, 3, device=backend.device).t()
    for strided in (upstream, torch.rand(1, 1, device=backend.device).expand(3, 4)):
        expected = torch.autograd.grad(value, tensors, strided.contiguous(), retain_graph=True)
        actual = torch.autograd.grad(value, tensors, strided, retain_graph=True)
        for a, e in zip(actual, expected, strict=True):
            assert torch.equal(a, e)
