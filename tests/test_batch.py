"""Losses over a batch and squared_cdist, on every backend, against brute force."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from cases import BATCH_CASES, ROUNDING, BatchCase
from torch import Tensor

import siamcuda
from bench import large
from siamcuda import reference

REDUCTIONS = ("none", "sum", "mean", "mean_active")
ONE_EACH = list({case.name: case for case in reversed(BATCH_CASES)}.values())
TRIPLETS = [case for case in BATCH_CASES if case.name == "batch_triplet_loss"]


def exact(
    case: BatchCase, x: list[Tensor], y: list[Tensor], reduction: str, upstream: Tensor
) -> tuple[Tensor, list[Tensor]]:
    wide = [t.detach().double().requires_grad_() for t in x]
    value = case.call(case.reference, wide, y, reduction=reduction)
    return value.detach(), list(torch.autograd.grad(value, wide, upstream.double()))


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, slack: float, what: str):
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return
    output, compute = ROUNDING[dtype]
    bound = 2 * output * expected.abs() + 4096 * slack * compute * float(expected.abs().max())
    error = (actual.detach().double() - expected).abs()
    tiny = torch.finfo(dtype).tiny
    assert bool((error <= bound + tiny).all()), f"{what}: {float(error.max()):.3g}"


@pytest.mark.parametrize("case", BATCH_CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("refs", [None, 0, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_values_and_gradients(case, refs, dtype, level):
    for (rows, columns), reduction in itertools.product(
        ((0, 4), (1, 4), (2, 3), (13, 17), (27, 130)), REDUCTIONS
    ):
        x, y = case.make(rows, columns, dtype, refs)
        value = case.call(case.function, x, y, reduction=reduction)
        upstream = torch.randn(value.shape, dtype=dtype)
        gradients = torch.autograd.grad(value, x, upstream)
        expected, wanted = exact(case, x, y, reduction, upstream)
        what = f"{rows}x{columns} {reduction}"
        assert_close(value, expected, dtype, case.slack, what)
        for got, want in zip(gradients, wanted, strict=True):
            assert got.dtype == dtype
            assert_close(got, want, dtype, case.slack, what + " gradient")


@pytest.mark.parametrize("case", BATCH_CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(case, dtype, level):
    x, y = case.make(40, 33, dtype, 30)
    value = case.call(case.function, x, y)
    assert value.dtype == dtype
    expected, wanted = exact(case, x, y, "mean", torch.ones(()))
    assert_close(value, expected, dtype, case.slack, "value")
    for got, want in zip(torch.autograd.grad(value, x), wanted, strict=True):
        assert got.dtype == dtype
        assert_close(got, want, dtype, case.slack, "gradient")


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_larger_than_a_block(case, level):
    """More rows than a panel group, more columns than a block, odd edges of both."""
    x, y = case.make(603, 40, torch.float32, classes=60)
    value = case.call(case.function, x, y, reduction="sum")
    ours = torch.autograd.grad(value, x)[0]
    if case.name == "batch_triplet_loss":  # 603³ is too much for the reference
        case = BatchCase(case.name, {**case.options, "mining": "hard"})
        value = case.call(case.function, x, y, reduction="sum")
        ours = torch.autograd.grad(value, x)[0]
    expected, (wanted,) = exact(case, x, y, "sum", torch.ones(()))
    assert_close(value, expected, torch.float32, case.slack, "value")
    assert_close(ours, wanted, torch.float32, case.slack, "gradient")


def rooted(s: Tensor) -> Tensor:
    """sqrt, rounded correctly; torch's own is not always."""
    return torch.from_numpy(np.sqrt(s.numpy()))


