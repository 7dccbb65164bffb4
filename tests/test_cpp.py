"""The C++ tests of tests/cpp, each one an item here; see tests/cpp/check.h for how to add one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from gates import native

ITEMS = [(program, name) for program in native.programs() for name in native.tests_of(program)]


@pytest.fixture(scope="session")
def folder() -> Path:
    """A build that fails is a failed test: skipping would hide that nothing was checked."""
    try:
        return native.build()
    except native.BuildError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.mark.parametrize("program", native.programs())
def test_every_test_is_an_item(folder: Path, program: str) -> None:
    listed = native.run([folder / program, "--list"]).split()
    assert sorted(listed) == sorted(native.tests_of(program))
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize(("program", "name"), ITEMS, ids=[f"{p}-{n}" for p, n in ITEMS])
def test_cpp(folder: Path, program: str, name: str) -> None:
    done = subprocess.run(
        [folder / program, "--run", name], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
