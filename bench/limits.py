"""The machine's own limits, measured in the same run as what is held against them.

bench/cpp/bandwidth.cpp is compiled with the system's compiler; where there is none, torch's own
reductions and copies give a lower bound, marked as such by the peer's variant.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import results

SOURCE = Path(__file__).parent / "cpp" / "bandwidth.cpp"
PROGRAM = results.ROOT / "build" / "bench" / "bandwidth"


def _program() -> Path | None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    if PROGRAM.is_file() and PROGRAM.stat().st_mtime >= SOURCE.stat().st_mtime:
        return PROGRAM
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    fresh = PROGRAM.with_suffix(f".{os.getpid()}")
    command = [*compiler.split(), "-std=c++17", "-O2", "-pthread", str(SOURCE), "-o", str(fresh)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"bench: no C++ compiler that works ({error}); limits from torch", file=sys.stderr)
        return None
    fresh.replace(PROGRAM)
    return PROGRAM


def _best(step: Callable[[], object], repetitions: int) -> float:
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times)


def _from_torch(mib: int, repetitions: int) -> dict[str, float]:
    source = torch.ones(mib << 18)
    target = torch.ones_like(source)
    size = 1e-9 * source.numel() * source.element_size()
    copy = 2 * size / _best(lambda: target.copy_(source), repetitions)
    return {
        "read": size / _best(source.sum, repetitions),
        "copy": copy,
        "copy_stream": copy,
        "write_stream": size / _best(lambda: target.fill_(1.0), repetitions),
    }


def measure(threads: int, quick: bool = False) -> tuple[dict[str, float], str]:
    """Limits by name, in GB/s (``fma_gflops`` in GFLOP/s), and where they come from."""
    mib, repetitions = (64, 3) if quick else (128, 9)
    program = _program()
    if program is not None:
        command = [str(program), str(threads), str(mib), str(repetitions)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode == 0:
            return {name: float(value) for name, value in json.loads(done.stdout).items()}, "C++"
        print(f"bench: {done.stderr.strip()}; limits from torch", file=sys.stderr)
    torch.set_num_threads(threads)
    return _from_torch(mib, repetitions), "torch"


def rows(limits: dict[str, float], source: str, threads: int) -> list[dict[str, Any]]:
    """The limits as rows of the result file."""
    return [
        {
            "suite": "limits", "case": name, "op": name, "mode": "limit", "threads": threads,
            "device": "cpu", "allocator": "default", "peer": "limit", "variant": source,
            "gbps": None if name == "fma_gflops" else value,
            "limit": value,
        }
        for name, value in limits.items()
    ]  # fmt: skip
