"""IDX files (MNIST's format): a magic number, big-endian lengths of the axes, the values.

The magic number is two zero bytes, a byte for the dtype and one for the number of axes. Compressed
files (gzip) are told by their first bytes, whatever their names.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from siamcuda.train.errors import InputError

__all__ = ["read_idx"]

_DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
#: gzip can't make less than this of a byte: what a file can hold is known before it is read.
_MOST_OF_A_BYTE = 1032
_PART = 1 << 20


def read_idx(path: Path) -> Tensor:
    """Read an IDX file, plain or compressed, its header compared with its size first.

    Returns:
        Its values in its own shape: uint8, int8, int16, int32, float32 or float64.

    Raises:
        InputError: names the file that is missing, cut short, too long or no IDX file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                file.seek(0)
                with gzip.open(file) as unpacked:  # reads as a BinaryIO does, and is typed as none
                    return _read(unpacked, size * _MOST_OF_A_BYTE)  # type: ignore[arg-type]
            file.seek(0)
            return _read(file, size)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"data: cannot read the IDX file {path}: {reason}") from error


def _read(file: BinaryIO, most: int) -> Tensor:
    """Read a file that can't hold more than ``most`` bytes."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or magic[3] == 0:
        raise ValueError(f"it begins with {magic.hex(' ') or 'nothing'}, which no IDX file does")
    dtype, axes = _DTYPES[magic[2]], magic[3]
    lengths = file.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise ValueError(f"cut short within the lengths of its {axes} axes")
    shape = tuple(int(n) for n in np.frombuffer(lengths, ">u4"))
    needed = math.prod(shape) * dtype.itemsize
    if max(needed, math.prod(max(n, 1) for n in shape)) >= 1 << 62:
        raise ValueError(f"no file holds the shape {shape} of its header")
    if needed > most:
        raise ValueError(f"cut short: shape {shape} needs {needed} bytes")
    values = bytearray()
    while len(values) <= needed:  # one byte beyond shows that there is more
        part = file.read(min(_PART, needed + 1 - len(values)))
        if not part:
            break
        values += part
    if len(values) != needed:
        what = "cut short" if len(values) < needed else "too long"
        raise ValueError(f"{what}: shape {shape} needs {needed} bytes")
    array = np.frombuffer(values, dtype).reshape(shape)
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))
