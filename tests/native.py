"""Builds targets of CMakeLists.txt for the tests; a build that fails is a failed test."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cmake"


def run(command: Sequence[str | Path]) -> str:
    """What the command prints; if it fails, so does the test: skipping would hide it."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        text = f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
        pytest.fail(text, pytrace=False)
    return done.stdout


@contextmanager
def _lock() -> Iterator[None]:
    """Parallel test processes share one build folder."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "pytest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def configure() -> None:
    with _lock():
        command: list[str | Path] = ["cmake", "-S", ROOT, "-B", BUILD]
        # A folder keeps the generator it was made with.
        if not (BUILD / "CMakeCache.txt").exists() and shutil.which("ninja"):
            command += ["-G", "Ninja"]
        run(command)


def build(*targets: str) -> Path:
    """Builds the targets and returns the folder they are in."""
    configure()
    with _lock():
        jobs = str(os.cpu_count() or 1)
        run(["cmake", "--build", BUILD, "-j", jobs, "--target", *targets])
    return BUILD
