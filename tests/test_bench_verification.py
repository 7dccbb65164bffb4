"""The benchmark of verification: peers agree, wrong counts are refused, tables hold what was read.

Nothing here looks at how long anything took.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from bench import harness, table_verification, verification
from bench.results import BenchError


@pytest.mark.parametrize("rows", [300, 1003])
def test_peers_agree(rows: int) -> None:
    task = verification._evaluation(rows, 24)
    families = {peer.family for peer in harness.check(task)}
    here = {"scikit-learn"} if importlib.util.find_spec("sklearn") else set()
    assert families == {"ours", "torch"} | here
    (eer, auc, *frr), thresholds = task.expected()
    assert 0.01 < eer < 0.3
    assert 0.7 < auc < 1
    assert frr == sorted(frr)
    assert (thresholds.diff() < 0).all()


@pytest.mark.parametrize("make", ["_first_pass", "_second_pass", "_large"])
@pytest.mark.parametrize("rows", [3001, 3010])
def test_passes_hold_every_pair(make: str, rows: int) -> None:
    assert harness.check(getattr(verification, make)(rows, 8))


@pytest.mark.parametrize("wrong", ["count", "sum"])
def test_a_wrong_count_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = verification._first_pass(500, 8)
    histogram = verification.Sweep.histogram

    def lie(sweep: verification.Sweep, hardest: int) -> tuple[Any, ...]:
        counts, sums, found = histogram(sweep, hardest)
        if wrong == "count":
            counts[1, np.flatnonzero(counts[1])[0]] += 1
        else:
            sums[0, 0] *= 1.0001
        return counts, sums, found

    monkeypatch.setattr(verification.Sweep, "histogram", lie)
    with pytest.raises(BenchError, match="result"):
        harness.check(task)


def test_sums_are_those_of_all_pairs() -> None:
    x, labels = verification.inputs(47, 5)
    i, j = torch.triu_indices(47, 47, 1)
    squared = (x[i].double() - x[j].double()).square().sum(1)
    same = labels[i] == labels[j]
    torch.testing.assert_close(
        verification._sums(x, labels), torch.stack([squared[same].sum(), squared[~same].sum()])
    )
    assert verification._genuine(labels) == int(same.sum())


def test_tables() -> None:
    limits = {"fma_gflops": 500.0}
    rows = []
    for case in verification.cases():
        seconds = 2e-9 * case.rows * case.rows
        families = ["ours"] if case.rows > 10_000 else ["ours", "torch", "scikit-learn"]
        timings = [
            harness.Timing(
                harness.Peer(name, "v", lambda: None, None), 1, [seconds * (i + 1)] * 3
            )
            for i, name in enumerate(families)
        ]  # fmt: skip
        memory = {id(t.peer): 100.0 * (i + 1) for i, t in enumerate(timings)}
        rows += harness._rows(case, timings, memory, "warm", 2, limits, harness.QUICK)
    texts = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    peers = table_verification.SECTIONS["verification"](texts)
    assert "| evaluate 4000x128 | 2 | 32 ms | 100 | torch (v) | 64 ms | 200 | 2.00x |" in peers
    rates = table_verification.SECTIONS["verification_rates"](texts)
    line = (
        "| first pass 100000x128 | 2 | 20 s | 5e+09 | 2.5e+08 | 64 | 500 | 13 % | >= 40 % | missed"
    )
    assert line in rates
    assert "1,000,000 of them take 33 minutes on 2 threads: scaled, not run." in rates
    assert table_verification.SECTIONS["verification"]([]) == table_verification.NOTHING
