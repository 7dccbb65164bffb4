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
from bench.results import BenchError

PROGRAMS = Path(__file__).parent / "cpp"
BUILD = results.ROOT / "build" / "bench"


def compiler() -> list[str] | None:
    """The system's C++ compiler as the start of a command, None where there is none."""
    found = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    return found.split() if found else None


def program(name: str, *flags: str, headers: Path | None = None) -> Path:
    """bench/cpp/NAME.cpp, compiled unless that was done since a source or header changed."""
    command = compiler()
    if command is None:
        raise BenchError("no C++ compiler")
    target = BUILD / name
    sources = [*PROGRAMS.iterdir(), *(headers.rglob("*") if headers else ())]
    newest = max(path.stat().st_mtime for path in sources if path.is_file())
    if target.is_file() and target.stat().st_mtime >= newest:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(f".{os.getpid()}")
    command += ["-std=c++17", "-O2", "-pthread", *flags]
    command += ["-I", str(headers)] if headers else []
    command += [str(PROGRAMS / f"{name}.cpp"), "-o", str(fresh)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{name}.cpp does not compile: {error.stderr.strip()}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(f"no C++ compiler that works ({error})") from error
    fresh.replace(target)
    return target


def run(path: Path, *arguments: object) -> dict[str, Any]:
    """The JSON object that a program prints."""
    command = [str(path), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    except subprocess.CalledProcessError as error:
        raise BenchError(error.stderr.strip() or str(error)) from error
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(f"{path.name} does not run: {error}") from error
    found: dict[str, Any] = json.loads(done.stdout)
    return found


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
    try:
        found = run(program("bandwidth"), threads, mib, repetitions)
        return {name: float(value) for name, value in found.items()}, "C++"
    except BenchError as error:
        print(f"bench: {error}; limits from torch", file=sys.stderr)
    torch.set_num_threads(threads)
    return _from_torch(mib, repetitions), "torch"


def rows(
    limits: dict[str, float], source: str, threads: int, device: str = "cpu"
) -> list[dict[str, Any]]:
    """The limits as rows of the result file."""
    return [
        {
            "suite": "limits", "case": name, "op": name, "mode": "limit", "threads": threads,
            "device": device, "allocator": "default", "peer": "limit", "variant": source,
            "gbps": None if "flops" in name else value,
            "limit": value,
        }
        for name, value in limits.items()
    ]  # fmt: skip
