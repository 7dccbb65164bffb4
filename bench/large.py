"""``python -m bench.large``: each loss over a batch of 65,536 rows, once, in a process of its own.

A matrix of its distances would be 16 GiB, and others need several. Reports the seconds of one
forward and backward and the memory above inputs and gradient, as the growth of the process's
largest resident size; appends to the CSV.

``--device cuda``: the median of three steps after one that is not counted, all in this process, and
the growth of torch.cuda's peak of allocated memory.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import harness, results
from bench.results import BenchError

SUITE = "large"
COLUMNS = 128
GPU_STEPS = 3
LOSSES = {
    "batch_contrastive_loss": ("batch_contrastive_loss", {}),
    "batch_chopra_loss": ("batch_chopra_loss", {}),
    "batch_chopra_loss[l1]": ("batch_chopra_loss", {"energy": "l1"}),
    "batch_triplet_loss[hard]": ("batch_triplet_loss", {"mining": "hard"}),
    "batch_triplet_loss[easy_positive]": ("batch_triplet_loss", {"mining": "easy_positive"}),
    "batch_triplet_loss[semihard]": ("batch_triplet_loss", {"mining": "semihard"}),
    "batch_triplet_loss[all]": ("batch_triplet_loss", {"mining": "all"}),
}
WORKER = r"""
import json, re, sys, time, torch, siamcuda
def peak():
    return int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1])
name, options, rows, columns, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
function = getattr(siamcuda, name)
torch.manual_seed(0)
x = torch.nn.functional.normalize(torch.randn(rows, columns)).requires_grad_()
y = torch.arange(rows) // 8
small = torch.randn(256, columns, requires_grad=True)
function(small, y[:256], **options).backward()  # threads and code are there
with open("/proc/self/clear_refs", "w") as file:  # the peak starts anew from what is resident
    file.write("5")
before = peak()
start = time.perf_counter()
loss = function(x, y, **options)
loss.backward()
seconds = time.perf_counter() - start
after = peak()
gradient = x.grad.nbytes / 2**20
print(json.dumps([float(loss), seconds, (after - before) / 1024 - gradient]))
"""


def measure(
    name: str, options: dict[str, Any], rows: int, columns: int, threads: int
) -> tuple[float, float, float]:
    """Loss, seconds, and MiB beyond inputs and gradient, of one step in a process of its own."""
    task = json.dumps([name, options, rows, columns, threads])
    done = subprocess.run(
        [sys.executable, "-c", WORKER, task], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"{name} failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    loss, seconds, extra = json.loads(done.stdout)
    return loss, seconds, extra


def measure_on_gpu(
    name: str, options: dict[str, Any], rows: int, device: str = "cuda"
) -> tuple[float, float, float]:
    """As measure(), on the GPU.

    Raises:
        BenchError: the loss failed, whatever the reason.
    """
    import torch

    import siamcuda

    function = getattr(siamcuda, name)
    try:
        generator = torch.Generator().manual_seed(0)
        x = torch.nn.functional.normalize(torch.randn(rows, COLUMNS, generator=generator))
        x = x.to(device).requires_grad_()
        labels = (torch.arange(rows) // 8).to(device)
        seconds = []
        peaks = []
        for _ in range(1 + GPU_STEPS):
            x.grad = None
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            loss = function(x, labels, **options)
            loss.backward()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            peaks.append((torch.cuda.max_memory_allocated() - before) / 2**20)
            value = loss.item()
            del loss
        assert x.grad is not None
        if not (math.isfinite(value) and bool(x.grad.isfinite().all())):
            raise BenchError(f"{name}: loss {value}, or a gradient that is not finite")
        gradient = x.grad.nbytes / 2**20
        return value, statistics.median(seconds[1:]), max(peaks[1:]) - gradient
    except BenchError:
        raise
    except Exception as error:
        raise BenchError(f"{name} failed: {harness.first_line(error)}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every loss once; returns 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="default bench/results.csv or results_cuda.csv")
    options = parser.parse_args(arguments)
    gpu = options.device == "cuda"
    if gpu:
        options.threads = 1
    path = options.out or (results.CUDA_CSV if gpu else results.DEFAULT_CSV)
    rounds = GPU_STEPS if gpu else 1
    failures = 0
    for title, (name, keywords) in LOSSES.items():
        try:
            if gpu:
                loss, seconds, extra = measure_on_gpu(name, keywords, options.rows)
            else:
                loss, seconds, extra = measure(
                    name, keywords, options.rows, COLUMNS, options.threads
                )
        except BenchError as error:
            failures += 1
            print(error, flush=True)
            continue
        found = f"{seconds:.3g} s, {extra:.0f} MiB, loss {loss:g}"
        print(f"{title} {options.rows}x{COLUMNS}: {found}", flush=True)
        row = {
            "suite": SUITE, "case": f"{title} autograd {options.rows}x{COLUMNS}", "op": title,
            "mode": "autograd", "rows": options.rows, "columns": COLUMNS, "dtype": "float32",
            "device": options.device, "threads": options.threads, "allocator": "default",
            "peer": "ours", "variant": "siamcuda", "median_us": 1e6 * seconds, "rounds": rounds,
            "inner": 1, "clock": "wall", "peak_mib": extra,
        }  # fmt: skip
        stamp = {"date": results.now(), "quick": 0, "load": harness.load(), **results.environment()}
        results.append(path, [stamp | row])
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
