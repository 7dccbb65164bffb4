"""``python -m bench``: measures, appends to the CSV, prints what was met and missed."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import harness, limits, results, table
from bench.results import BenchError

#: Modules of this package with ``cases(quick)``.
SUITES = ("paired", "batch")
QUICK_CSV = results.ROOT / "build" / "bench" / "quick.csv"
CUDA_CSV = results.ROOT / "build" / "bench" / "cuda.csv"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Benchmarks: peers side by side, checked, then timed."
    )
    parser.add_argument("--suite", choices=SUITES, action="append", help="default: all")
    parser.add_argument("--quick", action="store_true", help="a sample in about a minute")
    parser.add_argument(
        "--out", type=Path, help="CSV; default bench/results.csv, --quick: build/bench/quick.csv"
    )
    parser.add_argument(
        "--resume", action="store_true", help="skip what this commit and build already have"
    )
    parser.add_argument(
        "--clock", choices=list(harness.CLOCKS), default="wall",
        help="cpu: time on the processor, for one thread on a busy machine",
    )  # fmt: skip
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--threads", metavar="N,N", help="default 1,2; --quick: 1")
    parser.add_argument("--allocators", metavar="NAME,NAME", help="default: default,warm")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: one thread, one allocator"
    )
    parser.add_argument("--worker", metavar="JSON", help=argparse.SUPPRESS)
    return parser


def _cases(suites: Sequence[str], quick: bool, only: str) -> list[harness.Case]:
    chosen = []
    for name in suites:
        module = importlib.import_module(f"bench.{name}")
        chosen += [case for case in module.cases(quick) if re.search(only, case.name)]
    return chosen


def _worker(job: str) -> int:
    task = json.loads(job)
    path, threads, quick = Path(task["out"]), task["threads"], task["quick"]
    harness.device = task["device"]
    found: dict[str, float] = {}
    if harness.device == "cpu":  # no limit of a GPU is measured yet
        found, source = limits.measure(threads, quick)
        stamp = {"date": results.now(), "quick": int(quick), "load": harness.load()}
        stamp |= results.environment()
        results.append(path, [stamp | row for row in limits.rows(found, source, threads)])
    cases = _cases(task["suites"], quick, task["only"])
    return harness.run_cases(
        cases, task["allocator"], threads, path, quick=quick, resume=task["resume"], limits=found,
        clock=task["clock"],
        progress=lambda text: print(text, flush=True),
    )  # fmt: skip


def _split(text: str, allowed: Sequence[str], option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    strange = [name for name in names if name not in allowed]
    if strange:
        raise BenchError(f"{option}: {strange[0]!r} is not one of {', '.join(allowed)}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if a case failed, 2 if it cannot be done as asked, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    try:
        if options.worker:
            return 1 if _worker(options.worker) else 0
        return _parent(options)
    except BenchError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted; --resume goes on from here", file=sys.stderr)
        return 130


def _check_cuda(options: argparse.Namespace) -> None:
    """What a GPU leaves no choice of, or why there is nothing to measure."""
    import siamcuda

    if not torch.cuda.is_available():
        raise BenchError("--device cuda: torch finds no GPU")
    if not siamcuda.build_info()["cuda"]:
        raise BenchError("--device cuda: siamcuda was built without CUDA")
    if options.threads or options.allocators or options.clock != "wall":
        raise BenchError("--device cuda goes without --threads, --allocators and --clock")
    options.threads, options.allocators = "1", "default"


def _parent(options: argparse.Namespace) -> int:
    if options.device == "cuda":
        _check_cuda(options)
    cores = os.cpu_count() or 1
    counts = [str(n) for n in range(1, cores + 1)]
    default_threads = "1" if options.quick or cores == 1 else "1,2"
    threads = _split(options.threads or default_threads, counts, "--threads")
    allocators = _split(
        options.allocators or ",".join(harness.ALLOCATORS), list(harness.ALLOCATORS), "--allocators"
    )
    try:
        re.compile(options.only)
    except re.error as error:
        raise BenchError(f"--only: {error}") from error
    suites = options.suite or list(SUITES)
    default = QUICK_CSV if options.quick else results.DEFAULT_CSV
    path = (options.out or (CUDA_CSV if options.device == "cuda" else default)).resolve()
    results.read(path)  # a broken file is better met now than after an hour
    if not _cases(suites, options.quick, options.only):
        raise BenchError(f"--only {options.only}: no case has such a name")

    failed = False
    for count in threads:
        for allocator in allocators:
            job = {
                "suites": suites, "quick": options.quick, "only": options.only, "out": str(path),
                "threads": int(count), "allocator": allocator, "resume": options.resume,
                "clock": options.clock, "device": options.device,
            }  # fmt: skip
            environment = {
                key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")
            }
            environment |= harness.ALLOCATORS[allocator]
            command = [sys.executable, "-m", "bench", "--worker", json.dumps(job)]
            failed |= bool(subprocess.run(command, env=environment, cwd=results.ROOT).returncode)
    rows = results.latest(results.read(path))
    print()
    print(table.terminal(rows))
    print(f"\n{path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