def brute_force(x, y, margin, mining, squared):
    """Terms as (anchor, positive, negative), written as a definition would be, from the distances
    that squared_cdist gives."""
    s = siamcuda.squared_cdist(x, x)
    d = s if squared else rooted(s)
    n = len(y)
    terms = []
    for a in range(n):
        positives = [p for p in range(n) if p != a and y[p] == y[a]]
        negatives = [q for q in range(n) if y[q] != y[a]]
        if not positives or not negatives:
            continue
        if mining == "all":
            terms += [(a, p, q) for p in positives for q in negatives]
        elif mining == "semihard":
            for p in positives:
                farther = [q for q in negatives if s[a, q] > s[a, p]]
                if farther:
                    terms.append((a, p, min(farther, key=lambda q: (float(s[a, q]), q))))
                else:
                    terms.append((a, p, min(negatives, key=lambda q: (-float(s[a, q]), q))))
        else:
            sign = -1 if mining == "hard" else 1
            p = min(positives, key=lambda p: (sign * float(s[a, p]), p))
            terms.append((a, p, min(negatives, key=lambda q: (float(s[a, q]), q))))
    active = sum(bool((d[a, p] + margin) > d[a, q]) for a, p, q in terms)
    collapsed = sum(bool(s[a, q] == 0) for a, p, q in terms)
    loss = sum(max(float(d[a, p] + margin) - float(d[a, q]), 0.0) for a, p, q in terms)
    return len(terms), active, collapsed, loss


