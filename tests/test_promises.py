"""The promises of the design, each by its number, for the paired operations."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from cases import CASES, ONE_EACH, assert_close, exact

import siamcuda

LOSSES = [c for c in CASES if c.reductions != ("none",)]


def call(case, tensors, target=None, reduction="none"):
    return case.function(*case.arguments(list(tensors), target), **case.keywords(reduction))


# --- 1: gradient at distance 0, inactive hinges, collapsed pairs ---------------------------------


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name != "triplet_margin_loss"], ids=lambda c: c.id
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_promise_1_gradient_at_distance_zero_is_zero(case, backend, dtype):
    x = torch.randn(4, 9).to(dtype).to(backend.device)
    if case.name == "cosine_similarity":
        x = torch.zeros_like(x)
    tensors = [x.clone().requires_grad_() for _ in range(case.inputs)]
    target = torch.tensor([0, 1, 0, 1], device=backend.device) if case.has_target else None
    call(case, tensors, target).sum().backward()
    for t in tensors:
        assert torch.equal(t.grad, torch.zeros_like(t))


def test_promise_1_inactive_hinge_is_exactly_zero_and_boundary_is_inactive(backend):
    x1 = torch.zeros(3, 4, device=backend.device, requires_grad=True)
    x2 = torch.tensor([[3.0, 0, 0, 0], [1.0, 0, 0, 0], [0.5, 0, 0, 0]], device=backend.device)
    ones = torch.ones(3, device=backend.device)
    loss = siamcuda.contrastive_loss(x1, x2, ones, margin=1.0, reduction="none")
    assert loss.tolist() == [0.0, 0.0, 0.25]
    loss.sum().backward()
    assert x1.grad[:2].abs().sum() == 0
    assert x1.grad[2, 0] == 1.0

    a, p = torch.zeros(2, 4, device=backend.device), torch.zeros(2, 4, device=backend.device)
    n = torch.tensor([[0.5, 0, 0, 0], [0.4, 0, 0, 0]], device=backend.device, requires_grad=True)
    loss = siamcuda.triplet_loss(a, p, n, margin=0.25, reduction="none")
    loss.sum().backward()
    assert loss[0] == 0
    assert loss[1] > 0
    assert n.grad[0].abs().sum() == 0
    assert n.grad[1].abs().sum() > 0


def test_promise_1_inactive_rows_are_zero_whatever_the_upstream_gradient(backend):
    x1 = torch.zeros(1, 4, device=backend.device, requires_grad=True)
    x2 = torch.full((1, 4), 9.0, device=backend.device)
    loss = siamcuda.contrastive_loss(x1, x2, torch.ones(1, device=backend.device), reduction="none")
    loss.backward(torch.full((1,), math.inf, device=backend.device))
    assert x1.grad.abs().sum() == 0


def test_promise_1_collapsed_pairs_are_counted(backend):
    x1 = torch.randn(6, 5, device=backend.device)
    x2 = x1 + torch.tensor([0.0, 0, 0, 1, 1, 0], device=backend.device)[:, None]
    target = torch.tensor([0, 1, 1, 1, 0, 0], device=backend.device)
    for function in (siamcuda.contrastive_loss, siamcuda.chopra_loss):
        loss, stats = function(x1, x2, target, return_stats=True)
        assert torch.equal(loss, function(x1, x2, target))
        assert stats.valid == 6
        assert stats.collapsed == 2
        torch.testing.assert_close(float(stats.mean_positive_distance), 5**0.5 / 3)
        torch.testing.assert_close(float(stats.mean_negative_distance), 5**0.5 / 3)
    _, stats = siamcuda.triplet_loss(x1, x2, x1, margin=0.1, return_stats=True)
    assert stats.collapsed == 6
    assert stats.valid == 6
    assert stats.active == 6
    torch.testing.assert_close(float(stats.mean_positive_distance), 10 / 6)


def test_triplet_margin_loss_keeps_torchs_boundary_and_ties(backend):
    from torch.nn.functional import triplet_margin_loss

    # torch 2.10 lets a gradient through at the boundary, 2.14 doesn't; we never do.
    edge = torch.tensor([[1.0]], requires_grad=True)
    triplet_margin_loss(edge, torch.ones(1, 1), torch.zeros(1, 1), eps=0.0).backward()
    torch_lets_through = bool(edge.grad.any())

    for a, p, n in (
        (torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([[1.0, 0, 0, 0]])),
        (torch.zeros(1, 2), torch.tensor([[2.0, 0]]), torch.tensor([[1.0, 1.0]])),
        (torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2)),
    ):
        for swap in (False, True):
            for p_norm in (2.0, 1.0, math.inf):
                ours = [t.clone().to(backend.device).requires_grad_() for t in (a, p, n)]
                theirs = [t.clone().requires_grad_() for t in (a, p, n)]
                options = {"p": p_norm, "swap": swap, "eps": 0.0}
                mine = siamcuda.triplet_margin_loss(*ours, **options)
                torch_loss = triplet_margin_loss(*theirs, **options)
                mine.backward()
                torch_loss.backward()
                torch.testing.assert_close(mine.cpu(), torch_loss)
                for x, y in zip(ours, theirs, strict=True):
                    still = torch_lets_through and torch_loss == 0
                    torch.testing.assert_close(
                        x.grad.cpu(), torch.zeros_like(y) if still else y.grad
                    )


# --- 2: non-finite input -------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_promise_2_nan_stays_in_its_row(case, backend):
    if case.options.get("p") == 0.0:
        pytest.skip("the count of non-zero elements has no NaN, in torch neither")
    tensors, target = case.make((6, 9), torch.float32, backend.device, requires_grad=False)
    clean = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(call(case, clean, target).sum(), clean)
    if target is not None:
        target[2] = case.options.get("similar_label", 0)  # a genuine pair: no hinge to hide behind
    for j in range(case.inputs):
        leaves = [t.clone() for t in tensors]
        leaves[j][2, 4] = math.nan
        leaves = [t.requires_grad_() for t in leaves]
        value = call(case, leaves, target)
        others = torch.arange(6) != 2
        swap_hides = case.options.get("swap") and j == 2
        if not swap_hides:
            assert value[2].isnan()
        assert value[others].isfinite().all()
        for g, e in zip(torch.autograd.grad(value.sum(), leaves), expected, strict=True):
            assert torch.equal(g[others], e[others])
        if case.reductions != ("none",) and not swap_hides:
            assert call(case, leaves, target, "mean").isnan()


def test_promise_2_a_zero_vector_does_not_hide_nan(backend):
    zero = torch.zeros(1, 5, device=backend.device)
    bad = torch.full((1, 5), math.nan, device=backend.device)
    assert siamcuda.cosine_similarity(zero, bad).isnan()
    assert siamcuda.cosine_similarity(bad, zero).isnan()
    assert siamcuda.cosine_similarity(zero, zero + 1) == 0
    assert siamcuda.reference.cosine_similarity(zero, bad).isnan()


def test_promise_2_infinite_distances_follow_the_formula(backend):
    inf = math.inf
    x1 = torch.zeros(2, 3, device=backend.device, requires_grad=True)
    x2 = torch.tensor([[inf, 0, 0], [-inf, 0, 0]], device=backend.device)
    target = torch.tensor([1, 0], device=backend.device)
    for function in (siamcuda.contrastive_loss, siamcuda.chopra_loss):
        loss = function(x1, x2, target, reduction="none")
        assert loss.tolist() == [0.0, inf]
        (gradient,) = torch.autograd.grad(loss[0], x1)
        assert gradient.abs().sum() == 0
    near = torch.zeros(2, 3, device=backend.device)
    loss = siamcuda.triplet_loss(x1, near, x2, reduction="none")
    assert loss.tolist() == [0.0, 0.0]
    assert torch.autograd.grad(loss.sum(), x1)[0].abs().sum() == 0
    assert siamcuda.triplet_loss(x1, x2, near, reduction="none").tolist() == [inf, inf]


@pytest.mark.parametrize("soft", [False, True])
def test_promise_2_softplus_does_not_overflow(backend, soft):
    a = torch.zeros(1, 1, device=backend.device)
    far = torch.full((1, 1), 1e4, device=backend.device, requires_grad=True)
    loss = siamcuda.triplet_loss(a, far, a, squared=False, soft=soft, margin=0.0)
    loss.backward()
    assert loss == 1e4
    assert far.grad == 1.0


# --- 3: empty input ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (2, 0, 4)], ids=str)
def test_promise_3_empty_input(case, backend, shape):
    if case.options.get("p", 0) < 0 and shape[-1] == 0:
        pytest.skip("the norm of negative order of nothing is infinite")
    for reduction in case.reductions:
        tensors, target = case.make(shape, torch.float32, backend.device)
        value = call(case, tensors, target, reduction)
        if reduction == "none":
            assert value.shape == shape[:-1]
        elif case.name == "triplet_margin_loss" and reduction == "mean" and 0 in shape[:-1]:
            assert value.isnan()
        else:
            assert value.isfinite()
            if 0 in shape[:-1]:
                assert value == 0
        for t, g in zip(tensors, torch.autograd.grad(value.sum(), tensors), strict=True):
            assert g.shape == t.shape
            assert not g.isnan().any()


# --- 4: bitwise reproducible ---------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_promise_4_threads_change_no_bit(case, backend):
    before = torch.get_num_threads()
    rows = 300 if backend.emulated else 5000
    tensors, target = case.make((rows, 40), torch.float32, backend.device)
    found = []
    try:
        for threads in (1, 2, 5, 2):
            torch.set_num_threads(threads)
            values = [call(case, tensors, target, r) for r in case.reductions]
            gradients = torch.autograd.grad(values[-1].sum(), tensors)
            found.append([v.detach() for v in values] + list(gradients))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
@pytest.mark.parametrize("shape", [(1, 6), (40000, 1, 6), (1, 1, 1)], ids=str)
def test_promise_4_gradients_of_broadcast_inputs(case, shape):
    before = torch.get_num_threads()
    if case.name == "triplet_margin_loss" and len(shape) == 2:
        shape = (1, 1, 6)
    full = (40000, 1, shape[-1])
    tensors, target = case.make(full, torch.float32, requires_grad=False)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            first = torch.ones(shape, requires_grad=True)
            value = call(case, [first, *tensors[1:]], target)
            found.append(torch.autograd.grad(value.sum(), first)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_promise_4_a_row_does_not_see_its_neighbours(case, backend):
    tensors, target = case.make((130, 37), torch.float32, backend.device, requires_grad=False)
    leaves = [t.clone().requires_grad_() for t in tensors]
    whole = call(case, leaves, target)
    gradients = torch.autograd.grad(whole.sum(), leaves)
    for rows in (slice(5, 6), slice(63, 66), slice(1, 130, 7)):
        part = [t[rows].clone().requires_grad_() for t in tensors]
        value = call(case, part, None if target is None else target[rows])
        assert torch.equal(value, whole[rows])
        for g, e in zip(torch.autograd.grad(value.sum(), part), gradients, strict=True):
            assert torch.equal(g, e[rows])


def test_promise_4_distance_is_symmetric_in_its_bits(backend):
    x, y = torch.randn(2, 50, 37, device=backend.device)
    assert torch.equal(siamcuda.squared_l2(x, y), siamcuda.squared_l2(y, x))


# --- 6: near-duplicates and extreme scales -------------------------------------------------------


@pytest.mark.parametrize("distance", [1e-2, 1e-5, 1e-18, 1e-22, 1e-30, 1e15, 1e19, 1e25])
@pytest.mark.parametrize("columns", [3, 128, 300])
def test_promise_6_distances_are_exact_at_any_scale(backend, distance, columns):
    direction = torch.randn(4, columns, dtype=torch.float64)
    direction *= distance / direction.norm(dim=1, keepdim=True)
    x1 = direction.float().to(backend.device).requires_grad_()
    x2 = torch.zeros_like(x1)
    exactly = x1.detach().cpu().double().norm(dim=1)
    far = siamcuda.triplet_loss(x1, x2, x1.detach(), margin=0.0, squared=False, reduction="none")
    torch.testing.assert_close(far.detach().cpu().double(), exactly, rtol=1e-6, atol=0)
    far.sum().backward()
    unit = x1.detach().cpu().double() / exactly[:, None]
    torch.testing.assert_close(x1.grad.cpu().double(), unit, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("offset", [10.0, 1e4])
def test_promise_6_offsets_cost_nothing(backend, offset):
    x1 = torch.randn(20, 64, device=backend.device) + offset
    x2 = x1 + 1e-3 * torch.randn(20, 64, device=backend.device)
    exactly = (x1.double() - x2.double()).square().sum(1)
    torch.testing.assert_close(siamcuda.squared_l2(x1, x2).double(), exactly, rtol=1e-5, atol=0)


# --- 7: half precision ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_promise_7_half_inputs_accumulate_in_float(backend, dtype):
    # 4096 ones: a half accumulator stops at 2048 (fp16) or 256 (bf16).
    ones = torch.ones(2, 4096, dtype=dtype, device=backend.device)
    assert siamcuda.squared_l2(ones, 0 * ones).tolist() == [4096.0, 4096.0]
    # Squares of 30 over 128 columns exceed the largest float16 only at the end.
    x = torch.full((1, 128), 30.0, dtype=dtype, device=backend.device)
    loss = siamcuda.triplet_loss(x, 0 * x, x, squared=False, margin=0.0)
    torch.testing.assert_close(float(loss), 30 * 128**0.5, rtol=1e-2, atol=0)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_promise_7_autocast_reads_halves_and_returns_float32(case, backend, dtype):
    if backend.emulated:
        pytest.skip("autocast is a matter of dispatch keys, tested on the real library")
    tensors, target = case.make((40, 33), dtype, backend.device)
    with torch.autocast(backend.device, dtype=dtype):
        value = call(case, tensors, target)
    assert value.dtype == torch.float32
    upstream = torch.rand(40, device=backend.device)
    expected, gradients = exact(case, tensors, target, "none", upstream)
    assert_close(value, expected, case, 33, "value")
    found = torch.autograd.grad(value, tensors, upstream)
    for g, e in zip(found, gradients, strict=True):
        assert g.dtype == dtype
        assert_close(g, e, case, 33, "gradient", case.gradient_terms(tensors))


# --- 12: import changes nothing ------------------------------------------------------------------


def test_promise_12_import_changes_no_global_state():
    script = """
import warnings, torch
before = (torch.get_num_threads(), list(warnings.filters), torch.get_default_dtype())
tiny = torch.tensor([1e-40])
assert (tiny / 2 * 2).item() != 0
import sys
modules = set(sys.modules)
import siamcuda, siamcuda.nn, siamcuda.reference
siamcuda.squared_l2(torch.zeros(2, 2), torch.ones(2, 2))
assert before == (torch.get_num_threads(), list(warnings.filters), torch.get_default_dtype())
assert (tiny / 2 * 2).item() != 0, "denormals are flushed"
extras = {"tyro", "matplotlib", "safetensors", "PIL", "tqdm", "siamcuda.train"}
assert not extras & (set(sys.modules) - modules), "an extra was imported"
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=dict(os.environ))
