"""Files that a command is given: read and checked before any work, or refused in one line."""

from __future__ import annotations

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from siamcuda._tensor_file import open_matrix
from siamcuda.train.errors import InputError

__all__ = [
    "check_folder",
    "check_outputs",
    "read_images",
    "read_labels",
    "read_lines",
    "read_matrix",
    "refusing",
]


@contextmanager
def refusing(what: str = "") -> Iterator[None]:
    """Turn what the library raises for input that can't be used into an InputError."""
    try:
        yield
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise InputError(f"{what}{name}{error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{what}{error}") from error
    except MemoryError as error:
        raise InputError(f"{what}not enough memory: {error}") from error


def read_matrix(path: Path, name: str) -> Tensor:
    """Read a matrix of a .npy or .safetensors file into memory, its header checked first."""
    with refusing(f"{name}: "):
        if path.is_dir():
            raise ValueError(f"{path} is a folder; a .npy or .safetensors file is expected")
        matrix = open_matrix(path)
        rows = torch.empty((matrix.rows, matrix.columns), dtype=matrix.dtype)
        matrix.read(0, rows)
    return rows


def read_labels(path: Path, rows: int, name: str) -> list[str]:
    """Read one label a row, as text: a .npy file of integers or strings, or lines of text."""
    with refusing(f"{name}: "):
        labels = _labels_of_npy(path) if path.suffix == ".npy" else read_lines(path)
        if len(labels) != rows:
            raise ValueError(f"{path}: {len(labels)} labels for {rows} rows")
    return labels


def _labels_of_npy(path: Path) -> list[str]:
    try:
        # A map compares the header with the size of the file before anything is allocated; what is
        # read is not the map, in which a file that shrinks would end the process.
        np.load(path, mmap_mode="r", allow_pickle=False)
        found = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path}: not a .npy file that can be read: {error}") from error
    if found.ndim != 1 or found.dtype.kind not in "iuUS":
        raise ValueError(
            f"{path}: a row of integers or strings is expected, got shape {found.shape} and dtype "
            f"{found.dtype}"
        )
    if found.dtype.kind == "S":
        try:
            return [text.decode() for text in found.tolist()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: labels are not UTF-8: {error}") from error
    return [str(label) for label in found.tolist()]


def read_lines(path: Path) -> list[str]:
    """Lines of a text file in UTF-8, none of them empty."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error})") from error
    if lines[-1] == "":
        lines.pop()
    lines = [line.strip() for line in lines]
    if "" in lines:
        raise ValueError(f"{path}: line {lines.index('') + 1} is empty")
    return lines


def read_images(path: Path, rows: int, name: str) -> list[Path]:
    """List one picture a row: the sorted files of a folder, or the lines of a text file.

    A folder is read with its sub-folders, in the order of ``sorted``. Lines are paths relative to
    the list. Every file must be there; whether it can be decoded shows when it is drawn.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise InputError(f"{name} needs pillow: pip install 'siamcuda[report]'") from error

    with refusing(f"{name}: "):
        if path.is_dir():
            types = Image.registered_extensions()
            files = (p for p in path.rglob("*") if p.suffix.lower() in types and p.is_file())
            images = sorted(p for p in files if not p.name.startswith("."))
            _warn_of_order(images, name)
        else:
            images = [path.parent / line for line in read_lines(path)]
        if len(images) != rows:
            raise ValueError(f"{path}: {len(images)} images for {rows} rows")
        absent = next((image for image in images if not image.is_file()), None)
        if absent is not None:
            raise ValueError(f"{path}: row {images.index(absent)}: no such image: {absent}")
    return images


def _warn_of_order(images: Sequence[Path], name: str) -> None:
    """Say where file names sort otherwise by their numbers: rows may be in that order."""

    def by_numbers(path: Path) -> list[tuple[int, str]]:
        parts = re.findall(r"[0-9]+|[^0-9]+", str(path))
        return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]

    for before, after in itertools.pairwise(images):
        if by_numbers(before) > by_numbers(after):
            print(
                f"siamcuda: warning: {name}: {before} is taken to come before {after}; give a list "
                "if the rows are in the order of the numbers",
                file=sys.stderr,
            )
            return


def check_outputs(outputs: Sequence[tuple[str, Path | None]], inputs: Sequence[Path]) -> None:
    """Prove that files can be written where they are asked for, before any work."""
    given = {path.resolve() for path in inputs}
    for name, path in outputs:
        if path is None:
            continue
        if path.resolve() in given:
            raise InputError(f"{name}: {path} is one of the files to read")
        if path.is_dir():
            raise InputError(f"{name}: {path} is a folder, a file is expected")
        check_folder(path.parent, name)


def check_folder(folder: Path, name: str) -> None:
    """Prove that a folder is there and can be written to."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        reason = error.strerror or os.fspath(folder)
        raise InputError(f"{name}: cannot write to the folder {folder}: {reason}") from error
