"""``python -m bench.stream``: a gallery in a .npy file of 10 GiB, searched with bounded memory.

Writes random rows to a folder of its own, drops them from the page cache, reads the file once as
fast as one thread can, and searches it in a process of its own: once from the disk (cold), once
more with what the page cache kept of it (warm). The process's largest resident size, torch
included, is recorded with the seconds; the nearest of some queries are compared with what float64
found while the file was written. The file is gone in the end, also after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import gallery, harness, results
from bench.results import BenchError

SUITE = "stream"
#: Bytes written and read at a time, and those that the disk must keep free.
BLOCK, RESERVE = 1 << 26, 1 << 30
#: Queries whose results are compared.
CHECKED = 8
WORKER = r"""
import json, re, sys, time, numpy, torch, siamcuda
def peak():
    return int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1])
path, queries, k, threads, screening, checked = json.loads(sys.argv[1])
torch.set_num_threads(threads)
queries = torch.from_numpy(numpy.load(queries))
siamcuda.Gallery(torch.randn(512, queries.shape[1]), screening=screening).search(queries, k)
with open("/proc/self/clear_refs", "w") as file:  # the peak starts anew from what is resident
    file.write("5")
seconds = []
for _ in range(2):
    start = time.perf_counter()
    found = siamcuda.Gallery(path, screening=screening).search(queries, k)
    seconds.append(time.perf_counter() - start)
print(json.dumps([seconds, peak() / 1024, found.distances[:checked].tolist()]))
"""


def check_space(folder: Path, size: int) -> None:
    """Raises BenchError if the folder's disk can't hold that many bytes and the reserve."""
    free = shutil.disk_usage(folder).free
    if free < size + RESERVE:
        raise BenchError(
            f"{folder}: {free / 2**30:.1f} GiB are free, {size / 2**30:.1f} for the file and "
            f"{RESERVE / 2**30:.0f} to spare are needed; --folder and --gib choose others"
        )


def write(path: Path, rows: int, queries: Tensor, k: int) -> Tensor:
    """Fills a .npy file with random rows [rows, D]; returns the (Q, k) exact squared distances."""
    columns = queries.shape[1]
    generator = torch.Generator().manual_seed(rows)
    found = torch.empty(len(queries), 0, dtype=torch.float64)
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}
    block = max(1, BLOCK // (4 * columns))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, rows, block):
            part = torch.randn(min(block, rows - first), columns, generator=generator)
            file.write(part.numpy().data)
            best = gallery.exact_nearest(queries, part, min(k, len(part)))
            found = torch.cat([found, best], 1)
            found = found.topk(min(k, found.shape[1]), largest=False).values
        file.flush()
        os.fsync(file.fileno())
    return found


def forget(path: Path) -> None:
    """Drops the file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(path: Path) -> float:
    """Seconds that reading the file takes."""
    buffer = bytearray(BLOCK)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def search(
    path: Path, queries: Path, k: int, threads: int, screening: str
) -> tuple[list[float], float, Tensor]:
    """Seconds cold and warm, peak MiB of the process, and the checked queries' distances."""
    task = json.dumps([str(path), str(queries), k, threads, screening, CHECKED])
    done = subprocess.run(
        [sys.executable, "-c", WORKER, task], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"the search failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    seconds, peak, distances = json.loads(done.stdout)
    return seconds, peak, torch.tensor(distances, dtype=torch.float64)


def measure(
    folder: Path, rows: int, columns: int, count: int, k: int, threads: int,
    modes: Sequence[str], say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of the result file.

    Raises:
        BenchError: the disk is too small, the search fails or finds something else.
    """
    size = 4 * rows * columns
    folder.mkdir(parents=True, exist_ok=True)
    check_space(folder, size)
    found = []
    with tempfile.TemporaryDirectory(prefix="siamcuda-stream-", dir=folder) as own:
        path, asked = Path(own) / "gallery.npy", Path(own) / "queries.npy"
        queries = torch.randn(count, columns, generator=torch.Generator().manual_seed(columns))
        np.save(asked, queries.numpy())
        say(f"writing {size / 2**30:.3g} GiB to {own}")
        exact = write(path, rows, queries[:CHECKED], k)
        forget(path)
        reading = read_through(path)
        say(f"reading it takes {reading:.3g} s, {1e-9 * size / reading:.3g} GB/s")
        for mode in modes:
            forget(path)
            seconds, peak, distances = search(path, asked, k, threads, mode)
            if distances.shape != exact.shape or not distances.allclose(exact, rtol=1e-5):
                raise BenchError(f"{mode}: other distances than a search in float64 finds")
            for cache, taken in zip(("cold", "warm"), seconds, strict=True):
                say(f"{mode}, {cache}: {taken:.3g} s, {1e-9 * size / taken:.3g} GB/s, "
                    f"peak {peak:.0f} MiB")  # fmt: skip
                op = f"stream[{count} queries, k={k}, {cache}]"
                row = {
                    "suite": SUITE, "case": f"{op} {mode} {rows}x{columns}", "op": op,
                    "mode": mode, "rows": rows, "columns": columns, "dtype": "float32",
                    "device": "cpu", "threads": threads, "allocator": "default", "peer": "ours",
                    "variant": "siamcuda", "median_us": 1e6 * taken, "rounds": 1, "inner": 1,
                    "clock": "wall", "bytes": size, "gbps": 1e-9 * size / taken,
                    "peak_mib": peak,
                }  # fmt: skip
                if cache == "cold":
                    row |= {"of_limit": reading / taken, "limit": 1e-9 * size / reading}
                found.append(row)
    return found


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, 2 if it cannot be measured, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bench.stream", description=__doc__)
    parser.add_argument("--gib", type=float, default=10.0, help="size of the file, default 10")
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--screening", choices=gallery.MODES, action="append", help="default: all")
    parser.add_argument(
        "--folder", type=Path, default=results.ROOT / "build" / "bench",
        help="where the file goes for the time being; default build/bench",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=results.DEFAULT_CSV, help="CSV")
    options = parser.parse_args(arguments)
    for name in ("columns", "queries", "k", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    rows = int(options.gib * 2**30) // (4 * options.columns)
    if rows < options.k:
        parser.error(f"--gib {options.gib:g}: must hold at least k = {options.k} rows")
    before = {name: signal.signal(name, _interrupt) for name in (signal.SIGTERM, signal.SIGHUP)}
    try:
        results.read(options.out)  # a broken file is better met now
        found = measure(
            options.folder, rows, options.columns, options.queries, options.k, options.threads,
            options.screening or gallery.screens(), lambda text: print(text, flush=True),
        )  # fmt: skip
        stamp = {"date": results.now(), "quick": 0, "load": harness.load(), **results.environment()}
        results.append(options.out, [stamp | row for row in found])
    except (BenchError, OSError) as error:
        print(f"bench.stream: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench.stream: interrupted; its file is gone", file=sys.stderr)
        return 130
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    return 0


if __name__ == "__main__":
    sys.exit(main())
