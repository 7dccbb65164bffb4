"""``python -m bench``: measures, appends to the CSV, prints what was met and missed."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import gpu, harness, limits, results, table
from bench.results import BenchError

#: Modules of this package with ``cases(quick)``.
SUITES = ("paired", "batch", "gallery", "verification", "training")
#: Those with ``cuda_cases(quick)``. The losses over a batch come first: a GPU's time may end early.
CUDA_SUITES = ("batch", "paired")
QUICK_CSV = results.ROOT / "build" / "bench" / "quick.csv"
QUICK_CUDA_CSV = results.ROOT / "build" / "bench" / "quick_cuda.csv"
#: Seconds that a case may still take when the time limit is over.
GRACE = 90.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Benchmarks: peers side by side, checked, then timed."
    )
    parser.add_argument("--suite", choices=SUITES, action="append", help="default: all")
    parser.add_argument("--quick", action="store_true", help="a sample in about a minute")
    parser.add_argument(
        "--out",
        type=Path,
        help="CSV; default bench/results.csv or results_cuda.csv, --quick: build/bench/quick*.csv",
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
        "--device", choices=("cpu", "cuda"), default="cpu",
        help="cuda: cases of its own, one thread, one allocator",
    )  # fmt: skip
    parser.add_argument(
        "--time-limit", type=float, default=math.inf, metavar="SECONDS",
        help="begin no case after it, name those left out and exit with 0",
    )  # fmt: skip
    parser.add_argument("--worker", metavar="JSON", help=argparse.SUPPRESS)
    return parser


def _cases(suites: Sequence[str], quick: bool, only: str, device: str) -> list[harness.Case]:
    chosen = []
    for name in suites:
        module = importlib.import_module(f"bench.{name}")
        make = module.cuda_cases if device == "cuda" else module.cases
        chosen += [case for case in make(quick) if re.search(only, case.name)]
    return chosen


def _limits(task: dict[str, Any], path: Path) -> dict[str, float]:
    """What the machine can do, written to the CSV; a GPU's are measured once in a run."""
    threads, quick = task["threads"], task["quick"]
    if harness.device == "cpu":
        found, source = limits.measure(threads, quick)
    elif task["begun"]:
        return {}
    else:
        found, source = gpu.limits(quick=quick), "torch"
    stamp = {"date": results.now(), "quick": int(quick), "load": harness.load()}
    stamp |= results.environment()
    rows = limits.rows(found, source, threads, harness.device)
    results.append(path, [stamp | row for row in rows])
    if harness.device == "cuda":
        print(", ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
        if "copy" in found:  # a share of it is what is told; reads alone are not measured
            found |= dict.fromkeys(("read", "copy_stream", "write_stream"), found["copy"])
    return found


def _worker(job: str) -> int:
    task = json.loads(job)
    path, threads, quick = Path(task["out"]), task["threads"], task["quick"]
    harness.device = task["device"]
    found = _limits(task, path)
    cases = _cases(task["suites"], quick, task["only"], harness.device)
    diary = Path(task["diary"])

    def attempt(case: harness.Case) -> bool:
        """False for a case that an earlier worker began; it is written down before it begins."""
        if case.name in task["begun"]:
            return False
        with diary.open("a", encoding="utf-8") as file:
            file.write(case.name + "\n")
        return True

    return harness.run_cases(
        cases, task["allocator"], threads, path, quick=quick, resume=task["resume"], limits=found,
        clock=task["clock"], progress=lambda text: print(text, flush=True),
        deadline=task["deadline"] or math.inf, attempt=attempt,
    )  # fmt: skip


def _run_worker(job: dict[str, Any], environment: dict[str, str]) -> bool:
    """Runs the job; a worker that an error of a GPU or a signal ends is followed by another.

    Returns:
        Whether every case was measured that was begun.
    """
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        diary = Path(folder) / "begun"
        diary.touch()
        while True:
            begun = diary.read_text(encoding="utf-8").splitlines()
            task = job | {"diary": str(diary), "begun": begun}
            command = [sys.executable, "-m", "bench", "--worker", json.dumps(task)]
            limit = job["deadline"] and max(1.0, job["deadline"] + GRACE - time.time())
            try:
                status = subprocess.run(
                    command, env=environment, cwd=results.ROOT, timeout=limit
                ).returncode
            except subprocess.TimeoutExpired:
                print(f"bench: stopped {GRACE:g} s after the time limit", file=sys.stderr)
                return False
            failed |= status != 0
            more = diary.read_text(encoding="utf-8").splitlines() != begun
            if status in (0, 1, 2, 130) or job["device"] == "cpu" or not more:
                return not failed
            print(f"bench: a worker ended with status {status}; the next goes on", file=sys.stderr)


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


def _in_time(options: argparse.Namespace) -> float | None:
    """The time of time.time() after which no case is begun; None for no limit."""
    if not options.time_limit > 0:
        raise BenchError(f"--time-limit {options.time_limit:g}: must be above 0")
    return None if math.isinf(options.time_limit) else time.time() + options.time_limit


def _check_cuda(options: argparse.Namespace) -> None:
    """What a GPU leaves no choice of, or why there is nothing to measure."""
    import siamcuda

    if not torch.cuda.is_available():
        raise BenchError("--device cuda: torch finds no GPU")
    if not siamcuda.build_info()["cuda"]:
        raise BenchError("--device cuda: siamcuda was built without CUDA")
    strange = set(options.suite or ()) - set(CUDA_SUITES)
    if strange:
        raise BenchError(f"--suite {min(strange)}: has no cases for --device cuda")
    if options.threads or options.allocators or options.clock != "wall":
        raise BenchError("--device cuda goes without --threads, --allocators and --clock")
    options.threads, options.allocators = "1", "default"


def _parent(options: argparse.Namespace) -> int:
    deadline = _in_time(options)
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
    suites = options.suite or list(SUITES if options.device == "cpu" else CUDA_SUITES)
    defaults = {
        "cpu": (results.DEFAULT_CSV, QUICK_CSV), "cuda": (results.CUDA_CSV, QUICK_CUDA_CSV)
    }  # fmt: skip
    path = (options.out or defaults[options.device][options.quick]).resolve()
    results.read(path)  # a broken file is better met now than after an hour
    if not _cases(suites, options.quick, options.only, options.device):
        raise BenchError(f"--only {options.only}: no case has such a name")

    failed = False
    for count in threads:
        for allocator in allocators:
            job = {
                "suites": suites, "quick": options.quick, "only": options.only, "out": str(path),
                "threads": int(count), "allocator": allocator, "resume": options.resume,
                "clock": options.clock, "device": options.device, "deadline": deadline,
            }  # fmt: skip
            # Every library shall choose for itself; bench/faiss_setting.py chooses for faiss.
            environment = {
                key: value for key, value in os.environ.items()
                if not key.startswith("MALLOC_") and key != "OPENBLAS_CORETYPE"
            }  # fmt: skip
            environment |= harness.ALLOCATORS[allocator]
            failed |= not _run_worker(job, environment)
    rows = results.latest(results.read(path))
    print()
    print(table.terminal(rows))
    print(f"\n{path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
