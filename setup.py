"""Builds siamcuda._C with torch's BuildExtension: SIMD C++ always, CUDA where a toolkit is found.

SIAMCUDA_CUDA=auto|1|0   auto builds CUDA when torch has it and a toolkit is there; 1 fails without.
TORCH_CUDA_ARCH_LIST     architectures; all from sm_75 to sm_120 unless set.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent.resolve()
# Machine code runs on every later minor version of its major one: that of 8.0 on 8.6 and 8.9.
ARCHITECTURES = "7.5;8.0;9.0;10.0;12.0+PTX"


def find_cuda_home() -> str | None:
    """The toolkit folder. nvcc on PATH may be a shim, so a header beside it must vouch for it."""
    candidates = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        for path in (Path(nvcc), Path(nvcc).resolve()):
            candidates.append(str(path.parent.parent))
            candidates += sorted(glob.glob(str(path.parent.parent / "cuda*")), reverse=True)
    for candidate in candidates:
        if candidate is None:
            continue
        home = Path(candidate)
        if (home / "include" / "cuda_runtime.h").is_file() and (home / "bin" / "nvcc").is_file():
            return str(home)
    return None


# torch reads both when cpp_extension is imported, and without a GPU it has no default of its own.
CUDA_HOME = find_cuda_home()
if CUDA_HOME is not None:
    os.environ["CUDA_HOME"] = CUDA_HOME
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)

import torch  # noqa: E402
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402


def toolkit_major(home: str) -> int:
    """The major version of CUDA that a toolkit folder holds."""
    header = (Path(home) / "include" / "cuda.h").read_text(errors="replace")
    found = re.search(r"#define CUDA_VERSION (\d+)", header)
    return int(found[1]) // 1000 if found else 0


def wants_cuda() -> bool:
    choice = os.environ.get("SIAMCUDA_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"SIAMCUDA_CUDA must be auto, 0 or 1, got {choice!r}")
    if choice == "0":
        return False
    missing = []
    if CUDA_HOME is None:
        missing.append("no CUDA toolkit found (set CUDA_HOME to the folder of bin and include)")
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} was built without CUDA")
    elif CUDA_HOME is not None and toolkit_major(CUDA_HOME) != int(
        torch.version.cuda.split(".")[0]
    ):
        missing.append(
            f"the toolkit in {CUDA_HOME} is of CUDA {toolkit_major(CUDA_HOME)}, torch "
            f"{torch.__version__} of CUDA {torch.version.cuda}"
        )
    if choice == "1" and missing:
        sys.exit("SIAMCUDA_CUDA=1, but " + " and ".join(missing))
    if missing:
        print(f"siamcuda: building for the CPU alone: {' and '.join(missing)}", file=sys.stderr)
    return not missing


def library_headers() -> list[str]:
    """CUDA library headers that torch's own headers need; its CUDA wheels bring them along."""
    folders = []
    for site in {Path(torch.__file__).parent.parent, *map(Path, sys.path)}:
        folders += [str(p) for p in sorted(site.glob("nvidia/*/include")) if p.is_dir()]
    return folders


def extension() -> CppExtension:
    cuda = wants_cuda()
    sources = glob.glob("csrc/*.cpp") + glob.glob("csrc/cpu/*.cpp") + glob.glob("csrc/ops/*.cpp")
    sources += glob.glob("csrc/ops/cpu/*.cpp")
    # -ffp-contract=off: a rounding must not depend on what the compiler chose to fuse.
    cxx = [
        "-std=c++20",
        "-O3",
        "-g0",
        "-ffp-contract=off",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
    ]
    # No errno and no floating-point traps: with them a loop over a formula stays scalar.
    cxx += ["-fno-math-errno", "-fno-trapping-math"]
    # at::parallel_for is serial in code that is compiled without OpenMP.
    cxx += ["-fopenmp", "-Wno-unused-parameter", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]
    macros: list[tuple[str, str | None]] = []
    if not cuda:
        return CppExtension(
            "siamcuda._C",
            sorted(sources),
            include_dirs=[str(ROOT / "csrc")],
            define_macros=macros,
            extra_compile_args={"cxx": cxx},
            extra_link_args=["-fopenmp"],
        )
    sources += glob.glob("csrc/cuda/*.cu") + glob.glob("csrc/ops/cuda/*.cpp")
    architectures = os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";")
    macros += [
        ("SIAMCUDA_WITH_CUDA", None),
        ("SIAMCUDA_ARCHITECTURES", f'"{architectures}"'),
    ]
    return CUDAExtension(
        "siamcuda._C",
        sorted(sources),
        include_dirs=[str(ROOT / "csrc"), *library_headers()],
        extra_link_args=["-fopenmp"],
        define_macros=macros,
        extra_compile_args={
            "cxx": cxx,
            # --fmad=false: as -ffp-contract=off. nvcc would fuse differently in each instance of a
            # kernel, so that a row's bits would depend on its alignment; where a fused operation is
            # meant, kernels say so.
            "nvcc": ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "--fmad=false"],
        },
    )


def requirements() -> list[str]:
    """The C++ ABI of torch holds within a minor version, so a wheel asks for the one it met."""
    major, minor = torch.__version__.split(".")[:2]
    return [f"torch>={major}.{minor},<{major}.{int(minor) + 1}", "numpy>=1.26"]


class Build(BuildExtension):
    """Keeps the objects of an in-place build, so that the next one compiles what changed."""

    def run(self) -> None:
        if self.inplace or getattr(self, "editable_mode", False):
            self.build_temp = str(ROOT / "build" / f"objects-{sys.implementation.cache_tag}")
        super().run()


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": Build},
    install_requires=requirements(),
)
