"""Where a training runs: device, precision and ranks, by accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from siamcuda.train.config import TrainConfig
from siamcuda.train.errors import InputError

__all__ = ["Placement", "find_device", "rank_and_ranks"]


class Placement:
    """One process of a training: alone, or a rank that torchrun or accelerate started."""

    def __init__(self, config: TrainConfig) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        device = find_device(config.device)
        if config.precision == "fp16" and device.type == "cpu":
            raise InputError("precision: fp16 needs a GPU; bf16 runs on the CPU too")
        AcceleratorState._reset_state(reset_partial_state=not _grouped())
        precision = "no" if config.precision == "fp32" else config.precision
        self._accelerator: Any = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
        self.device: torch.device = self._accelerator.device
        if device.type == "cuda" and device.index is not None and self.ranks == 1:
            self.device = device
        self.config = config

    @property
    def rank(self) -> int:
        """This process, from 0."""
        return int(self._accelerator.process_index)

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return int(self._accelerator.num_processes)

    @property
    def scale(self) -> float | None:
        """By how much gradients are lengthened, so that fp16 holds them."""
        scaler = self._accelerator.scaler
        return None if scaler is None else float(scaler.get_scale())

    @scale.setter
    def scale(self, value: float | None) -> None:
        scaler = self._accelerator.scaler
        if scaler is not None and value is not None:
            scaler.load_state_dict({**scaler.state_dict(), "scale": value})

    def place(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Move a model to the device; returns it, and what to call: with ranks, one that adds."""
        model.to(self.device)
        if self.ranks == 1:
            return model, model
        options: dict[str, Any] = {}
        if self.device.type == "cuda":
            options["device_ids"] = [self.device.index]
        return model, nn.parallel.DistributedDataParallel(model, **options)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which the model runs."""
        context: AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    def scaled(self, loss: Tensor) -> Tensor:
        """What is differentiated in place of the loss."""
        scaler = self._accelerator.scaler
        result: Tensor = loss if scaler is None else scaler.scale(loss)
        return result

    def step(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
        """Clip the gradients where asked and move the parameters."""
        scaler = self._accelerator.scaler
        if self.config.clip:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, self.config.clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()

    def mean(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks."""
        if self.ranks == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.ranks
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        if self.ranks == 1:
            return flag
        raised = torch.tensor([float(flag)], device=self.device)
        torch.distributed.all_reduce(raised)
        return bool(raised.item() > 0)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of each rank, on the CPU; all of one shape."""
        if self.ranks == 1:
            return [tensor]
        found: list[Any] = [None] * self.ranks
        torch.distributed.all_gather_object(found, tensor)
        return found

    def from_first(self, thing: dict[str, float]) -> dict[str, float]:
        """What the first rank has."""
        if self.ranks == 1:
            return thing
        box = [thing]
        torch.distributed.broadcast_object_list(box, 0)
        return box[0]

    def wait(self) -> None:
        """Wait until every rank is here."""
        self._accelerator.wait_for_everyone()


def rank_and_ranks() -> tuple[int, int]:
    """This process, from 0, and how many train together: what torchrun or a process group says."""
    if _grouped():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def find_device(name: str) -> torch.device:
    """The device that a setting names; auto: a GPU where there is one. InputError if not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: {name!r} is no device; cpu, cuda or auto is expected") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: {name!r}: cpu, cuda or auto is expected")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device: {name!r}: torch finds no GPU")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise InputError(f"device: {name!r}: there are {torch.cuda.device_count()} GPUs")
    return device


def _grouped() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's own generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
