"""Measures peers against each other: checked first, then timed in turn, in one process.

A *case* is one task at one size. Its *peers* do the same task: ours, plain PyTorch, torch.compile,
or a floor. Peers of one family are variants of one idea (three ways to write a loss in eager
PyTorch); the fastest one stands for the family. Before anything is timed, every peer's results are
compared with a float64 reference. Then each round runs every peer once, in an order that rotates,
so that a slow moment of the machine meets them all. Times are medians over rounds; a ratio is given
both of medians and as the median of the rounds' ratios.

What must be set before a process starts (the allocator) or before torch compiles (threads) gets a
worker process of its own: see SETTINGS.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench import gpu, results
from bench.results import BenchError

#: Where tensors live and steps run: "cpu" or "cuda". A worker measures on one device.
device = "cpu"


def place(tensor: Tensor) -> Tensor:
    """The tensor where steps run."""
    return tensor.to(device)


def own_leaf(leaf: Tensor) -> Tensor:
    """The leaf for one peer. On a GPU it is the peer's alone, with the same values in memory: what
    a library keeps of its last step ties the leaf to a stream, and no graph can be captured then.
    """
    return leaf if device == "cpu" else leaf.detach().requires_grad_()


#: The exit status of a worker whose GPU an error has taken: the next one goes on without the case.
POISONED = 3

_Found = TypeVar("_Found")

#: Environment of a worker process per allocator setting. "warm" keeps freed memory in the process,
#: as a long-running server or a user who set these variables has it; "default" is glibc's choice,
#: which gives blocks above 32 MiB back at once and so faults every page of a fresh gradient anew.
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "warm": {
        "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
    },
}


@dataclass(frozen=True)
class Goal:
    """What our time should be against a family of peers."""

    peer: str
    value: float
    #: "ratio": peer / ours at least value; "excess": ours - peer at most value microseconds.
    compare: str = "ratio"
    #: Allocator settings that the goal is set for.
    allocators: tuple[str, ...] = ("default", "warm")

    def met(self, score: float) -> bool:
        return score >= self.value if self.compare == "ratio" else score <= self.value


@dataclass(frozen=True)
class Peer:
    """One way to do the task."""

    family: str
    variant: str
    #: One step. What it returns is dropped before the next step.
    step: Callable[[], object]
    #: The tensors that a step made, to be checked; None for a floor, which computes nothing.
    outputs: Callable[[], Sequence[Tensor]] | None
    #: Drops what a step leaves behind (gradients of the leaves), so that its memory can be seen.
    clean: Callable[[], object] = lambda: None
    #: Bytes that it has to read where those are not the case's: its rows are of another type.
    reads: int = 0


@dataclass(frozen=True)
class Task:
    """A case with its inputs in memory."""

    peers: Sequence[Peer]
    #: Exact results, in float64, in the order of the peers' outputs.
    expected: Callable[[], Sequence[Tensor]]
    rtol: float = 1e-4
    #: Relative to the largest element of each expected tensor.
    atol: float = 1e-4
    #: The share of elements that may differ where a loss chooses a row: two that are equally far
    #: within float32's rounding are chosen either way.
    stray: float = 0.0


@dataclass(frozen=True)
class Case:
    """One task at one size; `make` is called in the process that measures."""

    suite: str
    op: str
    mode: str
    rows: int
    columns: int
    make: Callable[[], Task]
    goals: tuple[Goal, ...] = ()
    allocators: tuple[str, ...] = ("default", "warm")
    dtype: str = "float32"
    #: Bytes that the task has to read and to write, if memory is its floor.
    reads: int = 0
    writes: int = 0
    #: Operations that the task takes in float32, if the peak of multiply-adds is its floor.
    flops: int = 0
    #: The share of the floor's speed that ours should reach; such a floor gets a row of its own.
    limit_goal: float | None = None
    #: Rounds where they differ from the effort's: steps that take long need fewer.
    rounds: int | None = None
    #: On a GPU: also measure the step as a captured CUDA graph.
    graph: bool = False

    @property
    def name(self) -> str:
        return f"{self.op} {self.mode} {self.rows}x{self.columns}"


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int = 31
    #: Seconds that a peer runs in each round, at least one step.
    slice: float = 0.01
    #: Rounds that choose the best variant of each family.
    heats: int = 5
    #: A key of CLOCKS.
    clock: str = "wall"


#: "cpu" is the time that the process was running: for one thread on a machine that is busy with
#: other things. With more threads it would add them up.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

QUICK = Effort(rounds=5, slice=0.002, heats=2)
FULL = Effort()
#: On a GPU, where a step waits for nobody else and time is short.
CUDA = Effort(rounds=15, slice=0.005, heats=3)


@dataclass
class Timing:
    """Seconds a step, one entry per round."""

    peer: Peer
    inner: int
    seconds: list[float] = field(default_factory=list)
    faults: float = 0.0
    #: Processors at work, the mean over rounds.
    busy: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def quantile(self, q: float) -> float:
        ordered = sorted(self.seconds)
        at = q * (len(ordered) - 1)
        low = math.floor(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (at - low) * (ordered[high] - ordered[low])


# --- correctness first ----------------------------------------------------------------------------


class PeerError(Exception):
    """A peer that ran before failed while it was measured."""

    def __init__(self, peer: Peer, cause: Exception) -> None:
        super().__init__(f"{peer.family} ({peer.variant}): {first_line(cause)}")
        self.peer = peer


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def left_out(name: str, error: BaseException) -> None:
    """Says it, and gives back what the failure may still hold of a GPU."""
    print(f"    left out: {name}: {first_line(error)}", file=sys.stderr, flush=True)


def release() -> None:
    """Frees what nothing refers to any more, a GPU's cached blocks included."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def exact(task: Task) -> list[Tensor]:
    return [tensor.detach().double() for tensor in task.expected()]


