"""``python -m bench.large``: each loss over a batch of 65,536 rows, once, in a process of its own.

A matrix of its distances would be 16 GiB, and others need several. Reports the seconds of one
forward and backward and the memory above inputs and gradient, as the growth of the process's
largest resident size; appends to the CSV.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import harness, results
from bench.results import BenchError

SUITE = "large"
COLUMNS = 128
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every loss once; returns 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=results.DEFAULT_CSV)
    options = parser.parse_args(arguments)
    failures = 0
    for title, (name, keywords) in LOSSES.items():
        try:
            loss, seconds, extra = measure(name, keywords, options.rows, COLUMNS, options.threads)
        except BenchError as error:
            failures += 1
            print(error)
            continue
        print(f"{title} {options.rows}x{COLUMNS}: {seconds:.2f} s, {extra:.0f} MiB, loss {loss:g}")
        row = {
            "suite": SUITE, "case": f"{title} autograd {options.rows}x{COLUMNS}", "op": title,
            "mode": "autograd", "rows": options.rows, "columns": COLUMNS, "dtype": "float32",
            "device": "cpu", "threads": options.threads, "allocator": "default", "peer": "ours",
            "variant": "siamcuda", "median_us": 1e6 * seconds, "rounds": 1, "inner": 1,
            "clock": "wall", "peak_mib": extra,
        }  # fmt: skip
        stamp = {"date": results.now(), "quick": 0, "load": harness.load(), **results.environment()}
        results.append(options.out, [stamp | row])
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
