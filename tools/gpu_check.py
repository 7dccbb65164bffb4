"""What `make gpu-check` runs: the suite, compute-sanitizer and the benchmark on a GPU.

    python tools/gpu_check.py             runs everything and writes docs/hardware/GPU-DATE.json
    python tools/gpu_check.py --steps suite,benchmark    runs these and records the rest as skipped
    python tools/gpu_check.py --readme    makes README's paragraph on hardware from those files
    python tools/gpu_check.py --check     fails if that paragraph is not what they say

Where there is no GPU it says so, writes nothing and exits 0. Otherwise it exits 1 if a step failed
or could not be run; the file is written either way, after every step, and says which.

SIAMCUDA_COMMIT=COMMIT   the commit of a tree that git knows nothing of
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the package need not be installed

from siamcuda._files import write_atomically  # noqa: E402

RESULTS = ROOT / "docs" / "hardware"
README = ROOT / "README.md"
BEGIN, END = "<!-- hardware:begin -->", "<!-- hardware:end -->"
SCHEMA = 1
SUITE = "pytest -m gpu"
BENCHMARK = "bench --device cuda"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
#: Seconds after which the benchmark begins no other case.
BENCHMARK_TIME = 480
#: Seconds after which a step has failed.
LIMITS: dict[str, float] = {SUITE: 1800, BENCHMARK: 900} | dict.fromkeys(SANITIZERS, 900)
NOTHING = (
    "No kernel has run on a GPU yet: the CUDA kernels are compiled for sm_75 to sm_120, their "
    "machine code is checked, and the whole test table runs on them under an emulator. `make "
    "gpu-check` on a machine with a GPU changes this paragraph."
)


class CheckError(Exception):
    """Something that the user has to see to before anything is run."""


@dataclass(frozen=True)
class Step:
    """One command and how it ended; ``detail`` is the end of its output, or why it did not run."""

    name: str
    status: str
    seconds: float
    command: str
    detail: str


# --- running --------------------------------------------------------------------------------------


def run_step(name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> Step:
    print(f"gpu-check: {name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    late = ""
    try:
        output, _ = child.communicate(timeout=LIMITS.get(name))
    except BaseException as error:
        # With all that it started, which would hold the pipe open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        late = f"stopped after its limit of {LIMITS[name]} s\n"
    lines = [line for line in output.splitlines() if line.strip()]
    status = PASSED if child.returncode == 0 and not late else FAILED
    print(f"gpu-check: {name}: {status}", flush=True)
    kept = lines[-1:] if status == PASSED else lines[-30:]
    if name == BENCHMARK:
        kept = lines[-200:]  # the table of results
    shown = " ".join(Path(part).name if part == sys.executable else part for part in command)
    seconds = round(time.monotonic() - start, 1)
    return Step(name, status, seconds, shown, late + "\n".join(kept))


def find_sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    folders = [os.environ.get("PATH", ""), f"{home}/bin", f"{home}/compute-sanitizer"]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def suite() -> Iterator[Step]:
    # Exit status 5 of pytest, "nothing was collected", counts as a failure here, as it should.
    command = [sys.executable, "-m", "pytest", "-m", "gpu"]
    if importlib.util.find_spec("xdist") is not None:
        # By file: the tests that fill the GPU's memory are in one, and so never side by side.
        command += ["-n", str(min(os.cpu_count() or 1, 8)), "--dist", "loadfile"]
    yield run_step(SUITE, command)


def sanitizers() -> Iterator[Step]:
    tool = find_sanitizer()
    if tool is None:
        reason = "compute-sanitizer was not found: set CUDA_HOME"
        yield from (Step(name, SKIPPED, 0.0, "", reason) for name in SANITIZERS)
        return
    # Without torch's caching allocator an access behind a tensor is an access behind its memory.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    driver = [sys.executable, "tools/gpu_driver.py"]

    def run(name: str) -> Step:
        command = [tool, "--tool", name, "--error-exitcode", "9", *driver]
        return run_step(name, command, environment)

    # Side by side: they time nothing.
    with ThreadPoolExecutor(len(SANITIZERS)) as pool:
        for done in as_completed([pool.submit(run, name) for name in SANITIZERS]):
            yield done.result()


def benchmark() -> Iterator[Step]:
    """Into bench/results_cuda.csv; the table of results is kept whole in the record, too."""
    command = [sys.executable, "-m", "bench", "--device", "cuda"]
    command += ["--time-limit", str(BENCHMARK_TIME)]
    yield run_step(BENCHMARK, command)


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def describe_machine() -> dict[str, Any] | None:
    """The GPU and what runs on it; None where there is no GPU.

    Raises:
        CheckError: there is a GPU, but the installed siamcuda has no kernels for it.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    import siamcuda

    built = siamcuda.build_info()
    if not built["cuda"]:
        raise CheckError(
            "a GPU is here, but siamcuda was built without CUDA: SIAMCUDA_CUDA=1 make build"
        )
    query = "--query-gpu=driver_version", "--format=csv,noheader"
    major, minor = torch.cuda.get_device_capability()
    # What the benchmark writes does not change what is measured.
    changes = "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results_cuda.csv"
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "driver": (_output("nvidia-smi", *query).splitlines() or ["unknown"])[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "siamcuda": built["version"],
        "cuda_architectures": built["cuda_architectures"],
        "commit": _output("git", "rev-parse", "HEAD")
        or os.environ.get("SIAMCUDA_COMMIT")
        or "unknown",
        "modified": bool(_output("git", *changes)),
    }


