"""``python -m bench.breakdown``: where a step of a batch loss spends its time on a GPU.

For each loss the time of forward and backward as Python starts it, the time of the same step
replayed from a captured CUDA graph, and the kernels of one step with their times from
torch.profiler. The first is bound by the host where batches are small, the second is what the GPU
needs; what others need is the business of ``python -m bench --device cuda``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

import siamcuda
from bench import batch, gpu, harness

LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "contrastive": ("batch_contrastive_loss", {"margin": 2.0}),
    "chopra": ("batch_chopra_loss", {"q": 2.0}),
    "chopra-l1": ("batch_chopra_loss", {"q": 2.0, "energy": "l1"}),
    "hard": ("batch_triplet_loss", {"mining": "hard", "squared": False}),
    "easy_positive": ("batch_triplet_loss", {"mining": "easy_positive", "squared": False}),
    "semihard": ("batch_triplet_loss", {"mining": "semihard", "squared": False}),
    "all": ("batch_triplet_loss", {"mining": "all", "squared": False}),
}
SHOWN = 6  # kernels of a step, those that take longest


def step_of(name: str, rows: int, per_class: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Forward and backward over unit vectors, as a training step calls them."""
    function_name, options = LOSSES[name]
    function = getattr(siamcuda, function_name)
    x, labels = batch.inputs(rows, per_class)
    leaf = x.to(dtype).requires_grad_()

    def step() -> Tensor:
        leaf.grad = None
        loss: Tensor = function(leaf, labels, **options)
        loss.backward()
        return loss

    return step


def microseconds(step: Callable[[], object], rounds: int) -> float:
    """The median over rounds, between two events on the stream."""
    found = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        end.synchronize()
        found.append(1e3 * begin.elapsed_time(end))
    return statistics.median(found)


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """The step as a CUDA graph."""
    return gpu.capture(harness.Peer("ours", "siamcuda", step, None)).step


def add_up(events: Iterable[Any]) -> list[tuple[float, int, str]]:
    """Microseconds, launches and name of each kernel, those that take longest first."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[event.name].append(event.device_time)
    return sorted(((sum(t), len(t), name) for name, t in times.items()), reverse=True)


def kernels(step: Callable[[], object]) -> list[tuple[float, int, str]]:
    step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    return add_up(profile.events())


def report(title: str, step: Callable[[], object], rounds: int) -> None:
    for _ in range(3):
        step()
    eager, graph = microseconds(step, rounds), microseconds(captured(step), rounds)
    print(f"{title}: {eager:.0f} us, as a graph {graph:.0f} us")
    for taken, launches, name in kernels(step)[:SHOWN]:
        print(f"  {taken:9.1f} us {launches:3d} x {name[:100]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; returns 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.breakdown", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.breakdown: torch finds no GPU", file=sys.stderr)
        return 2
    harness.device = "cuda"
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.dtype}, D = 128")
    for name in options.losses:
        for rows in options.rows:
            step = step_of(name, rows, options.per_class, getattr(torch, options.dtype))
            report(f"{name} {rows}", step, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
