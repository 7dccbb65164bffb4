"""``python -m bench.engine``: the CPU tile engine's share of the FMA peak, both in the same run.

Runs bench/cpp/engine.cpp, prints a line for each product and depth, appends to the CSV.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import cells, harness, limits, results
from bench.__main__ import QUICK_CSV
from bench.results import BenchError

SUITE = "engine"
#: Of the FMA peak, for float32 at D >= 64.
GOAL = 0.75
COLUMNS = 4096
ROWS, ROUNDS = 4096, 15
#: The first panels meet columns that are in no cache, so a sample's share is a lower one.
QUICK_ROWS, QUICK_ROUNDS = 192, 3
#: What setup.py compiles the engine with.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")


def measure(threads: int, quick: bool = False, clock: str = "wall") -> list[dict[str, Any]]:
    """A row of the result file for each product and depth."""
    rows, rounds = (QUICK_ROWS, QUICK_ROUNDS) if quick else (ROWS, ROUNDS)
    program = limits.program("engine", *FLAGS, headers=results.ROOT / "csrc")
    found = limits.run(program, threads, rounds, rows, clock)
    peak = float(found["peak_gflops"])
    measured = []
    for one in found["products"]:
        name, depth, gflops = one["product"], int(one["columns"]), float(one["gflops"])
        share = gflops / peak
        measured.append(
            {
                "suite": SUITE, "case": f"{name} {rows}x{COLUMNS}x{depth}", "op": name,
                "mode": "kernel", "rows": rows, "columns": depth, "dtype": "float32",
                "device": "cpu", "threads": threads, "allocator": "default", "peer": "ours",
                "variant": "siamcuda", "median_us": 2e-3 * rows * COLUMNS * depth / gflops,
                "rounds": rounds, "inner": 1, "clock": clock, "compare": "ratio", "score": share,
                "score_rounds": float(one["share_rounds"]), "goal": None if quick else GOAL,
                "of_limit": share, "limit": peak,
                "simd": found["simd"], "compiler": found["compiler"],
            }
        )  # fmt: skip
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 if it cannot be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a sample in a second, without goals")
    parser.add_argument(
        "--clock", choices=list(harness.CLOCKS), default="wall",
        help="cpu: each thread's time on the processor, for a busy machine",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, help="CSV; default bench/results.csv, --quick: build/bench/quick.csv"
    )
    options = parser.parse_args(arguments)
    path = options.out or (QUICK_CSV if options.quick else results.DEFAULT_CSV)
    try:
        results.read(path)  # a broken file is better met now
        measured = measure(options.threads, options.quick, options.clock)
        stamp = {"date": results.now(), "quick": int(options.quick), "load": harness.load()}
        stamp |= results.environment()
        results.append(path, [stamp | row for row in measured])
    except BenchError as error:
        print(f"bench.engine: error: {error}", file=sys.stderr)
        return 2
    for row in measured:
        verdict = cells.verdict({key: str(row[key] or "") for key in ("compare", "score", "goal")})
        print(
            f"{row['case']}: {row['of_limit'] * row['limit']:.0f} GFLOP/s, "
            f"{100 * row['of_limit']:.0f} % of {row['limit']:.0f}"
            f" ({100 * row['score_rounds']:.0f} % by rounds)" + (verdict and f": {verdict}")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
