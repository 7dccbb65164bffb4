"""Runs every operator forward, backward and twice backward on a device, at a few sizes and dtypes.

What compute-sanitizer watches: it makes each launch hundreds of times slower, so every family of
kernels, engine and dtype comes once with partial tiles, several stages and several splits, and no
more. Values are compared with the reference too, so that a run that computes nonsense does not pass
for a clean one.

    python tools/gpu_driver.py [--device cuda]
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent

Size = tuple[tuple[int, ...], int]
#: (leading shape, columns) for every operator: a partial tile of whole accesses and of unaligned
#: rows. And for a loss of pairs and one of triplets: nothing, one row, rows beyond what lanes hold,
#: a batch of three dimensions.
SIZES: tuple[Size, ...] = (((70,), 128), ((33,), 129))
MORE_SIZES: tuple[Size, ...] = (((0,), 8), ((1,), 4), ((5,), 1500), ((2, 3), 16))
#: (rows, columns, ref rows): less than a tile with rows between chunks; several tiles, stages and
#: splits of the product.
BATCHES = ((30, 17, None), (70, 136, 300))
DTYPES = (torch.float32, torch.bfloat16)
MORE_DTYPES = (torch.float16, torch.float64)
#: The losses that stand for the others where their kernels differ by no more than a formula.
CHOSEN = ("contrastive_loss", "triplet_loss", "batch_contrastive_loss", "batch_triplet_loss-hard")
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-3}


def close(found: torch.Tensor, wanted: torch.Tensor, what: object) -> None:
    """Raises an AssertionError where results are not near what the reference gives."""
    exact = wanted.detach()
    scale = float(exact.abs().max()) if exact.numel() else 0.0
    error = (found.detach().cpu().double() - exact).abs()
    bound = BOUNDS.get(found.dtype, 3e-2) * scale + 1e-12
    assert not error.numel() or float(error.max()) <= bound, (what, found.shape, found.dtype)


def run(case: Any, cases: Any, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """One operator at one size, in every order of derivative.

    Raises:
        AssertionError: a result is not what the reference gives.
    """
    tensors, target = case.make(shape, dtype, device)
    arguments, keywords = case.arguments(tensors, target), case.keywords(case.reductions[-1])
    loss = case.function(*arguments, **keywords)
    upstream = torch.full_like(loss, 0.5, requires_grad=True)  # not 1, so that all is scaled
    gradients = torch.autograd.grad(loss, tensors, upstream.detach())
    second = torch.autograd.grad(
        case.function(*arguments, **keywords), tensors, upstream, create_graph=True
    )
    tangents = [torch.full_like(g, 0.5) for g in second]
    torch.autograd.grad(second, [*tensors, upstream], tangents, allow_unused=True)
    plain = [t.detach() for t in tensors]
    case.value_and_grad(*case.arguments(plain, target), **keywords)
    if case.name == "contrastive_loss":
        case.function(*arguments, **keywords, return_stats=True)
    if 0 in shape:  # the mean of nothing is NaN for some
        return
    value, slopes = cases.exact(case, tensors, target, case.reductions[-1], upstream.detach())
    cases.assert_close(loss, value, case, shape[-1], "value")
    scale = case.gradient_terms(tensors)
    for gradient, slope in zip(gradients, slopes, strict=True):
        cases.assert_close(gradient, slope, case, shape[-1], "gradient", scale)


def run_batch(
    case: Any, rows: int, columns: int, refs: int | None, dtype: torch.dtype, device: str
) -> None:
    """One loss over a batch at one size, forward and backward; with refs, statistics too.

    Raises:
        AssertionError: a result is not what the reference gives.
    """
    x, y = case.make(rows, columns, dtype, refs)
    here = [t.detach().to(device).requires_grad_() for t in x]
    labels = [t.to(device) for t in y]
    wide = [t.detach().double().requires_grad_() for t in x]
    options: dict[str, Any] = {"reduction": "mean" if refs is None else "mean_active"}
    if refs is None:
        loss = case.call(case.function, here, labels, **options)
    else:
        loss, _ = case.call(case.function, here, labels, return_stats=True, **options)
    exact = case.call(case.reference, wide, y, **options)
    found = (loss, *torch.autograd.grad(loss, here))
    wanted = (exact, *torch.autograd.grad(exact, wide))
    for got, want in zip(found, wanted, strict=True):
        close(got, want, (case.id, rows, columns))


def run_cdist(rows: int, columns: int, refs: int | None, dtype: torch.dtype, device: str) -> None:
    """All distances at one size, forward and backward, of a batch of two matrices."""
    siamcuda = importlib.import_module("siamcuda")
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(2, n, columns, generator=generator).to(dtype) for n in (rows, refs or rows)]
    here = [t.to(device).requires_grad_() for t in x]
    wide = [t.double().requires_grad_() for t in x]
    found, wanted = siamcuda.squared_cdist(*here), siamcuda.reference.squared_cdist(*wide)
    close(found, wanted, ("squared_cdist", rows, columns))
    gradients = torch.autograd.grad(found, here, torch.ones_like(found))
    for got, want in zip(
        gradients, torch.autograd.grad(wanted, wide, torch.ones_like(wanted)), strict=True
    ):
        close(got, want, ("gradient of squared_cdist", rows, columns))


def run_verification(rows: int, columns: int, dtype: torch.dtype, metric: str, device: str) -> None:
    """Every pass of verification at one size: counts, intervals, hardest pairs, ranks, samples.

    Raises:
        AssertionError: rates or ranks are not those of distances in float64.
    """
    evaluation = importlib.import_module("siamcuda.verification._evaluate")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) // 5
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    x = (x + 2 * torch.randn(rows, columns, generator=generator)[labels]).to(dtype)
    kept, evaluation.STORED_PAIRS = evaluation.STORED_PAIRS, 0  # counted, however few they are
    try:
        options = {"metric": metric, "bootstrap": 64, "hardest": 7}
        found = evaluation.evaluate(x.to(device), labels, (0.1, 0.01), **options)
        wanted = evaluation.evaluate(x.double(), labels, (0.1, 0.01), **options)
    finally:
        evaluation.STORED_PAIRS = kept
    where = ("verification", rows, columns, metric)
    assert found.impostor_within[-1] == wanted.impostor_within[-1], where
    assert abs(found.eer - wanted.eer) < 0.01, where
    assert abs(found.auc - wanted.auc) < 0.01, where
    differ = found.identification.rank != wanted.identification.rank
    assert differ.mean() < 0.05, where


def chosen(case: Any) -> bool:
    """Whether the case comes in every dtype and, of single rows, in every size."""
    mining = case.options.get("mining")
    return "-".join(filter(None, (case.name, mining))) in CHOSEN and not case.options.get("soft")


def batch_cases(cases: Any) -> Iterator[Any]:
    """softplus changes a formula, not a kernel's accesses: once is enough; nor does a margin."""
    soft = [case for case in cases.BATCH_CASES if case.options.get("soft")]
    yield soft[0]
    yield from (c for c in cases.BATCH_CASES if c not in soft and "margin" not in c.options)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args(arguments).device
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    cases = importlib.import_module("cases")
    count, names = 0, {"squared_cdist"}
    for case in cases.ONE_EACH:
        names.add(case.name)
        for leading, columns in (*SIZES, *(MORE_SIZES if chosen(case) else ())):
            dtypes = DTYPES if leading == SIZES[0][0] else DTYPES[:1]
            if chosen(case) and (leading, columns) in SIZES:
                dtypes += MORE_DTYPES
            for dtype in dtypes:
                run(case, cases, (*leading, columns), dtype, device)
                count += 1
    for case in batch_cases(cases):
        names.add(case.name)
        for dtype in DTYPES + (MORE_DTYPES if chosen(case) else ()):
            for rows, columns, refs in BATCHES:
                run_batch(case, rows, columns, refs, dtype, device)
                count += 1
    for dtype in DTYPES + MORE_DTYPES:
        for rows, columns, refs in BATCHES:
            run_cdist(rows, columns, refs, dtype, device)
            count += 1
    names.add("verification")
    for dtype, columns in ((torch.float32, 40), (torch.float32, 140), (torch.float64, 12)):
        for metric in ("sqeuclidean", "euclidean", "cosine"):
            run_verification(200, columns, dtype, metric, device)
            count += 1
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    print(f"{count} cases of {len(names)} operators on {device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
