"""``siamcuda bench``: the benchmarks of the source tree that this package was installed from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import siamcuda
from siamcuda.train.errors import InputError

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench`` where bench/ is: it is part of the sources, not of the package.

    Its exit status becomes ours where it is not 0.
    """
    root = Path(siamcuda.__file__).resolve().parent.parent
    if not (root / "bench" / "__main__.py").is_file():
        raise InputError(
            f"bench: there are no benchmarks beside {root / 'siamcuda'}: they come with the "
            "sources; clone them, and run make bench or, after pip install -e ., siamcuda bench"
        )
    status = subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=root).returncode
    if status == 130:
        raise KeyboardInterrupt
    if status:
        sys.exit(status)
