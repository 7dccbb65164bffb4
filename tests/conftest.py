"""Backends: the same public functions, run by each SIMD level, the CUDA emulator, or a GPU."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import siamcuda
from siamcuda import _ops

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from emulation import extension

SIMD = list(siamcuda.build_info()["simd_compiled"])


@dataclasses.dataclass(frozen=True)
class Backend:
    name: str
    device: str

    @property
    def emulated(self) -> bool:
        return self.name == "emulated"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take ``backend`` run on each; those for a GPU carry the marker ``gpu``."""
    if "backend" in metafunc.fixturenames:
        names = [*SIMD, "emulated"]
        parameters = [pytest.param(name, id=name) for name in names]
        parameters.append(pytest.param("cuda", id="cuda", marks=pytest.mark.gpu))
        metafunc.parametrize("backend", parameters, indirect=True)


def _use(name: str, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Sends the public functions to a backend, or skips the test where it can't run."""
    if name == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        if not siamcuda.build_info()["cuda"]:
            pytest.fail("a GPU is here, but siamcuda was built without CUDA")
        return Backend(name, "cuda")
    if name == "emulated":
        monkeypatch.setattr(_ops, "extension", extension.load())
        monkeypatch.setattr(_ops, "namespace", torch.ops.siamcuda_emulated)
    else:
        if name not in siamcuda._C.build_info()["simd_supported"]:
            pytest.skip(f"this CPU lacks {name}")
        monkeypatch.setenv("SIAMCUDA_SIMD", name)
    return Backend(name, "cpu")


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    return _use(request.param, monkeypatch)


@pytest.fixture
def device(backend: Backend) -> str:
    """Where the tensors of the backend are, for tests that ask no more of it."""
    return backend.device


@pytest.fixture(params=[*SIMD, "emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every backend for tests whose tensors are on the CPU: to a GPU they go and come back."""
    used = _use(request.param, monkeypatch)
    if used.device == "cuda":
        call = _ops.call

        def moved(value: object) -> object:
            return value.cuda() if isinstance(value, torch.Tensor) else value

        def on_the_gpu(name: str, *arguments: object, **options: object) -> torch.Tensor:
            return call(name, *map(moved, arguments), **options).cpu()

        monkeypatch.setattr(_ops, "call", on_the_gpu)
    return used.name


@pytest.fixture(params=SIMD)
def simd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CPU's instruction sets alone, for what no other backend does."""
    return _use(request.param, monkeypatch).name


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pytest_report_header() -> str:
    return f"siamcuda {siamcuda.build_info()}, {os.cpu_count()} CPUs"