@pytest.mark.parametrize("mining", ["all", "hard", "semihard", "easy_positive"])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("ties", [False, True])
def test_mining_is_its_definition(mining, squared, ties, level):
    """Counts bit for bit on the same distances, ties included."""
    generator = torch.Generator().manual_seed(3)
    for n, classes in ((9, 2), (24, 5), (40, 2), (80, 2)):
        x = torch.randn(n, 5, generator=generator)
        if ties:
            x = x.round()  # a grid: many distances are equal, many rows too
        y = torch.randint(0, classes, (n,), generator=generator)
        loss, stats = siamcuda.batch_triplet_loss(
            x, y, margin=0.5, mining=mining, squared=squared, reduction="sum", return_stats=True
        )
        terms, active, collapsed, expected = brute_force(x, y, 0.5, mining, squared)
        assert (int(stats.valid), int(stats.active), int(stats.collapsed)) == (
            terms,
            active,
            collapsed,
        )
        torch.testing.assert_close(float(loss), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("many", [33, 256, 257, 258, 300])
def test_counting_and_sorting_agree(many, level):
    """Few positives are compared one by one, many by binary search: the same integers."""
    if level == "emulated" and many > 33:
        pytest.skip("CUDA sorts 512 positives at a time: test_many_positives")
    x = torch.randn(2 * many, 3, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    y = torch.arange(2 * many) % 2
    for squared in (True, False):
        loss, stats = siamcuda.batch_triplet_loss(
            x, y, squared=squared, reduction="sum", return_stats=True
        )
        s = siamcuda.squared_cdist(x, x)
        d = s if squared else rooted(s)
        same = (y.unsqueeze(1) == y) & ~torch.eye(len(y), dtype=torch.bool)
        key = d + torch.tensor(0.2)
        hinge = key.unsqueeze(2) > d.unsqueeze(1)
        valid = same.unsqueeze(2) & (y.unsqueeze(1) != y).unsqueeze(1)
        assert int(stats.active) == int((hinge & valid).sum())
        value = torch.where(hinge & valid, key.unsqueeze(2).double() - d.unsqueeze(1), 0.0).sum()
        torch.testing.assert_close(float(loss), float(value), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", TRIPLETS[::2], ids=lambda c: c.id)
def test_many_positives(case, level):
    """More than CUDA keeps in shared memory, for few anchors; ties; a bank as large as that."""
    generator = torch.Generator().manual_seed(1)
    x, refs = (torch.randn(n, 2, generator=generator).round(decimals=2) for n in (2, 1300))
    y, labels = torch.tensor([0, 1]), (torch.arange(1300) % 10 == 0).long()
    leaves = [x.requires_grad_(), refs.requires_grad_()]
    value = case.call(case.function, leaves, [y, labels], reduction="sum")
    expected, wanted = exact(case, leaves, [y, labels], "sum", torch.ones(()))
    assert_close(value, expected, torch.float32, case.slack, "value")
    if case.options["mining"] == "semihard":
        return  # which of two nearly equal negatives is nearest is a matter of rounding
    for got, want in zip(torch.autograd.grad(value, leaves), wanted, strict=True):
        assert_close(got, want, torch.float32, case.slack, "gradient")


@pytest.mark.parametrize("case", TRIPLETS, ids=lambda c: c.id)
@pytest.mark.parametrize("many", [150, 530])
def test_many_positives_of_which_some_are_nan(case, many, level):
    """As if those were not there, whether or not what is left fits into shared memory."""
    generator = torch.Generator().manual_seed(2)
    x, refs = (torch.randn(n, 2, generator=generator) for n in (2, many + 101))
    y, labels = torch.tensor([0, 1]), (torch.arange(len(refs)) >= many).long()
    others = torch.arange(len(refs)) % 13 != 5
    spoilt = torch.where(others.unsqueeze(1), refs, torch.nan)
    leaves = [x.requires_grad_(), spoilt.requires_grad_()]
    value = case.call(case.function, leaves, [y, labels], reduction="sum")
    kept = [x, refs[others].requires_grad_()]
    expected = case.call(case.function, kept, [y, labels[others]], reduction="sum")
    torch.testing.assert_close(value, expected)
    gradients, wanted = torch.autograd.grad(value, leaves), torch.autograd.grad(expected, kept)
    torch.testing.assert_close(gradients[0], wanted[0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(gradients[1][others], wanted[1], rtol=1e-4, atol=1e-3)
    assert not gradients[1][~others].any()


@pytest.mark.parametrize("mining", ["hard", "easy_positive"])
def test_many_anchors_pick_the_same_rows(mining, level):
    """More of them than CUDA lists at a time."""
    generator = torch.Generator().manual_seed(4)
    x, refs = (torch.randn(n, 2, generator=generator).requires_grad_() for n in (1300, 3))
    y, labels = torch.arange(1300) % 2, torch.arange(3) % 2
    value, expected = (
        module.batch_triplet_loss(
            x.to(dtype),
            y,
            mining=mining,
            ref_embeddings=refs.to(dtype),
            ref_labels=labels,
            reduction="sum",
        )
        for module, dtype in ((siamcuda, torch.float32), (reference, torch.float64))
    )
    torch.testing.assert_close(value.double(), expected)
    for got, want in zip(
        torch.autograd.grad(value, [x, refs]), torch.autograd.grad(expected, [x, refs]), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def _loss_of(case, y, reduction):
    return lambda *x: case.call(case.function, list(x), y, reduction=reduction)


@pytest.mark.parametrize("case", BATCH_CASES, ids=lambda c: c.id)
def test_gradcheck(case):
    # Rows far enough from every kink for a finite difference.
    x, y = case.make(7, 3, refs=5, classes=2, seed=11)
    for reduction in ("none", "mean"):
        assert torch.autograd.gradcheck(_loss_of(case, y, reduction), x, atol=1e-6)


@pytest.mark.parametrize("case", BATCH_CASES, ids=lambda c: c.id)
def test_gradgradcheck(case):
    x, y = case.make(6, 3, refs=4, classes=2, seed=11)
    for reduction in ("none", "sum"):
        assert torch.autograd.gradgradcheck(_loss_of(case, y, reduction), x, atol=1e-6)
    assert torch.autograd.gradgradcheck(_loss_of(case, y[:1], "mean"), x[:1], atol=1e-6)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(case, reduction):
    x, y = case.make(9, 5, torch.float32, 7)
    operator = getattr(torch.ops.siamcuda, case.name).default
    options = {**case.options, "reduction": reduction}
    torch.library.opcheck(operator, (x[0], y[0], x[1], y[1]), options)
    torch.library.opcheck(operator, (x[0], y[0]), options)


def test_opcheck_squared_cdist():
    a, b = torch.randn(2, 5, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.siamcuda.squared_cdist.default, (a, b))


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_compile_fullgraph_dynamic(case):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, y: case.call(case.function, [x * 2], [y]), fullgraph=True, dynamic=True
    )
    for rows in (9, 12):
        (x,), (y,) = case.make(rows, 6, torch.float32)
        expected = case.call(case.function, [x * 2], [y])
        wanted = torch.autograd.grad(expected, x)
        value = compiled(x, y)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, x), wanted)


@pytest.mark.parametrize("case", BATCH_CASES, ids=lambda c: c.id)
def test_promise_1_distance_0_gives_gradient_0(case, level):
    x = torch.ones(8, 5, requires_grad=True)
    y = torch.arange(8) // 2
    gradient = torch.autograd.grad(case.call(case.function, [x], [y], reduction="sum"), x)[0]
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("case", BATCH_CASES, ids=lambda c: c.id)
def test_promise_2_nan_stays_with_its_anchor(case, level):
    x, y = case.make(20, 9, torch.float32, classes=3)
    clean = x[0].detach().clone()
    spoilt = clean.clone()
    spoilt[4, 2] = float("nan")
    spoilt.requires_grad_()
    value = case.call(case.function, [spoilt], y, reduction="none")
    others = torch.arange(20) != 4
    assert value[4].isnan()
    assert value[others].isfinite().all()
    gradient = torch.autograd.grad(value[others].sum(), spoilt)[0]
    assert gradient[others].isfinite().all()
    # The others lose nobody but that row.
    kept = clean[others].requires_grad_()
    expected = case.call(case.function, [kept], [y[0][others]], reduction="none")
    torch.testing.assert_close(value[others], expected)
    wanted = torch.autograd.grad(expected.sum(), kept)[0]
    torch.testing.assert_close(gradient[others], wanted, rtol=1e-5, atol=1e-6)
    for reduction in ("sum", "mean"):
        total = case.call(case.function, [spoilt], y, reduction=reduction)
        assert total.isnan()
        gradient = torch.autograd.grad(total, spoilt)[0]
        assert gradient[others].isfinite().all()
        assert gradient[4].isnan().any()


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_promise_2_nan_in_ref_is_nobodys_partner(case, level):
    x, y = case.make(7, 5, torch.float32, 9, classes=3)
    spoilt = x[1].detach().clone()
    spoilt[4, 2] = float("nan")
    spoilt.requires_grad_()
    loss = case.call(case.function, [x[0], spoilt], y, reduction="sum")
    gradients = torch.autograd.grad(loss, [x[0], spoilt])
    others = torch.arange(9) != 4
    kept = x[1].detach()[others].requires_grad_()
    expected = case.call(case.function, [x[0], kept], [y[0], y[1][others]], reduction="sum")
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, [x[0], kept])
    torch.testing.assert_close(gradients[0], wanted[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[1][others], wanted[1], rtol=1e-5, atol=1e-6)
    assert not gradients[1][4].any()


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("upstream", [1.0, -2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_either_side_alone(case, dtype, upstream, kept, level):
    """Gradients that forward made for both sides, of which one is asked for."""
    x, y = case.make(9, 5, dtype, 12, classes=3)

    def gradients(wanted):
        loss = case.call(case.function, x, y)
        grad = torch.tensor(upstream, dtype=dtype)
        return torch.autograd.grad(loss, wanted, grad, retain_graph=kept)

    both = gradients(x)
    for side in range(2):
        (alone,) = gradients([x[side]])
        assert torch.equal(alone, both[side])
    # Nobody's gradient is another's memory.
    loss = case.call(case.function, x, y)
    first = torch.autograd.grad(loss, x, retain_graph=True)
    copies = [t.clone() for t in first]
    second = torch.autograd.grad(loss, x)
    for t in second:
        t.zero_()
    assert all(torch.equal(a, b) for a, b in zip(first, copies, strict=True))


@pytest.mark.parametrize("refs", [None, 70])
@pytest.mark.parametrize("columns", [36, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_rows_that_a_product_must_mend(case, dtype, columns, refs, level):
    """Twins, whose gradients are direct, and rows with NaN or inf, among 140 of two blocks."""
    x, y = case.make(140, columns, dtype, refs, classes=9)
    for t, label in zip(x, y, strict=True):
        t.data[66:70] = t.data[1:5]
        t.data[65] = t.data[64] * (1 + 2.0**-7)
        label[64:70] = label[:6] + 1000
        t.data[9, 3], t.data[67, 2] = float("nan"), float("-inf")
    loss = case.call(case.function, x, y, reduction="none")
    others = torch.ones(140, dtype=torch.bool)
    others[[9, 67]] = False
    found = torch.autograd.grad(loss[others].sum(), x)
    wide = [t.detach().double().requires_grad_() for t in x]
    exact = case.call(case.function, wide, y, reduction="none")
    wanted = torch.autograd.grad(exact[others].sum(), wide)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for got, want in zip(found, wanted, strict=True):
        kept = torch.ones(len(got), dtype=torch.bool)
        kept[[9, 67]] = False
        assert got[kept].isfinite().all()
        error = (got[kept].double() - want[kept]).abs().max()
        assert error <= tolerance * want[kept].abs().max()


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_promise_2_infinite_rows(case, level):
    x = torch.randn(6, 4)
    x[2, 1] = float("inf")
    x.requires_grad_()
    y = torch.tensor([0, 0, 1, 2, 1, 2])
    value = case.call(case.function, [x], [y], reduction="none")
    expected = case.call(case.reference, [x.detach().double()], [y], reduction="none")
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    gradient = torch.autograd.grad(value.sum(), x)[0]
    assert gradient[[0, 1, 3, 5]].isfinite().all()


@pytest.mark.parametrize("case", BATCH_CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("labels", [[], [5], [5, 5, 5], [1, 2, 3]])
def test_promise_3_no_terms_give_zero(case, labels, level):
    pairs = case.name != "batch_triplet_loss"
    if pairs and len(labels) > 1:
        pytest.skip("pairs of one class, or of none, are terms")
    x = torch.randn(len(labels), 4, requires_grad=True)
    y = torch.tensor(labels, dtype=torch.int64)
    for reduction in ("mean", "mean_active", "sum"):
        loss = case.call(case.function, [x], [y], reduction=reduction)
        assert float(loss.detach()) == 0
        assert not torch.autograd.grad(loss, x)[0].any()


@pytest.mark.parametrize("case", BATCH_CASES, ids=lambda c: c.id)
def test_promise_4_no_result_depends_on_the_threads(case, level):
    x, y = case.make(211, 37, torch.float32, classes=20)

    def run(threads):
        torch.set_num_threads(threads)
        value = case.call(case.function, x, y)
        return value, torch.autograd.grad(value, x)[0]

    before = torch.get_num_threads()
    try:
        first = run(1)
        for threads in (2, 3):
            again = run(threads)
            assert torch.equal(first[0], again[0])
            assert torch.equal(first[1], again[1])
    finally:
        torch.set_num_threads(before)


def test_promise_4_distances_do_not_depend_on_the_company(level):
    x = torch.randn(70, 200, generator=torch.Generator().manual_seed(0))
    whole = siamcuda.squared_cdist(x, x)
    assert torch.equal(whole, whole.t())
    for rows, columns in ((slice(5, 6), slice(40, 41)), (slice(3, 50), slice(17, 70))):
        assert torch.equal(siamcuda.squared_cdist(x[rows], x[columns]), whole[rows, columns])


@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 31, 33, 127, 129, 1021])
@pytest.mark.parametrize("offset", [0.0, 10.0, 1e4])
def test_promise_6_near_duplicates(columns, offset, level):
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(12, columns, generator=generator) + offset
    near = x * (1 + 1e-6 * torch.randn(12, 1, generator=generator)) + 1e-5
    both = torch.cat([x, near])
    distances = siamcuda.squared_cdist(both, both)
    expected = reference.squared_cdist(both.double(), both.double())
    assert bool(((distances - expected).abs() <= 1e-3 * expected).all())
    both.requires_grad_()
    y = torch.arange(24)
    loss = siamcuda.batch_contrastive_loss(both, y, margin=3.0, reduction="sum")
    gradient = torch.autograd.grad(loss, both)[0]
    wide = both.detach().double().requires_grad_()
    wanted = torch.autograd.grad(
        reference.batch_contrastive_loss(wide, y, margin=3.0, reduction="sum"), wide
    )[0]
    error = (gradient - wanted).norm(dim=1) / wanted.norm(dim=1).clamp(min=1e-3)
    assert float(error.max()) < 1e-3


@pytest.mark.parametrize("columns", [1, 2, 17, 128, 129, 385])
def test_bfloat16_distances(columns, level):
    """Where the CPU multiplies bfloat16 itself: odd D, blocks of D, symmetry, near-duplicates."""
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(45, columns, generator=generator)
    x = torch.cat([x, x * 1.008, x + 0.01]).to(torch.bfloat16)
    exact_distances = reference.squared_cdist(x.double(), x.double())
    found = siamcuda.squared_cdist(x, x)
    assert torch.equal(found, found.t())
    error = (found.double() - exact_distances).abs()
    assert bool((error <= (2.0**-8 + 1e-3) * exact_distances).all())
    assert torch.equal(siamcuda.squared_cdist(x[3:90], x[50:]), found[3:90, 50:])


@pytest.mark.parametrize("scale", [1e-18, 1e-10, 1e10, 1e18])
def test_extreme_scales(scale, level):
    x = torch.randn(9, 20, generator=torch.Generator().manual_seed(0)) * scale
    y = torch.arange(9) % 3
    for options in ({"squared": False}, {"squared": False, "mining": "hard"}):
        loss = siamcuda.batch_triplet_loss(x, y, margin=0.0, reduction="none", **options)
        expected = reference.batch_triplet_loss(
            x.double(), y, margin=0.0, reduction="none", **options
        )
        torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("case", BATCH_CASES, ids=lambda c: c.id)
def test_backward_scales_a_copy(case):
    """A second backward, another upstream gradient and gradients in use stay right."""
    x, y = case.make(15, 6, torch.float32)
    loss = case.call(case.function, x, y)
    first = torch.autograd.grad(loss, x, torch.tensor(2.0), retain_graph=True)[0]
    kept = first.clone()
    second = torch.autograd.grad(loss, x, torch.tensor(-6.0), retain_graph=True)[0]
    assert torch.equal(first, kept)
    torch.testing.assert_close(second, -3 * first)
    second.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], 0.5 * first)


def test_requires_grad_subsets():
    case = ONE_EACH[0]
    x, y = case.make(8, 5, torch.float32, 6)
    both = torch.autograd.grad(case.call(case.function, x, y), x)
    for side in (0, 1):
        some = [t.detach() for t in x]
        some[side].requires_grad_()
        loss = case.call(case.function, some, y)
        torch.testing.assert_close(torch.autograd.grad(loss, some[side])[0], both[side])
    with torch.no_grad():
        assert not case.call(case.function, x, y).requires_grad


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
def test_layouts(case, level):
    (x,), (y,) = case.make(14, 9, torch.float32)
    expected = case.call(case.function, [x], [y])
    wanted = torch.autograd.grad(expected, x)[0]
    plain = x.detach()
    views = {
        "transposed": plain.t().contiguous().t(),
        "sliced": torch.cat([plain, plain], 1)[:, :9],
        "every other row": torch.stack([plain, plain], 1).flatten(0, 1)[::2],
        "misaligned": torch.cat([plain.flatten()[:1], plain.flatten()])[1:].view(14, 9),
    }
    for name, view in views.items():
        leaf = view.requires_grad_()
        loss = case.call(case.function, [leaf], [y])
        assert torch.equal(loss, expected), name
        assert torch.equal(torch.autograd.grad(loss, leaf)[0], wanted), name


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_label_dtypes(dtype):
    x = torch.randn(10, 4)
    y = torch.arange(10) % 3
    expected = siamcuda.batch_triplet_loss(x, y)
    assert torch.equal(siamcuda.batch_triplet_loss(x, y.to(dtype)), expected)
    far = y * (2**61) - 2**62
    assert torch.equal(siamcuda.batch_triplet_loss(x, far), expected)


def test_autocast():
    x = torch.randn(12, 8, dtype=torch.bfloat16, requires_grad=True)
    y = torch.arange(12) % 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = siamcuda.batch_contrastive_loss(x, y)
    assert loss.dtype == torch.float32
    loss.backward()
    assert x.grad.dtype == torch.bfloat16


def test_vmap():
    x = torch.randn(3, 10, 4)
    y = torch.arange(10) % 3
    found = torch.vmap(lambda t: siamcuda.batch_triplet_loss(t, y, mining="hard"))(x)
    each = torch.stack([siamcuda.batch_triplet_loss(t, y, mining="hard") for t in x])
    assert torch.equal(found, each)
    found = torch.vmap(siamcuda.squared_cdist)(x, x)
    torch.testing.assert_close(found, siamcuda.squared_cdist(x, x))


def test_cdist_broadcasts_and_differentiates():
    a = torch.randn(2, 1, 7, 5, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert siamcuda.squared_cdist(a, b).shape == (2, 3, 7, 4)
    assert torch.autograd.gradcheck(siamcuda.squared_cdist, (a, b))
    assert torch.autograd.gradgradcheck(siamcuda.squared_cdist, (a, b))
    torch.testing.assert_close(siamcuda.squared_cdist(a, b), reference.squared_cdist(a, b))
    expanded = torch.autograd.grad(siamcuda.squared_cdist(a, b).sum(), a)[0]
    torch.testing.assert_close(
        expanded, torch.autograd.grad(reference.squared_cdist(a, b).sum(), a)[0]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_cdist_half(dtype, level):
    a = torch.randn(30, 40, dtype=torch.float32).to(dtype).requires_grad_()
    b = torch.randn(20, 40, dtype=torch.float32).to(dtype).requires_grad_()
    found = siamcuda.squared_cdist(a, b)
    wide = [t.detach().double().requires_grad_() for t in (a, b)]
    expected = reference.squared_cdist(*wide)
    assert_close(found, expected, dtype, 1.0, "distances")
    w = torch.randn(30, 20).to(dtype)
    for got, want in zip(
        torch.autograd.grad(found, (a, b), w),
        torch.autograd.grad(expected, wide, w.double()),
        strict=True,
    ):
        assert_close(got, want, dtype, 1.0, "gradient")


def test_statistics_of_pairs():
    x = torch.tensor([[0.0], [1.0], [0.0], [3.0]])
    y = torch.tensor([0, 0, 1, 1])
    loss, stats = siamcuda.batch_contrastive_loss(
        x, y, margin=2.5, reduction="sum", return_stats=True
    )
    # Genuine: 1, 3. Impostors: (0, 2): 0, (0, 3): 3, (1, 2): 1, (1, 3): 2.
    assert float(loss) == 1 + 9 + 2.5**2 + 1.5**2 + 0.5**2
    assert [float(s) for s in stats] == [6, 5, 1, 2, 1.5]
    mean = siamcuda.batch_contrastive_loss(x, y, margin=2.5, reduction="mean_active")
    torch.testing.assert_close(float(mean), float(loss) / 5)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"embeddings": torch.randn(3)}, ValueError, r"embeddings must have shape \(B, D\)"),
        ({"embeddings": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "embeddings must be"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, ValueError, "one entry for each row"),
        ({"labels": torch.zeros(3)}, TypeError, "labels must be integers"),
        ({"labels": torch.zeros(3, dtype=torch.bool)}, TypeError, "labels must be integers"),
        ({"labels": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, "one entry for each row"),
        (
            {"labels": torch.zeros(3, dtype=torch.int64, device="meta")},
            (ValueError, NotImplementedError),
            "device|meta",
        ),
        ({"margin": float("nan")}, ValueError, "margin must be a finite number"),
        ({"margin": -1.0}, ValueError, "margin must be at least 0"),
        ({"mining": "hardest"}, ValueError, "mining must be 'all'"),
        ({"reduction": "average"}, ValueError, "reduction must be 'mean'"),
        ({"ref_embeddings": torch.randn(2, 2)}, ValueError, "must be given together"),
        (
            {"ref_labels": torch.zeros(2, dtype=torch.int64)},
            ValueError,
            "must be given together",
        ),
        (
            {"ref_embeddings": torch.randn(2, 5), "ref_labels": torch.zeros(2, dtype=torch.int64)},
            ValueError,
            "as many columns D",
        ),
        (
            {
                "ref_embeddings": torch.randn(2, 2).double(),
                "ref_labels": torch.zeros(2, dtype=torch.int64),
            },
            TypeError,
            "dtype of embeddings",
        ),
    ],
)
def test_bad_input(change, error, match):
    arguments = {"embeddings": torch.randn(3, 2), "labels": torch.tensor([0, 0, 1])}
    with pytest.raises(error, match=match):
        siamcuda.batch_triplet_loss(**{**arguments, **change})


def test_bad_input_of_cdist():
    with pytest.raises(ValueError, match="as many columns D"):
        siamcuda.squared_cdist(torch.randn(3, 2), torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., rows, D\)"):
        siamcuda.squared_cdist(torch.randn(3), torch.randn(3, 4))
    with pytest.raises(TypeError, match="dtype of x1"):
        siamcuda.squared_cdist(torch.randn(3, 4), torch.randn(3, 4).double())
    with pytest.raises(ValueError, match="broadcast"):
        siamcuda.squared_cdist(torch.randn(2, 3, 4), torch.randn(3, 3, 4))


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("columns", [8, 128])
@pytest.mark.parametrize(
    "case", [c for c in ONE_EACH if c not in TRIPLETS] + TRIPLETS[::4], ids=lambda c: c.id
)
def test_promise_8_memory(case, columns):
    """B = 16384, whose B×B floats would be 1 GiB: 64 MiB, the array that is allowed included."""
    _, _, extra = large.measure(case.name, case.options, 16384, columns, 2)
    assert extra < 64


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda c: c.name)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_batch_as_its_own_ref(case, reduction, level):
    """With self_offset a row does not meet itself in ref: the same loss, the same counts."""
    (x,), (y,) = case.make(13, 6, torch.float32)
    plain = x.detach()
    operator = getattr(siamcuda._ops.namespace, case.name)
    statistics = getattr(siamcuda._ops.namespace, case.name + "_stats")
    expected = operator(plain, y, **case.options, reduction=reduction)
    found = operator(plain, y, plain, y, **case.options, self_offset=0, reduction=reduction)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        statistics(plain, y, plain, y, **case.options, self_offset=0),
        statistics(plain, y, **case.options),
    )
