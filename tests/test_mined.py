"""Hard and easy mining of a large batch in itself: every distance is looked at from both ends.

With the batch as its own ref every anchor is mined by itself: the two find the same triplets, from
the same distances, bit for bit.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import siamcuda

#: More than four groups of rows, with an odd end.
ROWS = 5 * 96 + 29


def rows(name: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 24, generator=generator)
    y = torch.randint(0, 40, (ROWS,), generator=generator)
    if name == "ties":  # few places, so that every distance occurs often
        x = torch.randint(0, 3, (ROWS, 3), generator=generator).float()
    elif name == "duplicates":
        x[::7] = x[3]
    elif name == "nan":
        x[5, 0] = x[200, 3] = x[ROWS - 1, 23] = float("nan")
    elif name == "infinite":
        x[5, 0], x[200, 3], x[ROWS - 1, 23] = float("inf"), -float("inf"), float("inf")
        y[5] = y[6] = 100  # its only positive is infinitely far
    elif name == "nearly all infinite":
        x[2:] = float("inf")
        x[:, 1] = torch.arange(ROWS)
    elif name == "one class":
        y = torch.zeros_like(y)
    elif name == "no positives":
        y = torch.arange(ROWS)
    elif name == "offset":
        x += 1e3
    return x, y


CASES = [
    "random", "ties", "duplicates", "nan", "infinite", "nearly all infinite", "one class",
    "no positives", "offset",
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mining", ["hard", "easy_positive"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["float32", "float64", "bfloat16"]
)
def test_both_ends_find_the_same(name, mining, dtype, simd):
    x, y = rows(name)
    x = x.to(dtype)
    operator = torch.ops.siamcuda.batch_triplet_loss
    statistics = torch.ops.siamcuda.batch_triplet_loss_stats
    options = {"mining": mining, "squared": False, "margin": 0.3}
    leaf, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    values = operator(leaf, y, **options, reduction="none")
    expected = operator(again, y, again, y, **options, self_offset=0, reduction="none")
    assert torch.equal(values.nan_to_num(-1), expected.nan_to_num(-1))
    found = statistics(x, y, **options)
    torch.testing.assert_close(found, statistics(x, y, x, y, **options, self_offset=0))
    if name in ("one class", "no positives"):
        assert float(found[0]) == 0
        assert not bool(values.any())
    weights = torch.linspace(-1, 1, ROWS).to(dtype)
    gradients = [
        torch.autograd.grad((v * weights).sum(), t)[0].double()
        for v, t in ((values, leaf), (expected, again))
    ]
    # Each side of ref is rounded to the type of the input before they are added.
    rounding = 2.0**-6 if dtype == torch.bfloat16 else 1e-5
    finite = gradients[1].isfinite()
    assert torch.equal(finite, gradients[0].isfinite())
    torch.testing.assert_close(
        gradients[0][finite], gradients[1][finite], rtol=rounding, atol=rounding
    )


@pytest.mark.parametrize("mining", ["hard", "easy_positive"])
def test_promise_4_no_result_depends_on_the_threads(mining, simd):
    x, y = rows("ties")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            loss = siamcuda.batch_triplet_loss(leaf, y, mining=mining)
            results.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("count", [383, 384, 385, 96 * 17 + 1])
def test_sizes_around_those_of_groups(count, simd):
    x = torch.randn(count, 7, generator=torch.Generator().manual_seed(count))
    y = torch.arange(count) % 50
    distances = siamcuda.squared_cdist(x, x)
    same = (y == y[:, None]) & ~torch.eye(count, dtype=torch.bool)
    positive = torch.where(same, distances, torch.tensor(-1.0)).max(1).values
    negative = torch.where(y != y[:, None], distances, torch.tensor(torch.inf)).min(1).values
    values = siamcuda.batch_triplet_loss(x, y, margin=0.5, mining="hard", reduction="none")
    assert torch.equal(values, (positive + 0.5 - negative).clamp(min=0))
