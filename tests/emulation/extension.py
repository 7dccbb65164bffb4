"""The CUDA build of the operators on CPU tensors: the same kernels and the same host code, under
the emulator, as a torch extension of its own whose operators live in torch.ops.siamcuda_emulated.
"""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "emulated"
NAME = "siamcuda_emulated"


def _as_cpp(source: Path) -> Path:
    """A .cpp that includes the .cu: the file extension is all that sends it to nvcc."""
    wrapper = BUILD / f"{source.stem}_emulated.cpp"
    text = f'#include "{source.relative_to(ROOT / "csrc")}"\n'
    if not wrapper.is_file() or wrapper.read_text() != text:
        wrapper.write_text(text)
    return wrapper


@functools.cache
def load() -> ModuleType:
    """Builds what changed and imports it; a failed build raises."""
    from torch.utils import cpp_extension

    BUILD.mkdir(parents=True, exist_ok=True)
    csrc = ROOT / "csrc"
    sources = [csrc / "bindings.cpp", csrc / "cpu" / "dispatch.cpp"]
    for folder in (csrc / "ops", csrc / "ops" / "cuda"):
        sources += sorted(folder.glob("*.cpp"))
    sources += [_as_cpp(source) for source in sorted((csrc / "cuda").glob("*.cu"))]
    flags = ["-std=c++20", "-O1", "-g0", "-fvisibility=hidden", "-fno-gnu-unique"]
    flags += ["-DSIAM_EMULATED", f"-DSIAM_LIBRARY={NAME}"]
    return cpp_extension.load(
        NAME,
        [str(source) for source in sources],
        extra_cflags=flags,
        extra_include_paths=[str(csrc), str(ROOT / "tests" / "emulation")],
        build_directory=str(BUILD),
    )


if __name__ == "__main__":
    print(load().__file__)