def file_name(gpu: str, date: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + f"-{date}.json"


#: The parts of a run, and the names of the steps that each makes.
STEPS: dict[str, tuple[Callable[[], Iterable[Step]], tuple[str, ...]]] = {
    "suite": (suite, (SUITE,)),
    "sanitizers": (sanitizers, SANITIZERS),
    "benchmark": (benchmark, (BENCHMARK,)),
}


def earlier_steps(path: Path, date: str, machine: dict[str, Any]) -> dict[str, Step]:
    """What an earlier run of this day found in the same clean tree on the same machine."""
    if machine["modified"] or not path.is_file():
        return {}
    record = json.loads(path.read_text())
    if {**record, "steps": []} != {"schema": SCHEMA, "date": date, **machine, "steps": []}:
        return {}
    return {step["name"]: Step(**step) for step in record["steps"]}


def check_gpu(results: Path, parts: Sequence[str]) -> int:
    machine = describe_machine()
    if machine is None:
        print("no GPU: nothing was run")
        return 0
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    path = results / file_name(machine["gpu"], date)
    results.mkdir(parents=True, exist_ok=True)
    before = earlier_steps(path, date, machine)
    steps = {}
    for part, (_, names) in STEPS.items():
        for name in names:
            reason = "the run was cut off before it ended" if part in parts else "not asked for"
            steps[name] = Step(name, SKIPPED, 0.0, "", reason)
            if part not in parts:
                steps[name] = before.get(name, steps[name])

    def write() -> None:
        done = [asdict(step) for step in steps.values()]
        record = {"schema": SCHEMA, "date": date, **machine, "steps": done}
        write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())

    write()
    for part in parts:
        for step in STEPS[part][0]():
            steps[step.name] = step
            write()
    print(f"gpu-check: wrote {path}")
    print("gpu-check: commit it, and README.md after `python tools/gpu_check.py --readme`")
    return 0 if all(step.status == PASSED for step in steps.values()) else 1


# --- README ---------------------------------------------------------------------------------------


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The newest result of each GPU, by name.

    Raises:
        CheckError: a file is not a result of this tool.
    """
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text())
            if record["schema"] != SCHEMA:
                raise ValueError(f"schema {record['schema']}, expected {SCHEMA}")
            for step in record["steps"]:
                if step["status"] not in (PASSED, FAILED, SKIPPED):
                    raise ValueError(f"unknown status {step['status']!r}")
                str(step["name"])
            datetime.date.fromisoformat(record["date"])
            name, _ = str(record["gpu"]), str(record["commit"])
            str(record["capability"]), str(record["driver"]), bool(record["modified"])
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise CheckError(f"{path}: not a result of gpu-check: {error!r}") from error
        if name not in newest or newest[name]["date"] <= record["date"]:
            newest[name] = record
    return [newest[name] for name in sorted(newest)]


def paragraph(results: Sequence[dict[str, Any]]) -> str:
    """What has run on hardware, in words that claim no more than the files do."""
    if not results:
        return NOTHING
    lines = ["What has run on a GPU (`make gpu-check`, full results in docs/hardware):", ""]
    for record in results:
        by_status: dict[str, list[str]] = {}
        for step in record["steps"]:
            by_status.setdefault(step["status"], []).append(step["name"])
        said = [
            f"{status}: {', '.join(by_status[status])}"
            for status in (PASSED, FAILED, SKIPPED)
            if status in by_status
        ]
        commit = record["commit"][:10] + (" with local changes" if record["modified"] else "")
        lines.append(
            f"- {record['gpu']} (compute capability {record['capability']}, driver "
            f"{record['driver']}), {record['date']}, commit {commit}. "
            f"{'; '.join(said) or 'Nothing ran'}."
        )
    return "\n".join(lines)


def updated(readme: str, text: str) -> str:
    """README with the paragraph between the markers replaced.

    Raises:
        CheckError: the markers are missing, doubled or the wrong way round.
    """
    if (
        readme.count(BEGIN) != 1
        or readme.count(END) != 1
        or readme.index(BEGIN) > readme.index(END)
    ):
        raise CheckError(f"README.md must hold {BEGIN} and behind it {END}, each once")
    head, rest = readme.split(BEGIN)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if a step failed or README is stale, 2 if nothing could be done as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--readme", action="store_true", help="rewrite README's paragraph")
    mode.add_argument("--check", action="store_true", help="fail if README's paragraph is stale")
    parser.add_argument(
        "--steps", default=",".join(STEPS), metavar="NAME,NAME", help="default: %(default)s"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, default=README, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if not (options.readme or options.check):
            parts = options.steps.split(",")
            strange = [part for part in parts if part not in STEPS]
            if strange:
                raise CheckError(f"--steps: {strange[0]!r} is not one of {', '.join(STEPS)}")
            return check_gpu(options.results, parts)
        before = options.file.read_text()
        after = updated(before, paragraph(read_results(options.results)))
        if before == after:
            return 0
        if options.check:
            print("README.md is stale: run python tools/gpu_check.py --readme", file=sys.stderr)
            return 1
        write_atomically(options.file, after.encode())
        return 0
    except (CheckError, OSError) as error:
        print(f"gpu-check: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
