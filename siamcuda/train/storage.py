"""Files of a run: every save is a temporary file, fsync and rename; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from siamcuda._files import write_atomically
from siamcuda.train.errors import InputError

__all__ = [
    "load_json",
    "load_tensors",
    "load_weights",
    "open_folder",
    "save_json",
    "save_tensors",
    "tensor_digest",
]


def open_folder(folder: Path, argument: str = "out") -> None:
    """Create ``folder`` if need be and prove that it can be written to, before any work starts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise InputError(f"{argument}: cannot write to the folder {folder}: {error}") from error


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON; NaN is refused, since JSON has none."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or say which file is broken."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"cannot read {path}: an object is expected, found {type(content).__name__}"
        )
    return content


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name, and short texts, as safetensors.

    safetensors orders several texts by chance; one text alone keeps the file the same bit for bit.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, dict(metadata or {})))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what :func:`save_tensors` wrote; safetensors checks sizes and header before use."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"checkpoint: {path} is missing or broken: {error}") from error


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put ``tensors`` into ``module`` if every name, shape and dtype fits; else change nothing."""
    wanted = module.state_dict()
    if wanted.keys() != tensors.keys():
        differ = sorted(wanted.keys() ^ tensors.keys())
        raise InputError(f"checkpoint: {path} does not fit the encoder; it differs in {differ[:4]}")
    for name, tensor in wanted.items():
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise InputError(
                f"checkpoint: {path}: {name} is {tuple(found.shape)} {found.dtype}, "
                f"expected {tuple(tensor.shape)} {tensor.dtype}"
            )
    module.load_state_dict(dict(tensors))


def tensor_digest(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> str:
    """SHA-256 of tensors and of what JSON says of them: safetensors has no checksum of its own."""
    digest = hashlib.sha256(json.dumps(described).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
