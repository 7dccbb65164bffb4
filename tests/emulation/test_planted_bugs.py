"""Every planted bug is found under every schedule, and every repaired twin passes.

The bugs are the files planted/*.cuh; see planted/planted.h for how to add one. What the emulator
must compute where nothing is wrong is in semantics.cpp.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import native
import pytest

PLANTED = Path(__file__).resolve().parent / "planted"
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


@pytest.fixture(scope="session")
def driver() -> Driver:
    executable = native.build("emulator_tests") / "emulator_tests"
    expected = {}
    for line in native.run([executable, "--list"]).splitlines():
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
    native.run([native.build("emulator_semantics") / "emulator_semantics"])


def test_planted_kernels_compile_with_nvcc() -> None:
    """The emulator is worth something only if the same text is a CUDA program."""
    native.configure()
    cache = (native.BUILD / "CMakeCache.txt").read_text()
    if not re.search(r"^SIAMCUDA_CUDA_ROOT:INTERNAL=.+", cache, re.MULTILINE):
        if os.environ.get("SIAMCUDA_CUDA") == "1":
            pytest.fail("SIAMCUDA_CUDA=1, but CMake found no CUDA toolkit")
        pytest.skip("no CUDA toolkit")
    native.build("planted_native")
