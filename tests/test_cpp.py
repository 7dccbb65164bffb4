"""The C++ tests of tests/cpp, each one an item here; see tests/cpp/check.h for how to add one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import native
import pytest

SOURCES = native.ROOT / "tests" / "cpp"
FORMULAS = native.ROOT / "csrc" / "math" / "formulas.h"
PROGRAMS = sorted(path.stem for path in SOURCES.glob("*.cpp"))


def names(program: str) -> list[str]:
    """A program's tests from its text, so that collecting need not compile.

    A program that runs over SIAM_FOR_EACH_LOSS has one test per loss of formulas.h besides.
    """
    text = (SOURCES / f"{program}.cpp").read_text()
    found = re.findall(r"^SIAM_(?:\w+_)?TEST\((\w+)", text, re.MULTILINE)
    found = [name for name in found if name != "name"]
    if "SIAM_FOR_EACH_LOSS(" in text:
        found += re.findall(r'\bkName = "(\w+)"', FORMULAS.read_text())
    return found


ITEMS = [(program, name) for program in PROGRAMS for name in names(program)]


@pytest.fixture(scope="session")
def folder() -> Path:
    return native.build(*PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_test_is_an_item(folder: Path, program: str) -> None:
    listed = native.run([folder / program, "--list"]).split()
    assert sorted(listed) == sorted(names(program))
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize(("program", "name"), ITEMS, ids=[f"{p}-{n}" for p, n in ITEMS])
def test_cpp(folder: Path, program: str, name: str) -> None:
    done = subprocess.run(
        [folder / program, "--run", name], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