def check(task: Task, expected: list[Tensor] | None = None) -> list[Peer]:
    """The peers that run, each with the right results; a peer that can't run is left out.

    On a GPU so is one with wrong results, which is said: a lease is too short to begin again.

    Raises:
        BenchError: a peer gives a wrong result, or ours does not run.
    """
    if expected is None:
        expected = exact(task)
    sound = []
    for peer in task.peers:
        name = f"{peer.family} ({peer.variant})"
        try:
            peer.step()
            outputs = None if peer.outputs is None else [t.detach() for t in peer.outputs()]
        except Exception as error:
            if peer.family == "ours":
                raise BenchError(f"{name} does not run: {error}") from error
            left_out(name, error)
            outputs = None
        else:
            try:
                if outputs is not None:
                    _compare(name, outputs, expected, task)
            except BenchError as error:
                if peer.family == "ours" or device == "cpu":
                    raise
                left_out(name, error)
            else:
                sound.append(peer)
                continue
        peer.clean()
        release()
    return sound


def _compare(name: str, outputs: list[Tensor], expected: list[Tensor], task: Task) -> None:
    if len(outputs) != len(expected):
        raise BenchError(f"{name} gives {len(outputs)} results, expected {len(expected)}")
    for i, (output, exact) in enumerate(zip(outputs, expected, strict=True)):
        if output.shape != exact.shape:
            raise BenchError(
                f"{name}: result {i} has shape {tuple(output.shape)}, expected {tuple(exact.shape)}"
            )
        scale = float(exact.abs().max()) if exact.numel() else 0.0
        error = (output.double() - exact).abs()
        wrong = ~(error <= task.atol * scale + task.rtol * exact.abs())
        few = int(wrong.sum()) <= task.stray * exact.numel() and bool(output.isfinite().all())
        if bool(wrong.any()) and not few:
            raise BenchError(
                f"{name}: result {i} is wrong in {int(wrong.sum())} of {exact.numel()} elements, "
                f"largest error {float(error.nan_to_num(math.inf).max()):.3g} at scale {scale:.3g}"
            )


# --- timing ---------------------------------------------------------------------------------------


def synchronize() -> None:
    """Waits for the device: a CUDA step only enqueues its kernels."""
    if device == "cuda":
        torch.cuda.synchronize()


