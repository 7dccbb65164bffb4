"""What only a GPU has: CUDA graphs of a step, and the device's own limits."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from bench.results import BenchError

if TYPE_CHECKING:
    from bench.harness import Peer

#: Steps before a capture: cuBLAS, the autograd thread and the allocator are ready then.
WARM_UP = 3
MATMUL = 8192


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """In it an operation that waits for the device raises: it could not be captured either."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(peer: Peer) -> Peer:
    """The peer with its step, forward and backward, as one CUDA graph that is replayed.

    Inputs stay where they are; results are where the graph wrote them.

    Raises:
        BenchError: the step waits for the device, or can't be captured for another reason.
    """
    run = peer.step if peer.outputs is None else peer.outputs
    before = torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    kept: list[Any] = []
    try:
        side = torch.cuda.Stream()
        side.wait_stream(before)
        with torch.cuda.stream(side), _no_waiting():
            for _ in range(WARM_UP):
                run()
        before.wait_stream(side)
        peer.clean()
        gc.collect()  # no node of an earlier graph of autograd, which knows another stream
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # nothing can be given back while a graph is captured
        with torch.cuda.graph(graph):
            made = run()
            kept = [t.detach() for t in made] if isinstance(made, (list, tuple)) else [made]
        peer.clean()
    except Exception as error:
        _abandon(graph, before)
        peer.clean()
        said = str(error).strip().splitlines()
        raise BenchError(f"not captured: {said[0] if said else type(error).__name__}") from None
    del made

    def outputs() -> list[Any]:
        graph.replay()
        return kept

    checked = None if peer.outputs is None else outputs
    return replace(peer, step=graph.replay, outputs=checked, clean=lambda: None)


def _abandon(graph: Any, stream: Any) -> None:
    """Leaves a capture that failed: its stream and its pool of memory would stay in use."""
    with contextlib.suppress(Exception):
        torch.cuda.set_stream(stream)
    with contextlib.suppress(Exception):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), graph.pool())
    with contextlib.suppress(Exception):
        torch.cuda.synchronize()


# --- limits ---------------------------------------------------------------------------------------


def _seconds(step: Callable[[], object], inner: int, repetitions: int) -> float:
    """The best of a few repetitions, after one that is not counted."""
    times = []
    for _ in range(repetitions + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(inner):
            step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / inner)
    return min(times[1:])


def limits(device: str = "cuda", quick: bool = False) -> dict[str, float]:
    """GB/s of a copy of 1 GiB on the device (read and written bytes), TFLOP/s of torch.matmul.

    Those that can be measured: a failure of one does not keep the others out.
    """
    found: dict[str, float] = {}
    inner, repetitions = (1, 1) if quick else (5, 7)
    scale = 64 if quick else 1
    try:
        source = torch.ones((1 << 28) // scale, device=device)
        step = partial(torch.empty_like(source).copy_, source)
        found["copy"] = 2e-9 * source.nbytes / _seconds(step, inner, repetitions)
        del source, step
    except Exception as error:
        print(f"bench: copy: {error}")
    side = MATMUL // scale
    kinds = (
        ("matmul_fp32_tflops", "highest", torch.float32),
        ("matmul_tf32_tflops", "high", torch.float32),
        ("matmul_bf16_tflops", "highest", torch.bfloat16),
    )
    before = torch.get_float32_matmul_precision()
    for name, precision, dtype in kinds:
        try:
            torch.set_float32_matmul_precision(precision)
            a, b = torch.randn(2, side, side, device=device).to(dtype)
            step = partial(torch.mm, a, b, out=torch.empty_like(a))
            found[name] = 2e-12 * side**3 / _seconds(step, inner, repetitions)
        except Exception as error:
            print(f"bench: {name}: {error}")
        finally:
            torch.set_float32_matmul_precision(before)
    return found
