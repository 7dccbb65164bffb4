"""Files that hold a matrix: .npy, safetensors and raw memory maps, read a part at a time.

Nothing is unpickled and nothing is mapped: a file that shrinks while it is read gives an error, not
a signal. Headers are checked against the file's size before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siamcuda._files import writing_atomically

__all__ = ["Matrix", "load_safetensors", "open_matrix", "save_safetensors"]

#: safetensors' names of dtypes.
_DTYPES: dict[str, torch.dtype] = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "U8": torch.uint8,
    "I64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_NUMPY: dict[np.dtype[Any], torch.dtype] = {
    np.dtype("<f2"): torch.float16,
    np.dtype("<f4"): torch.float32,
    np.dtype("<f8"): torch.float64,
    np.dtype("u1"): torch.uint8,
}
#: Bytes of a safetensors header, as its own library limits them.
_MOST_HEADER = 100_000_000


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Rows of a file, ``[rows, columns]`` of ``dtype`` from byte ``offset`` on."""

    path: Path
    offset: int
    rows: int
    columns: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.columns * self.dtype.itemsize

    def check_size(self) -> None:
        """Raise ValueError if the file is too short for what its header says."""
        size = self.path.stat().st_size
        needed = self.offset + self.rows * self.row_bytes
        if size < needed:
            raise ValueError(
                f"{self.path}: truncated: {self.rows} rows of {self.columns} {self.dtype} need "
                f"{needed} bytes, the file has {size}"
            )

    def read(self, first: int, out: Tensor) -> None:
        """Fill ``out``, ``[n, columns]`` contiguous, with rows from ``first`` on."""
        if out.numel() == 0:
            return
        view = _bytes_of(out)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + first * self.row_bytes)
            done = 0
            while done < len(view):
                got = file.readinto(view[done:])
                if not got:
                    raise ValueError(
                        f"{self.path}: became shorter while it was read: row "
                        f"{first + done // max(self.row_bytes, 1)} of {self.rows} is not there"
                    )
                done += got


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor that is not empty."""
    array: Any = tensor.view(torch.uint8).numpy()
    return memoryview(array).cast("B")


def open_matrix(source: str | os.PathLike[str] | np.memmap[Any, Any]) -> Matrix:
    """Read and check the header of a .npy or safetensors file, or of a memory map.

    Args:
        source: path of a ``.npy`` file, of a ``.safetensors`` file that holds ``vectors``, or a
            two-dimensional C-contiguous ``numpy.memmap`` (its file is read, not the map).

    Raises:
        ValueError: names the file and what of it is not as it must be.
        TypeError: the dtype is none of float16, bfloat16, float32, float64, uint8.
    """
    if isinstance(source, np.memmap):
        return _from_map(source)
    path = Path(source)
    if path.suffix == ".safetensors":
        found = _header(path)[0]
        if "vectors" not in found:
            raise ValueError(f"{path}: holds no tensor 'vectors', only {sorted(found)}")
        dtype, shape, offset = found["vectors"]
        return _checked(path, dtype, shape, offset)
    return _from_npy(path)


def _checked(path: Path, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> Matrix:
    if len(shape) != 2:
        raise ValueError(f"{path}: a matrix is expected, got shape {tuple(shape)}")
    matrix = Matrix(path, offset, shape[0], shape[1], dtype)
    matrix.check_size()
    return matrix


def _dtype_of(path: Path, dtype: np.dtype[Any]) -> torch.dtype:
    if dtype not in _NUMPY:
        raise TypeError(
            f"{path}: float16, float32, float64 or uint8 in little-endian order is expected, got "
            f"dtype {dtype.str!r}"
        )
    return _NUMPY[dtype]


def _from_map(source: np.memmap[Any, Any]) -> Matrix:
    if source.filename is None:
        raise ValueError("vectors: the memory map has no file behind it")
    path = Path(os.fsdecode(source.filename))
    if source.ndim != 2 or not source.flags.c_contiguous:
        raise ValueError(
            f"{path}: a C-contiguous two-dimensional memory map is expected, got shape "
            f"{source.shape} and strides {source.strides}"
        )
    # A view of a map keeps the offset of the whole map: count from where the data lies.
    whole = source
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    lead = source.ctypes.data - whole.ctypes.data
    offset = int(whole.offset) + lead
    return _checked(path, _dtype_of(path, source.dtype), source.shape, offset)


def _from_npy(path: Path) -> Matrix:
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read is None:
                raise ValueError(f"version {version} of the format is not known")
            shape, fortran, dtype = read(file)
        except ValueError as error:
            raise ValueError(f"{path}: not a .npy file that can be read: {error}") from error
        offset = file.tell()
    if dtype.hasobject:
        raise TypeError(f"{path}: holds Python objects, which are never unpickled")
    if fortran and len(shape) == 2 and 1 not in shape:
        raise ValueError(f"{path}: rows must lie in C order, this file is in Fortran order")
    return _checked(path, _dtype_of(path, dtype), shape, offset)


# --- safetensors: 8 bytes that say how long the header is, the header in JSON, the data -----------


def _header(
    path: Path,
) -> tuple[dict[str, tuple[torch.dtype, tuple[int, ...], int]], dict[str, str]]:
    """What tensors a file holds: dtype, shape and offset of each; and its metadata."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_MOST_HEADER, size - 8):
            raise ValueError(f"{path}: not a safetensors file, or truncated ({size} bytes)")
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        tensors = {}
        for name, entry in header.items():
            dtype, shape = _DTYPES.get(entry["dtype"]), tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
            if dtype is None or not whole or end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"tensor {name!r} is not described as it must be: {entry}")
            if 8 + length + end > size:
                raise ValueError(f"truncated: tensor {name!r} ends beyond the file's {size} bytes")
            tensors[name] = (dtype, shape, 8 + length + begin)
        if not all(isinstance(v, str) for pair in metadata.items() for v in pair):
            raise ValueError("metadata must map text to text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a safetensors file that can be read: {error}") from error
    return tensors, metadata


def save_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and metadata as a safetensors file: whole or not at all."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with writing_atomically(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            for part in _parts(tensor):
                file.write(_bytes_of(part))


def _parts(tensor: Tensor, size: int = 1 << 24) -> Iterator[Tensor]:
    """The tensor's elements in order, on the CPU, a bounded number of bytes at a time."""
    if tensor.numel() == 0:
        return
    rows = max(1, size * len(tensor) // max(tensor.numel() * tensor.element_size(), 1))
    for part in tensor.split(rows):
        yield part.cpu().contiguous()


def load_safetensors(
    path: Path, skip: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a safetensors file but those to ``skip``, and its metadata.

    Raises:
        ValueError: the file is not one, or is truncated.
    """
    described, metadata = _header(path)
    tensors = {}
    for name, (dtype, shape, offset) in described.items():
        if name in skip:
            continue
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel():
            Matrix(path, offset, 1, tensor.numel(), dtype).read(0, tensor.view(1, -1))
        tensors[name] = tensor
    return tensors, metadata
