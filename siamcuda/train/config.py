"""Settings of the training loop that are the same for every system, and their checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from siamcuda.train.errors import InputError

__all__ = ["TrainConfig", "check_choices", "check_least"]


def check_least(settings: Any, **least: int) -> None:
    """Raise InputError for the first of these fields that is below its least value."""
    for name, minimum in least.items():
        if getattr(settings, name) < minimum:
            raise InputError(f"{name}: must be at least {minimum}, got {getattr(settings, name)}")


def check_choices(settings: Any) -> None:
    """Raise InputError for a field of a dataclass whose Literal type does not hold its value."""
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            allowed = ", ".join(map(str, get_args(kind)))
            raise InputError(f"{name}: {value!r} is none of {allowed}")


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn, in which precision, when to stop and when to save."""

    epochs: int = 100
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 2e-3  # peak
    momentum: float = 0.9  # of sgd, Nesterov's
    weight_decay: float = 0.05  # of matrices and kernels; none of biases, gains and norms
    schedule: Literal["cosine", "step", "constant"] = "cosine"  # after the warm-up
    warm_up: float = 0.1  # share of all steps in which the learning rate rises to its peak
    step_every: int = 30  # epochs after which a "step" schedule multiplies ...
    step_factor: float = 0.1  # ... the learning rate by this
    clip: float = 0.0  # longest gradient, L2 norm over all parameters; 0: as long as it is
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the model; losses are float32
    chunk: int = 0  # rows encoded at a time, by gradient caching; 0: the whole batch
    validate_every: int = 1  # epochs between two validations
    patience: int = 0  # validations without a better figure before training stops; 0: no matter
    save_every: int = 1  # epochs between two states to resume from
    workers: int = 0  # processes that read examples ahead; 0: the training process reads
    device: str = "auto"  # "cpu", "cuda", "cuda:1", ...; auto: a GPU where there is one
    seed: int = 0

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_choices(self)
        check_least(self, epochs=1, step_every=1, validate_every=1, save_every=1)
        check_least(self, chunk=0, patience=0, workers=0, seed=0)
        for name in ("learning_rate", "step_factor"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name}: must be finite and > 0, got {getattr(self, name)}")
        for name in ("weight_decay", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name}: must be finite and >= 0, got {getattr(self, name)}")
        for name in ("momentum", "warm_up"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: must lie in [0, 1), got {getattr(self, name)}")

    def share_of_peak(self, progress: float) -> float:
        """Learning rate at ``progress`` in [0, 1) of all epochs, as a share of the peak."""
        if progress < self.warm_up:
            return 0.05 + 0.95 * progress / self.warm_up
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (progress - self.warm_up) / (1 - self.warm_up)))
        if self.schedule == "step":
            # Progress is a quotient of whole numbers: one that should be whole may lie just below.
            epoch = math.floor(progress * self.epochs + 1e-6)
            return self.step_factor ** (epoch // self.step_every)
        return 1.0
