"""The one result file: what a row holds, how rows are added, and which rows are the latest."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from siamcuda._files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CSV = ROOT / "bench" / "results.csv"
#: What was measured on a GPU; there is none until that was done.
CUDA_CSV = ROOT / "bench" / "results_cuda.csv"

#: Columns of the CSV. A row is one peer in one case at one setting.
COLUMNS = (
    # when and what
    "date", "commit", "build", "quick",
    # the case
    "suite", "case", "op", "mode", "rows", "columns", "dtype", "device", "threads", "allocator",
    # the peer: "ours", "eager", "compile", "floor", "limit"; and the variant that won
    "peer", "variant",
    # microseconds a call
    "median_us", "p20_us", "p80_us", "rounds", "inner", "clock",
    # this peer against ours: "ratio" is peer / ours, "excess" ours - peer in microseconds;
    # score from the medians, score_rounds the median over rounds
    "compare", "score", "score_rounds", "goal",
    # bytes that the task must move, how fast they moved, and the share of the machine's limit; of
    # the suite "engine" the limit is the FMA peak in GFLOP/s
    "bytes", "gbps", "of_limit", "limit",
    # memory above the inputs in one step, page faults a step, processors at work
    "peak_mib", "faults", "busy",
    # the machine; load is its mean over the last minute
    "load",
    "cpu", "gpu", "cores", "kernel", "thp", "python", "torch", "numpy", "simd", "compiler",
    # of the GPU, beside its name above
    "driver", "cuda",
)  # fmt: skip

#: What makes two rows the same measurement.
KEY = ("suite", "case", "device", "threads", "allocator", "peer")


class BenchError(Exception):
    """A benchmark that can't be run or trusted; the message says why."""


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> str:
    """The short commit, with -dirty when sources differ from it.

    In a tree that git knows nothing of, what SIAMCUDA_COMMIT says, or "none".
    """
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return os.environ.get("SIAMCUDA_COMMIT", "none")[:12]
    # What a benchmark writes itself does not make the sources dirty.
    outputs = (
        ":!bench/results.csv", ":!bench/results_cuda.csv", ":!docs/img", ":!docs/hardware",
        ":!docs/benchmarks.md", ":!docs/recipes", ":!docs/recipes.md", ":!README.md",
    )  # fmt: skip
    changed = _git("status", "--porcelain", "--", ".", *outputs)
    return head + "-dirty" if changed else head


def build_digest() -> str:
    """Eight hex digits of the extension in use, so that two builds of one commit differ."""
    import siamcuda

    return hashlib.sha256(Path(siamcuda._ops.extension.__file__).read_bytes()).hexdigest()[:8]


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']} model {facts.get('model', '?')})"
    return name


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return text.partition("[")[2].partition("]")[0] or "unknown"


@functools.cache
def _driver() -> str:
    """The version of the GPU's driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def environment() -> dict[str, Any]:
    """The columns that describe machine, versions and build."""
    import numpy
    import torch

    import siamcuda

    info = siamcuda.build_info()
    gpu = torch.cuda.is_available()
    return {
        "commit": commit(),
        "build": build_digest(),
        "cpu": cpu(),
        "gpu": torch.cuda.get_device_name() if gpu else "",
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "thp": _huge_pages(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "simd": info["simd"],
        "compiler": info["compiler"],
        "driver": _driver() if gpu else "",
        "cuda": torch.version.cuda if gpu else "",
    }


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(path: Path) -> list[dict[str, str]]:
    """Every row of the file; none if there is no file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"cannot read {path}: {error}") from error
    if rows and not set(KEY) <= rows[0].keys():
        raise BenchError(f"{path} is not a result file: it lacks the columns {', '.join(KEY)}")
    return rows


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows in one step: after an interruption the file holds all of them or none."""
    old = read(path)
    unknown = [name for name in (old[0] if old else {}) if name not in COLUMNS]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*COLUMNS, *unknown], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(old)
    for row in rows:
        strange = row.keys() - set(COLUMNS)
        if strange:
            raise BenchError(f"no such columns: {', '.join(sorted(strange))}")
        writer.writerow({name: _format(value) for name, value in row.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def _format(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def number(row: Mapping[str, str], column: str) -> float | None:
    """The column as a float, None where it is empty."""
    text = row.get(column) or ""
    return float(text) if text else None


def latest(rows: Sequence[dict[str, str]], suite: str | None = None) -> list[dict[str, str]]:
    """The newest measurement of each case with the build that its suite ended with.

    An old figure never stands beside a new one: of a suite one build of the extension is shown.
    """
    chosen = [row for row in rows if suite is None or row["suite"] in (suite, "limits")]
    source = {row["suite"]: row.get("build") for row in chosen}
    newest: dict[tuple[str, ...], dict[str, str]] = {}
    for row in chosen:
        if row.get("build") == source[row["suite"]]:
            key = tuple(row[name] for name in KEY)
            newest.pop(key, None)
            newest[key] = row
    return list(newest.values())
