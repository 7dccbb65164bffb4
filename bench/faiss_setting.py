"""faiss at its best: loaded with the matrix kernels that are fastest on this CPU.

The OpenBLAS inside faiss's wheels doesn't know every CPU and then takes slow kernels;
OPENBLAS_CORETYPE names others, and is read once, when the library is loaded. So each setting is
tried in a process of its own, on one thread by the time that it has the processor, which a busy
machine does not change, and the winner is set while faiss is loaded here, and only then: the
OpenBLAS of numpy and scipy, which are loaded before, choose for themselves.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

VARIABLE = "OPENBLAS_CORETYPE"
#: What the variable may be; None leaves the choice to OpenBLAS.
CORETYPES: tuple[str | None, ...] = (None, "Haswell", "SkylakeX")
#: Each setting has this many processes, in alternating order; the best time of all counts.
TURNS = 2
#: (queries, rows, columns) of the trial.
SIZES = (1000, 50_000, 128)
MISSING = "faiss is not installed: pip install 'siamcuda[peers]'"

TRIAL = r"""
import sys, time, faiss, numpy
queries, rows, columns = map(int, sys.argv[1:])
faiss.omp_set_num_threads(1)
vectors = numpy.random.default_rng(0).standard_normal((rows, columns), numpy.float32)
index = faiss.IndexFlatL2(columns)
index.add(vectors)
best = float("inf")
for _ in range(6):
    start = time.process_time()
    index.search(vectors[:queries], 10)
    best = min(best, time.process_time() - start)
print(best)
"""


class Faiss(NamedTuple):
    """The module, and what to call it: its version and setting."""

    module: Any
    title: str


def trial(coretype: str | None, sizes: Sequence[int]) -> float:
    """Seconds of a search with the setting; infinite where it does not run (SIGILL, say)."""
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    if coretype is not None:
        environment[VARIABLE] = coretype
    command = [sys.executable, "-c", TRIAL, *map(str, sizes)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=300
        )
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return math.inf


def probe(sizes: Sequence[int] = SIZES, turns: int = TURNS) -> str | None:
    """The fastest setting."""
    best: dict[str | None, float] = dict.fromkeys(CORETYPES, math.inf)
    for turn in range(turns):
        for coretype in CORETYPES if turn % 2 == 0 else reversed(CORETYPES):
            best[coretype] = min(best[coretype], trial(coretype, sizes))
    told = ", ".join(f"{name or 'unset'} {1000 * best[name]:.0f} ms" for name in CORETYPES)
    print(f"faiss by {VARIABLE}: {told}", flush=True)
    return min(CORETYPES, key=lambda name: best[name])


@functools.cache
def load() -> Faiss:
    """faiss with the best setting, found out at the first call.

    What the environment says of it is a setting like the others, and stands again afterwards.

    Raises:
        ModuleNotFoundError: faiss is not installed; the message says how to get it.
    """
    if importlib.util.find_spec("faiss") is None:
        raise ModuleNotFoundError(MISSING)
    for other in ("numpy", "sklearn.neighbors"):  # before the variable is set: see above
        if importlib.util.find_spec(other.partition(".")[0]) is not None:
            importlib.import_module(other)
    given = os.environ.get(VARIABLE)
    coretype = given if "faiss" in sys.modules else probe()  # once loaded, it stays as it is
    try:
        _set(coretype)
        module = importlib.import_module("faiss")
    finally:
        _set(given)
    return Faiss(module, f"{module.__version__}, {VARIABLE} {coretype or 'unset'}")


def _set(coretype: str | None) -> None:
    if coretype is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = coretype
