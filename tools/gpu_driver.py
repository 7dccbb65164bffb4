"""Runs every operator forward, backward and twice backward on a device, at a few sizes and dtypes.

What compute-sanitizer watches: short, and without the rest of the test suite. Values are compared
with the reference too, so that a run that computes nonsense does not pass for a clean one.

    python tools/gpu_driver.py [--device cuda]
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent

#: (leading shape, columns): nothing, one row, a partial tile, more than a tile, unaligned rows,
#: rows beyond what lanes hold, a broadcast-like three-dimensional batch.
SHAPES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((0,), 8),
    ((1,), 4),
    ((70,), 128),
    ((33,), 129),
    ((5,), 1500),
    ((2, 3), 16),
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def run(case: Any, cases: Any, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """One operator at one size, in every order of derivative.

    Raises:
        AssertionError: a result is not what the reference gives.
    """
    tensors, target = case.make(shape, dtype, device)
    for reduction in case.reductions:
        arguments = case.arguments(tensors, target)
        loss = case.function(*arguments, **case.keywords(reduction))
        upstream = torch.ones_like(loss, requires_grad=True)
        gradients = torch.autograd.grad(loss, tensors, upstream, create_graph=True)
        tangents = [torch.full_like(g, 0.5) for g in gradients]
        torch.autograd.grad(gradients, [*tensors, upstream], tangents, allow_unused=True)
        plain = [t.detach() for t in tensors]
        case.value_and_grad(*case.arguments(plain, target), **case.keywords(reduction))
        if 0 in shape:  # the mean of nothing is NaN for some
            continue
        value, slopes = cases.exact(case, tensors, target, reduction, upstream.detach())
        cases.assert_close(loss, value, case, shape[-1], "value")
        scale = case.gradient_terms(tensors)
        for gradient, slope in zip(gradients, slopes, strict=True):
            cases.assert_close(gradient, slope, case, shape[-1], "gradient", scale)


#: (rows, columns, ref rows): less than a tile, edges of several tiles, D beyond a stage.
BATCHES = ((1, 4, None), (30, 17, None), (66, 130, 40), (20, 33, 130))


def run_batch(
    case: Any, rows: int, columns: int, refs: int | None, dtype: torch.dtype, device: str
) -> None:
    """One loss over a batch at one size, forward, backward and with statistics.

    Raises:
        AssertionError: a result is not what the reference gives.
    """
    x, y = case.make(rows, columns, dtype, refs)
    here = [t.detach().to(device).requires_grad_() for t in x]
    labels = [t.to(device) for t in y]
    wide = [t.detach().double().requires_grad_() for t in x]
    for reduction in ("none", "mean", "mean_active"):
        loss = case.call(case.function, here, labels, reduction=reduction)
        gradients = torch.autograd.grad(loss, here, torch.ones_like(loss))
        exact = case.call(case.reference, wide, y, reduction=reduction)
        wanted = torch.autograd.grad(exact, wide, torch.ones_like(exact))
        pairs = zip((loss, *gradients), (exact, *wanted), strict=True)
        for got, want in pairs:
            exact_value = want.detach()
            scale = float(exact_value.abs().max()) if want.numel() else 0.0
            error = (got.detach().cpu().double() - exact_value).abs()
            bound = {torch.float64: 1e-9, torch.float32: 1e-3}.get(dtype, 3e-2) * scale + 1e-12
            assert not error.numel() or float(error.max()) <= bound, (case.id, rows, columns, dtype)
    case.call(case.function, here, labels, return_stats=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args(arguments).device
    sys.path.insert(0, str(ROOT / "tests"))
    cases = importlib.import_module("cases")
    count = 0
    # softplus changes a formula, not a kernel's accesses: once is enough.
    batch_cases = [c for c in cases.BATCH_CASES if not c.options.get("soft")]
    batch_cases += [c for c in cases.BATCH_CASES if c.options.get("soft")][:1]
    for case in cases.ONE_EACH:
        for leading, columns in SHAPES:
            for dtype in DTYPES:
                run(case, cases, (*leading, columns), dtype, device)
                count += 1
    for case in batch_cases:
        for rows, columns, refs in BATCHES:
            for dtype in DTYPES:
                run_batch(case, rows, columns, refs, dtype, device)
                count += 1
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    names = {case.name for case in (*cases.ONE_EACH, *batch_cases)}
    print(f"{count} cases of {len(names)} operators on {device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
