"""Builds the C++ tests: with CMake, or with the compiler alone where there is no CMake."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests" / "cpp"
BUILD = ROOT / "build" / "cmake"
FORMULAS = ROOT / "csrc" / "math" / "formulas.h"

_TEST = re.compile(r"^SIAM_(?:\w+_)?TEST\((\w+)", re.MULTILINE)
_NAME = re.compile(r"\bkName = \"(\w+)\"")


class BuildError(Exception):
    """A command failed; holds its output."""


def programs() -> list[str]:
    return sorted(path.stem for path in SOURCES.glob("*.cpp"))


def tests_of(program: str) -> list[str]:
    """The names of a program's tests from its text, so that collecting need not compile.

    A program that runs over SIAM_FOR_EACH_LOSS has one test per loss of formulas.h besides.
    """
    text = (SOURCES / f"{program}.cpp").read_text()
    names = [name for name in _TEST.findall(text) if name != "name"]
    if "SIAM_FOR_EACH_LOSS(" in text:
        names += _NAME.findall(FORMULAS.read_text())
    return names


def run(command: Sequence[str | Path]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


@contextmanager
def build_lock() -> Iterator[None]:
    """Parallel test processes share one build folder."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "pytest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(program: str) -> None:
    command: list[str | Path] = [os.environ.get("CXX", "g++"), "-std=c++17", "-O2", "-pthread"]
    command += ["-DSIAM_EMULATED", *(f"-I{ROOT / p}" for p in ("csrc", "csrc/cuda"))]
    command += [f"-I{ROOT / 'tests' / 'emulation'}", SOURCES / f"{program}.cpp"]
    run([*command, "-o", BUILD / program])


def build() -> Path:
    """Builds every program of tests/cpp and returns the folder they are in.

    Raises:
        BuildError: configuring or compiling failed.
    """
    with build_lock():
        if not shutil.which("cmake"):
            for program in programs():
                _compile(program)
            return BUILD
        configure: list[str | Path] = ["cmake", "-S", ROOT, "-B", BUILD]
        # A folder keeps the generator it was made with.
        if not (BUILD / "CMakeCache.txt").exists() and shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        run(configure)
        run(["cmake", "--build", BUILD, "-j", str(os.cpu_count() or 1), "--target", *programs()])
    return BUILD
