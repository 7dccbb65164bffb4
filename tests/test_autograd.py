"""First and second derivatives against finite differences, subsets of inputs, repeated backward."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, ONE_EACH, SMOOTH, exact

import siamcuda


def run(case, target, reduction):
    def function(*tensors):
        return case.function(*case.arguments(list(tensors), target), **case.keywords(reduction))

    return function


@pytest.mark.parametrize("case", SMOOTH, ids=lambda c: c.id)
def test_gradcheck(case, backend):
    for reduction in case.reductions:
        tensors, target = case.make((5, 7), device=backend.device, seed=2)
        assert torch.autograd.gradcheck(run(case, target, reduction), tensors)


@pytest.mark.parametrize("case", SMOOTH, ids=lambda c: c.id)
def test_gradgradcheck(case, backend):
    for reduction in case.reductions:
        tensors, target = case.make((4, 5), device=backend.device, seed=2)
        assert torch.autograd.gradgradcheck(run(case, target, reduction), tensors)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_double_backward_of_lower_precision(case, backend, dtype):
    """Against the oracle's second derivative, where finite differences can't see."""
    if case.options.get("p") in (0.0, -1.0, 0.5, float("-inf")):
        pytest.skip("the oracle's second derivative is infinite or missing")
    tensors, target = case.make((6, 9), dtype, backend.device)
    weights = [torch.rand_like(t) for t in tensors]

    def second(function, leaves, label, ws):
        value = function(*case.arguments(leaves, label), **case.keywords("none"))
        first = torch.autograd.grad(value.sum(), leaves, create_graph=True)
        dot = sum((g * w).sum() for g, w in zip(first, ws, strict=True))
        found = torch.autograd.grad(dot, leaves, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True)]

    label = None if target is None else target.cpu()
    wide = [t.detach().cpu().double().requires_grad_() for t in tensors]
    expected = second(case.reference, wide, label, [w.cpu().double() for w in weights])
    actual = second(case.function, tensors, target, weights)
    largest = max(float(e.abs().max()) for e in expected)
    tolerance = {torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        assert float((a.cpu().double() - e).abs().max()) <= tolerance * (largest + 1e-30)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_requires_grad_subsets(case, backend):
    tensors, target = case.make((11, 6), torch.float32, backend.device, requires_grad=False)
    full = [t.clone().requires_grad_() for t in tensors]
    case.function(*case.arguments(full, target), **case.keywords("none")).sum().backward()
    for mask in range(1, 2**case.inputs):
        leaves = [t.clone().requires_grad_(bool(mask >> j & 1)) for j, t in enumerate(tensors)]
        case.function(*case.arguments(leaves, target), **case.keywords("none")).sum().backward()
        for j, leaf in enumerate(leaves):
            if mask >> j & 1:
                assert torch.equal(leaf.grad, full[j].grad)
            else:
                assert leaf.grad is None


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_no_graph_when_nothing_requires_grad(case, backend):
    tensors, target = case.make((3, 4), torch.float32, backend.device, requires_grad=False)
    assert case.function(*case.arguments(tensors, target)).grad_fn is None
    leaves, target = case.make((3, 4), torch.float32, backend.device)
    with torch.no_grad():
        assert case.function(*case.arguments(leaves, target)).grad_fn is None


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_backward_twice_with_different_upstream_gradients(case, backend):
    """A gradient made once and scaled by the first upstream would fail here (Liger 968, 1298)."""
    tensors, target = case.make((6, 5), torch.float64, backend.device)
    value = case.function(*case.arguments(tensors, target), **case.keywords("none"))
    for seed in range(2):
        upstream = torch.randn(6, generator=torch.Generator().manual_seed(seed)).double()
        upstream = upstream.to(backend.device)
        _, expected = exact(case, tensors, target, "none", upstream)
        found = torch.autograd.grad(value, tensors, upstream, retain_graph=True)
        for a, e in zip(found, expected, strict=True):
            torch.testing.assert_close(a.cpu(), e)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_third_derivative_is_an_error_not_a_zero(case, backend):
    tensors, target = case.make((3, 4), torch.float64, backend.device)
    value = case.function(*case.arguments(tensors, target), **case.keywords("none")).sum()
    (first, *_) = torch.autograd.grad(value, tensors, create_graph=True)
    (second, *_) = torch.autograd.grad(first.sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(second.sum(), tensors)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_modified_inputs_are_noticed(case, backend):
    tensors, target = case.make((3, 4), torch.float32, backend.device)
    leaves = [t * 1 for t in tensors]
    value = case.function(*case.arguments(leaves, target), **case.keywords("none"))
    leaves[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


@pytest.mark.parametrize("name", [n for n in siamcuda.nn.__all__ if n.endswith("Loss")])
def test_deepcopied_module_is_independent(name):
    original = getattr(siamcuda.nn, name)()
    clone = copy.deepcopy(original)
    clone.reduction = "sum"
    if name.startswith("Batch"):
        arguments = [torch.randn(8, 4), torch.arange(8) // 2]
        # Pairs of 8 rows, or triplets: each anchor has 1 positive and 6 negatives.
        terms = 8 * 6 if name == "BatchTripletLoss" else 8 * 7 / 2
    else:
        (case,) = [c for c in ONE_EACH if c.name.replace("_", "") == name.lower()]
        tensors, target = case.make((8, 4))
        arguments, terms = case.arguments(tensors, target), 8
    assert original.reduction == "mean"
    torch.testing.assert_close(original(*arguments) * terms, clone(*arguments))
    assert "reduction='sum'" in repr(clone)


LOSSES = [c for c in CASES if c.reductions != ("none",)]


@pytest.mark.parametrize("case", LOSSES, ids=lambda c: c.id)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_made_in_forward_equal_those_made_in_backward(case, backend, reduction):
    """See Note [Gradients made in forward] in csrc/ops/loss_op.h."""
    tensors, target = case.make((70, 33), torch.float32, backend.device)
    arguments = case.arguments(tensors, target)
    keywords = case.keywords(reduction)
    first = torch.autograd.grad(case.function(*arguments, **keywords), tensors)
    # With create_graph, and where the graph is kept: the plain operator.
    value = case.function(*arguments, **keywords)
    with_graph = torch.autograd.grad(value, tensors, create_graph=True)
    for a, e in zip(with_graph, first, strict=True):
        assert torch.equal(a, e)
    value = case.function(*arguments, **keywords)
    taken = torch.autograd.grad(value, tensors, retain_graph=True)
    for t in taken:
        t.fill_(7)  # whoever gets a gradient may write into it
    for a, e in zip(torch.autograd.grad(value, tensors, retain_graph=True), first, strict=True):
        assert torch.equal(a, e)
    # Upstream gradients other than 1, before and after.
    for order in ((0.25, 1.0), (1.0, 0.25)):
        value = case.function(*arguments, **keywords)
        for factor in order:
            found = torch.autograd.grad(value * factor, tensors, retain_graph=True)
            for a, e in zip(found, first, strict=True):
                torch.testing.assert_close(a, e * factor)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_accumulation_into_grad(case, backend):
    tensors, target = case.make((9, 5), torch.float32, backend.device)
    reduction = case.reductions[-1]
    for _ in range(2):
        case.function(*case.arguments(tensors, target), **case.keywords(reduction)).sum().backward()
    twice = [t.grad.clone() for t in tensors]
    value = case.function(*case.arguments(tensors, target), **case.keywords(reduction)).sum()
    for a, e in zip(twice, torch.autograd.grad(value, tensors), strict=True):
        torch.testing.assert_close(a, 2 * e)


@pytest.mark.parametrize("factor", [1.0, 0.25, -3.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", [c for c in ONE_EACH if c in LOSSES], ids=lambda c: c.name)
def test_scaled_gradients_are_those_computed_anew(case, backend, dtype, factor):
    # More than a grid of the emulator takes at once, and not whole accesses.
    tensors, target = case.make((601, 33), dtype, backend.device)
    upstream = torch.tensor(factor, dtype=dtype, device=backend.device)

    def gradients(**options):
        value = case.function(*case.arguments(tensors, target), **case.keywords("mean"))
        return torch.autograd.grad(value, tensors, upstream, **options)

    for found, anew in zip(gradients(), gradients(retain_graph=True), strict=True):
        if factor == 1.0:
            assert torch.equal(found, anew)
        # Rounded behind the sum of an anchor's two terms, which may cancel, instead of before.
        bound = 4 * torch.finfo(dtype).eps * float(anew.abs().max())
        torch.testing.assert_close(found, anew, rtol=0, atol=bound)


def _misaligned(t):
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


def _transposed(t):
    return t.t().contiguous().t()


@pytest.mark.parametrize("unpack", [_misaligned, _transposed])
def test_saved_gradients_may_come_back_in_other_memory(backend, unpack):
    x = torch.randn(2, 9, 7, device=backend.device)
    expected, found = [], []
    for results, hook in ((expected, torch.clone), (found, unpack)):
        leaves = [t.clone().requires_grad_() for t in x]
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t, lambda t, hook=hook: hook(t) if t.dim() == 2 else t
        ):
            loss = siamcuda.contrastive_loss(*leaves, torch.arange(9, device=x.device) % 2)
        (loss * 0.5).backward()
        results += [t.grad for t in leaves]
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e)


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_zero_rows_stay_zero_under_any_upstream_gradient(backend, factor):
    x1 = torch.zeros(1, 4, device=backend.device, requires_grad=True)
    x2 = torch.full((1, 4), 9.0, device=backend.device, requires_grad=True)
    loss = siamcuda.contrastive_loss(x1, x2, torch.ones(1, device=backend.device))
    loss.backward(torch.tensor(factor, device=backend.device))
    assert x1.grad.abs().sum() == 0


@pytest.mark.parametrize("case", LOSSES, ids=lambda c: c.id)
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_gradients_handed_out_belong_to_their_receiver(case, backend, factor):
    """Two leaves, two steps, gradients written into: nothing of one step may reach the next."""
    tensors, target = case.make((70, 33), torch.float32, backend.device)
    arguments = case.arguments(tensors, target)
    steps = []
    for _ in range(2):
        (case.function(*arguments, **case.keywords("mean")) * factor).backward()
        steps.append([t.grad.clone() for t in tensors])
        for t in tensors:
            assert t.grad._base is None
            t.grad.fill_(7)
            t.grad = None
    for first, second in zip(*steps, strict=True):
        assert torch.equal(first, second)


def test_forward_mode_is_refused_not_dropped(backend):
    import torch.autograd.forward_ad as forward_ad

    x = torch.randn(3, 4, device=backend.device)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp is not implemented"):
        siamcuda.squared_l2(forward_ad.make_dual(x, torch.ones_like(x)), -x)
