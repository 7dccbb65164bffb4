"""Every planted bug is found under every schedule, and every repaired twin passes.

The bugs are the files planted/*.cuh; see planted/planted.h for how to add one. What the emulator
must compute where nothing is wrong is in semantics.cpp.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PLANTED = REPOSITORY / "tests" / "emulation" / "planted"
BUILD = REPOSITORY / "build" / "cmake"
# By file name, so that collecting need not compile; one test compares with the driver.
NAMES = sorted(path.stem for path in PLANTED.glob("*.cuh"))
SCHEDULES = ["forward", "reverse", "random:1"]


@dataclass(frozen=True)
class Expected:
    """What the error must say; alternatives are separated by `|`, as order may decide."""

    kinds: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Driver:
    """The compiled planted bugs."""

    executable: Path
    expected: dict[str, Expected]

    def run(self, name: str, schedule: str, *options: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [
            self.executable,
            "--run",
            name,
            "--schedule",
            schedule,
            *options,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)


def run_or_fail(command: list[str | Path]) -> str:
    """A build that fails is a failed test: skipping would hide that nothing was checked."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout


@contextmanager
def build_lock() -> Iterator[None]:
    """Parallel test processes share one build folder."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "pytest.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def configure() -> None:
    command: list[str | Path] = ["cmake", "-S", REPOSITORY, "-B", BUILD]
    # A folder keeps the generator it was made with.
    if not (BUILD / "CMakeCache.txt").exists() and shutil.which("ninja"):
        command += ["-G", "Ninja"]
    run_or_fail(command)


def build_with_compiler(name: str, source: Path, included: list[Path]) -> Path:
    executable = BUILD / f"{name}_plain"
    folders = [REPOSITORY / "csrc" / "cuda", PLANTED.parent, PLANTED]
    command: list[str | Path] = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-g"]
    command += ["-DSIAM_EMULATED", "-pthread", *(f"-I{folder}" for folder in folders)]
    for path in included:
        command += ["-include", path]
    run_or_fail([*command, source, "-o", executable])
    return executable


def build(name: str, source: Path, included: list[Path]) -> Path:
    with build_lock():
        if not shutil.which("cmake"):
            return build_with_compiler(name, source, included)
        configure()
        run_or_fail(["cmake", "--build", BUILD, "--target", name])
        return BUILD / name


@pytest.fixture(scope="session")
def driver() -> Driver:
    executable = build("emulator_tests", PLANTED / "driver.cpp", sorted(PLANTED.glob("*.cuh")))
    expected = {}
    for line in run_or_fail([executable, "--list"]).splitlines():
        name, kinds, words = line.split("\t")
        expected[name] = Expected(tuple(kinds.split("|")), tuple(words.split("|")))
    return Driver(executable, expected)


def test_every_file_plants_one_bug(driver: Driver) -> None:
    assert sorted(driver.expected) == NAMES


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
def test_bug_is_found(driver: Driver, name: str, schedule: str) -> None:
    done = driver.run(name, schedule)
    assert done.returncode == 1, done.stdout + done.stderr
    kind, message = done.stdout.split("\n", 1)
    expected = driver.expected[name]
    assert kind in expected.kinds
    assert any(words in message for words in expected.words), message
    assert re.search(rf"{name}\.cuh:\d+", message), message


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
def test_repaired_twin_passes(driver: Driver, name: str, schedule: str) -> None:
    done = driver.run(name, schedule, "--repaired")
    assert done.returncode == 0, done.stdout + done.stderr


def test_schedule_comes_from_the_environment(driver: Driver) -> None:
    command: list[str | Path] = [driver.executable, "--run", NAMES[0], "--repaired"]
    environment = {**os.environ, "SIAM_EMULATOR_SCHEDULE": "sideways"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "SIAM_EMULATOR_SCHEDULE" in done.stderr


def test_emulator_computes_what_cuda_would() -> None:
    run_or_fail([build("emulator_semantics", PLANTED.parent / "semantics.cpp", [])])


def test_planted_kernels_compile_with_nvcc() -> None:
    """The emulator is worth something only if the same text is a CUDA program."""
    if not shutil.which("cmake"):
        pytest.skip("needs cmake")
    with build_lock():
        configure()
        cache = (BUILD / "CMakeCache.txt").read_text()
        if not re.search(r"^SIAMCUDA_CUDA_ROOT:INTERNAL=.+", cache, re.MULTILINE):
            pytest.skip("no CUDA toolkit")
        run_or_fail(["cmake", "--build", BUILD, "--target", "planted_native"])
