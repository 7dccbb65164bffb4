"""The state of a training on disk: from it a run goes on with the bits it would have had anyway.

One safetensors file, replaced whole or not at all: whatever moment a process dies at, the file is
the last state that was saved, or the one before it. A digest of its content tells a file that was
damaged later. Nothing is put into the model unless all of it fits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from siamcuda.train.errors import InputError
from siamcuda.train.storage import load_tensors, load_weights, save_tensors, tensor_digest

__all__ = ["EpochStats", "Position", "load_state", "save_state"]


@dataclass(frozen=True)
class EpochStats:
    """What one epoch left."""

    epoch: int  # from 1
    loss: float  # mean over its batches
    figures: dict[str, float]  # what else the objective told, means over the batches it told it of
    validation: dict[str, float]  # empty where the epoch was not validated
    learning_rate: float  # of its last step
    rows: int  # examples that it encoded, on all ranks
    seconds: float  # it took, validation included


@dataclass
class Position:
    """How far a training is: all that is not a tensor of the model or the optimizer."""

    history: list[EpochStats] = field(default_factory=list)  # of finished epochs
    step: int = 0  # finished steps of the epoch that runs
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)  # of that epoch: Σ and number
    seconds: float = 0.0  # that epoch took so far
    best: float | None = None  # smallest validation figure
    best_epoch: int = 0
    stale: int = 0  # validations since
    scale: float | None = None  # of the gradients, fp16


#: Optimizer state for a parameter: "like" one has its shape, the others are 0-d.
_MOMENTS = {
    torch.optim.AdamW: {"step": False, "exp_avg": True, "exp_avg_sq": True},
    torch.optim.SGD: {"momentum_buffer": True},
}


def save_state(
    path: Path,
    config: Mapping[str, Any],
    position: Position,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Tensor],
) -> None:
    """Write everything that the rest of a training depends on.

    Args:
        path: the file, replaced.
        config: what the run was asked for; another run refuses the file.
        position: how far it is.
        modules: by name, their parameters and buffers.
        optimizer: its moments.
        extra: other tensors: states of generators, the best weights.
    """
    tensors = {f"extra.{name}": tensor for name, tensor in extra.items()}
    for kind, module in modules.items():
        tensors |= {f"{kind}.{name}": tensor for name, tensor in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": tensor
            for name, tensor in moments.items()
            if tensor is not None
        }
    run: dict[str, Any] = {"config": config, "position": asdict(position)}
    run["sha256"] = tensor_digest(tensors, run)
    try:
        save_tensors(path, tensors, {"run": json.dumps(run)})
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"checkpoint: cannot write {path}: {reason}; the state saved before is kept"
        ) from error


def load_state(
    path: Path,
    config: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
) -> tuple[Position, dict[str, Tensor]]:
    """Read what :func:`save_state` wrote into modules and optimizer, or change nothing.

    Returns:
        The position, and the other tensors by name.

    Raises:
        InputError: the file is missing, broken, of other settings or of another architecture.
    """
    tensors, metadata = load_tensors(path)
    try:
        run = json.loads(metadata["run"])
        found = run["config"]
        position = _position(run["position"])
        whole = run.pop("sha256") == tensor_digest(tensors, run)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"checkpoint: {path} is broken: no state of a run in it") from error
    if not whole:
        raise InputError(f"checkpoint: {path} is broken: its content changed since it was written")
    wanted = json.loads(json.dumps(config))
    if found != wanted:
        differ = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        raise InputError(
            f"checkpoint: {path} belongs to a run with other settings ({', '.join(differ)})"
        )
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in (*modules, "optimizer", "extra")}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind not in parts:
            raise InputError(f"checkpoint: {path} holds {kind!r}, which this run has not")
        parts[kind][name] = tensor
    moments = _moments(path, parts["optimizer"], optimizer)
    for kind, module in modules.items():
        load_weights(module, parts[kind], path)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return position, parts["extra"]


def _position(found: dict[str, Any]) -> Position:
    position = Position(**found)
    position.history = [EpochStats(**stats) for stats in found["history"]]
    position.sums = {name: (float(s), int(n)) for name, (s, n) in found["sums"].items()}
    return position


def _moments(
    path: Path, found: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """Moments by the number of their parameter, each with the names and shapes it must have."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    expected = _MOMENTS[type(optimizer)]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in found.items():
        index, _, name = key.partition(".")
        if not (index.isdecimal() and int(index) < len(parameters) and name in expected):
            raise InputError(f"checkpoint: {path} does not fit the optimizer: {key}")
        moments.setdefault(int(index), {})[name] = tensor
    for number, named in moments.items():
        like = parameters[number].shape
        shapes = {name: tensor.shape for name, tensor in named.items()}
        if shapes != {name: like if own else torch.Size() for name, own in expected.items()}:
            raise InputError(f"checkpoint: {path} is broken: moments of parameter {number}")
    return moments
