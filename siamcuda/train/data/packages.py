"""Data inside installed packages, found without importing them: their files are all we need."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from siamcuda.train.errors import InputError

__all__ = ["find_in_package"]


def find_in_package(package: str, inside: str, what: str, remedy: str) -> Path:
    """Find a file or folder that a package carries.

    Args:
        package: name that is imported; it isn't.
        inside: path below the package's folder.
        what: what is looked for, to begin the message with.
        remedy: what to do where it isn't there, to end the message with.

    Raises:
        InputError: the package isn't installed, or lacks the file.
    """
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / inside
        if path.exists():
            return path
    lacks = f"{package} has no {inside}" if spec else "not installed"
    raise InputError(f"data: {what}: {lacks}: {remedy}")
