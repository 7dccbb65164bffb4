"""Losses over all pairs of a large batch, where every pair is computed once for both its ends.

``reduction="none"`` takes another path, a row at a time, and so do batches of a few rows: the two
are held against each other, and against float64.
"""

from __future__ import annotations

import pytest
import torch
from cases import BATCH_CASES, BatchCase
from test_batch import assert_close
from torch import Tensor

import siamcuda

PAIRS = [case for case in BATCH_CASES if case.name != "batch_triplet_loss"]
#: One block and a bit more than the least batch that is done in blocks.
ROWS = 1024 + 3


def step(case: BatchCase, x: Tensor, y: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """A loss in blocks and its gradient."""
    leaf = x.detach().requires_grad_()
    value = case.call(case.function, [leaf], [y], reduction=reduction)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared, without a cube of differences."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def oracle(case: BatchCase, x: Tensor, y: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    wide = x.detach().double().requires_grad_()
    value = case.reference(wide, y, **case.options, reduction=reduction, cdist=distances)
    return value.detach(), torch.autograd.grad(value, wide)[0]


def by_rows(case: BatchCase, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The sum and its gradient, a row at a time."""
    leaf = x.detach().requires_grad_()
    values = case.call(case.function, [leaf], [y], reduction="none")
    return values.detach().sum(), torch.autograd.grad(values.sum(), leaf)[0]


@pytest.mark.parametrize("case", PAIRS, ids=lambda c: c.id)
@pytest.mark.parametrize("columns", [3, 129])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["float32", "float64", "bfloat16"]
)
def test_values_and_gradients(case, columns, dtype, simd):
    if case.options.get("energy") == "l1":
        columns = min(columns, 9)  # the reference takes a cube of differences
    (x,), (y,) = case.make(ROWS, columns, dtype, classes=40)
    for reduction in ("sum", "mean_active"):
        value, gradient = step(case, x, y, reduction)
        expected, wanted = oracle(case, x, y, reduction)
        assert_close(value, expected, dtype, case.slack, f"{columns} {reduction}")
        assert gradient.dtype == dtype
        assert_close(gradient, wanted, dtype, case.slack, f"{columns} {reduction} gradient")


def strange(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 32, generator=generator)
    if name == "duplicates":  # within a block, in the next and in the last one
        x[5], x[300], x[ROWS - 1] = x[4], x[4], x[4]
    elif name == "near":
        x[200:400] = x[0:200] + 1e-5 * torch.randn(200, 32, generator=generator)
    elif name == "collapsed":
        x = 1 + 1e-4 * x
    elif name == "offset":
        x += 1e4
    elif name == "tiny":
        x *= 1e-25
    elif name == "tiny and huge":
        x[::2] *= 1e-25
        x[1::100] *= 1e22
    elif name == "infinite":
        x[7, 3], x[700, 0] = float("inf"), -float("inf")
    elif name == "zero":
        x[::3] = 0
    return x


@pytest.mark.parametrize("case", PAIRS, ids=lambda c: c.id)
@pytest.mark.parametrize(
    "name",
    [
        *("duplicates", "near", "collapsed", "offset", "tiny", "tiny and huge"),
        *("infinite", "zero"),
    ],
)
def test_strange_rows(case, name, simd):
    x, y = strange(name), torch.arange(ROWS) % 17
    value, gradient = step(case, x, y, "sum")
    expected, wanted = by_rows(case, x, y)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0, equal_nan=True)
    finite = x.isfinite().all(1)
    assert bool(gradient[finite].isfinite().all())
    # Weights are added up in another order; the gradient is a difference of such sums.
    scale = float(wanted[finite].abs().max())
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4 * scale, equal_nan=True)


@pytest.mark.parametrize("case", PAIRS, ids=lambda c: c.id)
def test_promise_2_nan_stays_with_its_anchor(case, simd):
    x, y = strange("none"), torch.arange(ROWS) % 17
    for row in (0, 500, ROWS - 1):
        x[row, 1] = float("nan")
    value, gradient = step(case, x, y, "mean")
    spoilt = x.isnan().any(1)
    assert bool(value.isnan())
    assert bool(gradient[spoilt].isnan().all())
    kept, wanted = step(
        case, torch.where(spoilt[:, None], torch.nan, x)[~spoilt], y[~spoilt], "sum"
    )
    assert bool(kept.isfinite())
    pairs = ROWS * (ROWS - 1) / 2
    scale = float(wanted.abs().max())
    torch.testing.assert_close(gradient[~spoilt] * pairs, wanted, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("case", PAIRS, ids=lambda c: c.id)
def test_statistics(case, simd):
    x, y = strange("duplicates"), torch.arange(ROWS) % 17
    plain, stats = case.function(x, y, **case.options, reduction="sum", return_stats=True)
    wide = case.function(x.double(), y, **case.options, reduction="sum", return_stats=True)
    torch.testing.assert_close(plain.double(), wide[0], rtol=1e-6, atol=0)
    wide_x = x.double()
    apart = torch.cdist(
        wide_x, wide_x, p=1 if "l1" in case.id else 2,
        compute_mode="donot_use_mm_for_euclid_dist",
    )  # fmt: skip
    upper = torch.ones(ROWS, ROWS, dtype=torch.bool).triu(1)
    same = y == y[:, None]
    assert int(stats.valid) == ROWS * (ROWS - 1) // 2
    assert int(stats.active) == int(wide[1].active)
    assert int(stats.collapsed) == int((~same & upper & (apart == 0)).sum())
    for found, kind in ((stats[3], same), (stats[4], ~same)):
        torch.testing.assert_close(
            float(found), float(apart[kind & upper].mean()), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("case", PAIRS, ids=lambda c: c.id)
def test_promise_4_no_result_depends_on_the_threads(case, simd):
    x, y = strange("near"), torch.arange(ROWS) % 17
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = step(case, x, y, "mean")
        for threads in (2, 5):
            torch.set_num_threads(threads)
            again = step(case, x, y, "mean")
            assert torch.equal(first[0], again[0])
            assert torch.equal(first[1], again[1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("case", PAIRS[:3], ids=lambda c: c.id)
@pytest.mark.parametrize("columns", [2048, 2047])
def test_more_rows_than_a_chunk(case, columns, simd):
    """24 MiB of packed rows are more than a chunk: chunks meet each other."""
    x = torch.randn(1700, columns, generator=torch.Generator().manual_seed(0))
    x, y = torch.nn.functional.normalize(x), torch.arange(1700) % 100
    x[1650] = x[3]
    x[900, 0] = float("inf")
    value, gradient = step(case, x, y, "sum")
    expected, wanted = by_rows(case, x, y)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    finite = x.isfinite().all(1)
    scale = float(wanted[finite].abs().max())
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


def test_hinges_that_are_not_active_cost_no_gradient_and_change_none():
    """A gradient passes over weights that are 0; the same batch with every pair active does not."""
    x = torch.nn.functional.normalize(torch.randn(ROWS, 40))
    y = torch.arange(ROWS) // 8
    for margin in (0.5, 1.2, 1.35, 3.0):
        case = BatchCase("batch_contrastive_loss", {"margin": margin})
        value, gradient = step(case, x, y, "sum")
        expected, wanted = oracle(case, x, y, "sum")
        assert_close(value, expected, torch.float32, case.slack, f"margin {margin}")
        assert_close(gradient, wanted, torch.float32, case.slack, f"margin {margin} gradient")


def test_empty_columns():
    x = torch.empty(ROWS, 0, requires_grad=True)
    loss = siamcuda.batch_contrastive_loss(x, torch.arange(ROWS), margin=2.0)
    assert float(loss.detach()) == 4
    assert torch.autograd.grad(loss, x)[0].shape == (ROWS, 0)
