"""What this installation is: version, torch, what was compiled and what is in use."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from siamcuda import _C

__version__ = version("siamcuda")


def build_info() -> dict[str, Any]:
    """Says what was built and what runs.

    Returns:
        ``version``, ``torch`` (in use), ``cuda`` (whether kernels for it were compiled),
        ``cuda_architectures`` (list, e.g. ``"8.0"``), ``simd_compiled``, ``simd_supported`` (by
        this CPU), ``simd`` (in use; SIAMCUDA_SIMD forces it), ``compiler``.

    Example:
        >>> import siamcuda
        >>> siamcuda.build_info()["simd"] in ("generic", "avx2", "avx512")
        True
    """
    built = _C.build_info()
    architectures = [a for a in built.pop("cuda_architectures").split(";") if a]
    return {
        "version": __version__,
        "torch": torch.__version__,
        "cuda": bool(architectures),
        "cuda_architectures": architectures,
        **built,
    }
