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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args(arguments).device
    sys.path.insert(0, str(ROOT / "tests"))
    cases = importlib.import_module("cases")
    count = 0
    for case in cases.ONE_EACH:
        for leading, columns in SHAPES:
            for dtype in DTYPES:
                run(case, cases, (*leading, columns), dtype, device)
                count += 1
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    print(f"{count} cases of {len(cases.ONE_EACH)} operators on {device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
