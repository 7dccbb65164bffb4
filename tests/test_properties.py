"""hypothesis: shapes, dtypes, strides and values that nobody would write down."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from cases import CASES, assert_close, exact

import siamcuda
from siamcuda import _ops

LEVELS = siamcuda._C.build_info()["simd_supported"]
SETTINGS = hypothesis.settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)

dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
cases = st.sampled_from([c for c in CASES if c.options.get("p", 2.0) in (1.0, 2.0, 3.0)])


@st.composite
def problems(draw):
    """A case with inputs that hold duplicates, offsets, scales and odd strides."""
    case = draw(cases)
    leading = draw(st.lists(st.integers(0, 4), min_size=0, max_size=3))
    columns = draw(st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65]))
    dtype = draw(dtypes)
    tensors, target = case.make(
        (*leading, columns), dtype, seed=draw(st.integers(0, 999)), requires_grad=False
    )
    wide = dtype in (torch.float32, torch.float64)
    # An exponential of the L1 norm is not differentiable to any precision at huge scales.
    scale = draw(st.sampled_from([1.0, 1e-3, 1e3, 1e-18, 1e17])) if wide else 1.0
    offset = draw(st.sampled_from([0.0, 1.0, 1e4])) if wide and scale == 1.0 else 0.0
    tensors = [t * scale + offset for t in tensors]
    twin = draw(st.integers(0, case.inputs))
    if twin:
        tensors[twin - 1] = tensors[0].clone()  # a zero distance
    if draw(st.booleans()) and len(leading) >= 2:
        tensors = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors]
    if draw(st.booleans()):
        tensors = [torch.stack([t, t], -1)[..., 0] for t in tensors]
    return case, [t.requires_grad_() for t in tensors], target, scale, offset


def holds(case, tensors, target, scale, offset):
    value = case.function(*case.arguments(tensors, target), **case.keywords("none"))
    upstream = torch.ones_like(value)
    expected, gradients = exact(case, tensors, target, "none", upstream)
    dtype = tensors[0].dtype
    limit = torch.finfo(dtype).max
    columns = tensors[0].shape[-1]
    per_column = torch.finfo(torch.float32 if dtype.itemsize == 2 else dtype).eps
    assert bool((value.detach().isfinite() | (expected.abs() >= limit / 2)).all())
    ok = expected.abs() < limit / 2
    # Terms that cancel in a hinge are as large as the distances, not as the result.
    terms = float(expected[ok].abs().max() if bool(ok.any()) else torch.zeros(())) + 2
    if scale > 1:
        terms += (2 * scale) ** 2 * (1 if case.name != "triplet_margin_loss" else 0) + scale * 4
    assert_close(
        torch.where(ok, value.detach().double(), 0.0).to(dtype),
        torch.where(ok, expected, 0.0),
        case,
        columns,
        "value",
        terms,
    )
    found = torch.autograd.grad(value, tensors, upstream)
    reliable = scale <= 1e3 and offset <= 1.0
    for g, e, t in zip(found, gradients, tensors, strict=True):
        assert g.shape == t.shape
        assert not g.isnan().any()
        if reliable:
            largest = float(e.abs().max()) if e.numel() else 0.0
            magnitude = 4 * largest + case.gradient_terms(tensors) + 4
            # A kink within rounding of the boundary may fall on either side.
            error = (g.double() - e).abs()
            bound = 2 * float(torch.finfo(dtype).eps) * e.abs() + 600 * per_column * magnitude
            near = torch.zeros_like(value.detach(), dtype=torch.bool)
            if case.name in ("contrastive_loss", "triplet_loss", "triplet_margin_loss"):
                near = (expected.abs() < 1e-3) | (value.detach().double().abs() < 1e-3)
            rows = (error <= bound) | near.unsqueeze(-1)
            assert bool(rows.all())


@pytest.mark.parametrize("level", LEVELS)
def test_values_and_gradients_hold(level, monkeypatch):
    monkeypatch.setenv("SIAMCUDA_SIMD", level)
    SETTINGS(hypothesis.given(problems())(lambda problem: holds(*problem)))()


def test_values_and_gradients_hold_on_emulated_cuda(monkeypatch):
    from emulation import extension

    monkeypatch.setattr(_ops, "extension", extension.load())
    hypothesis.settings(SETTINGS, max_examples=60)(
        hypothesis.given(problems())(lambda problem: holds(*problem))
    )()


@st.composite
def wild(draw):
    """Any float at all, NaN and infinities too."""
    case = draw(cases)
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    value = st.one_of(
        st.sampled_from([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3e38]),
        st.floats(width=32),
    )
    tensors = [
        torch.tensor(
            draw(st.lists(value, min_size=rows * columns, max_size=rows * columns)),
            dtype=torch.float32,
        )
        .view(rows, columns)
        .requires_grad_()
        for _ in range(case.inputs)
    ]
    _, target = case.make((rows, columns))
    return case, tensors, target


@pytest.mark.parametrize("level", LEVELS)
def test_no_input_crashes_and_levels_agree_on_what_is_finite(level, monkeypatch):
    def check(problem):
        case, tensors, target = problem
        monkeypatch.setenv("SIAMCUDA_SIMD", level)
        value = case.function(*case.arguments(tensors, target), **case.keywords("none"))
        torch.autograd.grad(value.sum(), tensors)
        monkeypatch.setenv("SIAMCUDA_SIMD", "generic")
        other = case.function(*case.arguments(tensors, target), **case.keywords("none"))
        assert torch.equal(value.isnan(), other.isnan())
        finite = value.isfinite() & other.isfinite()
        torch.testing.assert_close(value[finite], other[finite], rtol=1e-4, atol=1e-4)

    SETTINGS(hypothesis.given(wild())(check))()