def _run(
    step: Callable[[], object], inner: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    synchronize()
    start = clock()
    for _ in itertools.repeat(None, inner):
        step()
    synchronize()
    return (clock() - start) / inner


def calibrate(peer: Peer, seconds: float) -> int:
    """How many steps fill that many seconds."""
    inner = 1
    while True:
        taken = _run(peer.step, inner)
        if taken * inner >= seconds / 2 or inner >= 1_000_000:
            return max(1, round(seconds / taken)) if taken > 0 else inner
        inner *= 4


@contextlib.contextmanager
def _blame(peer: Peer) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise PeerError(peer, error) from error


def interleave(
    peers: Sequence[Peer], rounds: int, seconds: float, clock: str = "wall"
) -> list[Timing]:
    """Times the peers round by round, each in turn, the first one moving back every round."""
    timings = []
    for peer in peers:
        with _blame(peer):
            timings.append(Timing(peer, calibrate(peer, seconds)))
    now = CLOCKS[clock]
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for round_ in range(rounds):
            for i in range(len(timings)):
                timing = timings[(i + round_) % len(timings)]
                with _blame(timing.peer):
                    timing.peer.step()  # untimed: drops what the peer before left behind
                    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                    began, used = time.perf_counter(), time.process_time()
                    timing.seconds.append(_run(timing.peer.step, timing.inner, now))
                    used, passed = time.process_time() - used, time.perf_counter() - began
                    timing.busy += used / max(passed, 1e-9) / rounds
                    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                    timing.faults += (after - before) / timing.inner / rounds
    finally:
        if enabled:
            gc.enable()
    return timings


def persevere(peers: Sequence[Peer], run: Callable[[Sequence[Peer]], list[_Found]]) -> list[_Found]:
    """What ``run`` gives for the peers, without those that fail in it (memory that ran out, say).

    Raises:
        BenchError: ours failed.
    """
    rest = list(peers)
    while True:
        try:
            return run(rest)
        except PeerError as error:
            if error.peer.family == "ours":
                raise BenchError(str(error)) from error
            left_out("while it was measured", error)
            rest = [peer for peer in rest if peer is not error.peer]
            error.peer.clean()
        release()


def best_variants(peers: Sequence[Peer], effort: Effort) -> list[Peer]:
    """The fastest peer of each family, in the order in which the families appear."""
    families: dict[str, list[Peer]] = {}
    for peer in peers:
        families.setdefault(peer.family, []).append(peer)
    if all(len(members) == 1 for members in families.values()):
        return list(peers)
    timings = interleave(peers, effort.heats, effort.slice, effort.clock)
    best: dict[str, Timing] = {}
    for timing in timings:
        family = timing.peer.family
        if family not in best or timing.median < best[family].median:
            best[family] = timing
    return [best[family].peer for family in families]


def extra_memory(peer: Peer) -> float | None:
    """MiB that a step needs above what is there before it; None where Linux can't say."""
    if device == "cuda":
        try:
            peer.clean()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            kept_on_gpu = peer.step()
            synchronize()
            del kept_on_gpu
            peer.clean()
            return float(torch.cuda.max_memory_allocated() - held) / 2**20
        except Exception as error:
            left_out(f"memory of {peer.family} ({peer.variant})", error)
            return None
    status, refs = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    peer.clean()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        refs.write_text("5")  # resets the high-water mark
    except (OSError, AttributeError):
        return None

    def field_kib(name: str) -> int:
        for line in status.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
        raise OSError(name)

    try:
        before = field_kib("VmRSS")
        kept = peer.step()
        peak = field_kib("VmHWM")
        del kept
        peer.clean()
    except OSError:
        return None
    return max(0.0, (peak - before) / 1024)


# --- one case -------------------------------------------------------------------------------------


def limit_seconds(case: Case, limits: Mapping[str, float]) -> float | None:
    """The time that the machine needs to move the case's bytes: copied as far as they pair up.

    Or to do its operations, where it has any.
    """
    if case.flops:
        peak = limits.get("fma_gflops")
        return 1e-9 * case.flops / peak if peak else None
    if not case.reads and not case.writes:
        return None
    if not {"read", "copy_stream", "write_stream"} <= limits.keys():
        return None
    paired = min(case.reads, case.writes)
    nanoseconds = 2 * paired / limits["copy_stream"]
    nanoseconds += (case.reads - paired) / limits["read"]
    nanoseconds += (case.writes - paired) / limits["write_stream"]
    return nanoseconds * 1e-9


def measure(
    case: Case, allocator: str, threads: int, limits: Mapping[str, float], effort: Effort
) -> list[dict[str, Any]]:
    """The rows of one case: checks the peers, finds the best variants, times them.

    Raises:
        BenchError: a peer's result is wrong.
    """
    if case.rounds is not None:
        heats = min(max(2, case.rounds // 5), effort.heats)
        effort = replace(effort, rounds=min(case.rounds, effort.rounds), heats=heats)
    task = case.make()
    expected = exact(task)
    release()
    if device == "cuda":
        gc.freeze()  # what is imported by now need not be looked at before every capture
    sound = check(task, expected)
    memory = {id(peer): extra_memory(peer) for peer in sound}
    timings = _contest(sound, effort)
    rows = _rows(case, timings, memory, allocator, threads, limits, effort)
    if case.graph and device == "cuda":
        try:
            graphs = _graphs(sound, expected, task)
            timings = _contest(graphs, effort)
            captured = replace(case, mode=f"{case.mode} graph")
            rows += _rows(captured, timings, {}, allocator, threads, limits, effort)
        except Exception as error:  # what was measured before stays
            left_out(f"CUDA graphs of {case.name}", error)
    return rows


def _contest(peers: Sequence[Peer], effort: Effort) -> list[Timing]:
    """The best variant of each family, timed."""
    best = persevere(peers, lambda rest: best_variants(rest, effort))
    return persevere(best, lambda rest: interleave(rest, effort.rounds, effort.slice, effort.clock))


def _graphs(peers: Sequence[Peer], expected: list[Tensor], task: Task) -> list[Peer]:
    """The peers as captured graphs, with right results; those that can't be are left out."""
    found = []
    for peer in peers:
        name = f"{peer.family} ({peer.variant}), CUDA graph"
        release()
        try:
            graph = gpu.capture(peer)
            if graph.outputs is not None:
                _compare(name, list(graph.outputs()), expected, task)
            found.append(graph)
        except Exception as error:
            if peer.family == "ours":
                raise
            left_out(name, error)
    return found


def _rows(
    case: Case, timings: Sequence[Timing], memory: Mapping[int, float | None], allocator: str,
    threads: int, limits: Mapping[str, float], effort: Effort,
) -> list[dict[str, Any]]:  # fmt: skip
    ours = next(t for t in timings if t.peer.family == "ours")
    same: dict[str, Any] = {
        "suite": case.suite, "case": case.name, "op": case.op, "mode": case.mode,
        "rows": case.rows, "columns": case.columns, "dtype": case.dtype,
        "device": device, "threads": threads, "allocator": allocator,
    }  # fmt: skip
    rows = []
    for timing in timings:
        peer = timing.peer
        row = same | {
            "peer": peer.family, "variant": peer.variant,
            "median_us": 1e6 * timing.median,
            "p20_us": 1e6 * timing.quantile(0.2), "p80_us": 1e6 * timing.quantile(0.8),
            "rounds": len(timing.seconds), "inner": timing.inner, "clock": effort.clock,
            "peak_mib": memory.get(id(peer)), "faults": timing.faults, "busy": timing.busy,
        }  # fmt: skip
        row |= _reached(replace(case, reads=peer.reads or case.reads), timing.median, limits)
        if timing is not ours:
            row |= _score(case, allocator, timing, ours)
        rows.append(row)
    floor = limit_seconds(case, limits)
    if case.limit_goal is not None and floor is not None:
        share = floor / ours.median
        rows.append(
            same | {
                "peer": "limit", "variant": "FMA peak" if case.flops else "memory bandwidth",
                "median_us": 1e6 * floor, "compare": "ratio", "score": share,
                "score_rounds": share, "goal": case.limit_goal,
            }
        )  # fmt: skip
    return rows


def _reached(case: Case, seconds: float, limits: Mapping[str, float]) -> dict[str, Any]:
    """How near a time comes to the case's floor: in GB/s, or of the FMA peak in GFLOP/s."""
    floor = limit_seconds(case, limits)
    if floor is None:
        return {}
    share = {"of_limit": floor / seconds}
    if case.flops:
        return share | {"limit": limits["fma_gflops"]}
    moved = case.reads + case.writes
    rates = {"gbps": 1e-9 * moved / seconds, "limit": 1e-9 * moved / floor}
    return {"bytes": moved} | rates | share


def _score(case: Case, allocator: str, timing: Timing, ours: Timing) -> dict[str, Any]:
    goals = [goal for goal in case.goals if goal.peer == timing.peer.family]
    compare = goals[0].compare if goals else "ratio"
    pairs = list(zip(timing.seconds, ours.seconds, strict=True))
    if compare == "ratio":
        score = timing.median / ours.median
        by_round = statistics.median(theirs / own for theirs, own in pairs)
    else:
        score = 1e6 * (ours.median - timing.median)
        by_round = 1e6 * statistics.median(own - theirs for theirs, own in pairs)
    # The goals are set for the CPU.
    wanted = [g.value for g in goals if allocator in g.allocators and device == "cpu"]
    return {
        "compare": compare,
        "score": score,
        "score_rounds": by_round,
        "goal": max(wanted) if wanted else None,
    }


def load() -> float:
    """Processes that want to run, the mean of the last minute; more than cores means noise."""
    return os.getloadavg()[0]


# --- one worker -----------------------------------------------------------------------------------


def finished(
    path: Path, environment: Mapping[str, Any], quick: bool, clock: str
) -> set[tuple[str, ...]]:
    """(suite, case, threads, allocator) already measured at this commit and build."""
    same = {name: environment[name] for name in ("commit", "build")}
    same |= {"quick": int(quick), "clock": clock, "device": device}
    return {
        (row["suite"], row["case"], row["threads"], row["allocator"])
        for row in results.read(path)
        if all(row.get(name) == str(value) for name, value in same.items())
    }


def run_cases(
    cases: Sequence[Case],
    allocator: str,
    threads: int,
    path: Path,
    *,
    quick: bool = False,
    resume: bool = False,
    clock: str = "wall",
    limits: Mapping[str, float] | None = None,
    progress: Callable[[str], None] = print,
    deadline: float = math.inf,
    attempt: Callable[[Case], bool] = lambda case: True,
) -> int:
    """Measures the cases at one setting and appends each to the CSV as it ends.

    Args:
        deadline: of time.time(); behind it no case is begun, and those left are named.
        attempt: whether to begin a case, asked right before.

    Returns:
        How many cases failed.

    Raises:
        SystemExit: the GPU can't be used any more by this process; the status is POISONED.
    """
    for name, value in ALLOCATORS[allocator].items():
        if os.environ.get(name) != value:
            raise BenchError(f"{name} must be set before the process starts: use python -m bench")
    if clock == "cpu" and threads != 1:
        raise BenchError("the cpu clock adds threads up: use it with one thread")
    torch.set_num_threads(threads)
    full = CUDA if device == "cuda" else FULL
    effort = replace(QUICK if quick else full, clock=clock)
    environment = results.environment()
    done = finished(path, environment, quick, clock) if resume else set()
    failures = 0
    # The settings are of the heap; on a GPU there is one, and every case is measured with it.
    chosen = [case for case in cases if device == "cuda" or allocator in case.allocators]
    for i, case in enumerate(chosen, 1):
        head = f"[{i}/{len(chosen)}] {allocator}, {threads} threads: {case.name}"
        if (case.suite, case.name, str(threads), allocator) in done:
            progress(f"{head}: done before")
            continue
        if time.time() >= deadline:
            progress(f"{head}: not begun: the time limit is over")
            continue
        if not attempt(case):
            continue
        start = time.perf_counter()
        try:
            rows = measure(case, allocator, threads, limits or {}, effort)
        except Exception as error:
            failures += 1
            said = str(error) if isinstance(error, BenchError) else repr(error)
            progress(f"{head}: FAILED: {said}")
            rows = []
        finally:
            gc.unfreeze()
        if not rows:
            torch.compiler.reset()
            if not healthy():
                progress("the GPU is lost to this process")
                sys.exit(POISONED)
            continue
        stamp = {"date": results.now(), "quick": int(quick), "load": load(), **environment}
        results.append(path, [stamp | row for row in rows])
        taken = f" ({time.perf_counter() - start:.0f} s)" if device == "cuda" else ""
        progress(f"{head}: {_summary(rows)}{taken}")
        torch.compiler.reset()
        release()
    return failures


def healthy() -> bool:
    """Whether the device still answers: some errors of a kernel end a process's use of a GPU."""
    try:
        release()
        synchronize()
    except Exception:
        return False
    return True


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for row in rows:
        if row["peer"] == "ours":
            graph = "as a graph " if row["mode"].endswith("graph") else ""
            parts.append(f"{graph}{row['median_us']:.4g} us")
        else:
            unit = "x" if row["compare"] == "ratio" else " us above"
            parts.append(f"{row['score']:.3g}{unit} {row['peer']}")
    return ", ".join(parts)
