"""The training loop: a config, a loop over epochs, a state on disk from which it goes on.

Nothing in it is drawn from a generator that outlives an epoch: batches, views and pairs of epoch e
depend on (seed, e) alone. So the state is the weights, the optimizer's moments and the epoch, and a
resumed run ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import siamcuda
from siamcuda.train.augment import Augmentation, random_views
from siamcuda.train.encoders import ENCODERS, FACES, INPUT_SIZE, EncoderConfig, build_encoder
from siamcuda.train.errors import InputError
from siamcuda.train.samplers import PeopleSampler, balanced_pairs, epoch_seed
from siamcuda.train.storage import load_tensors, load_weights, save_tensors

__all__ = ["EpochStats", "TrainConfig", "train"]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights, apart from the pictures."""

    encoder: Literal["small", "chopra2005"] = "small"  # a modern convnet, or the paper's
    embedding: int = 128  # length of the embedding
    q: float = 4.0  # Q of the Chopra loss
    energy: Literal["l2", "l1"] = "l2"  # distance between two embeddings
    epochs: int = 100
    people_per_batch: int = 32
    pictures_per_person: int = 4
    hard: float = 1.0  # share of the impostor pairs that are the closest of the batch
    learning_rate: float = 2e-3  # peak; rises over a tenth of the steps, falls as a cosine
    weight_decay: float = 0.05
    save_every: int = 10  # epochs between two states to resume from
    seed: int = 0
    augment: Augmentation = field(default_factory=Augmentation)

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        if self.encoder not in ENCODERS:
            raise InputError(f"encoder: {self.encoder!r} is none of {', '.join(ENCODERS)}")
        if self.energy not in ("l1", "l2"):
            raise InputError(f"energy: {self.energy!r} is neither 'l1' nor 'l2'")
        least = {"embedding": 1, "epochs": 1, "people_per_batch": 2, "pictures_per_person": 2}
        for name, minimum in {**least, "save_every": 1, "seed": 0}.items():
            if getattr(self, name) < minimum:
                raise InputError(f"{name}: must be at least {minimum}, got {getattr(self, name)}")
        for name in ("q", "learning_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name}: must be finite and > 0, got {getattr(self, name)}")
        for name, value in {"weight_decay": self.weight_decay, **asdict(self.augment)}.items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}: must be finite and >= 0, got {value}")
        chances = {"hard": self.hard, "erase": self.augment.erase, "flip": self.augment.flip}
        for name, value in chances.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name}: must lie in [0, 1], got {value}")


@dataclass(frozen=True)
class EpochStats:
    """What one epoch left: means over its batches."""

    epoch: int
    loss: float
    genuine: float  # mean energy of the genuine pairs
    impostor: float  # mean energy of the impostor pairs
    seconds: float  # it took


def train(
    config: TrainConfig,
    images: Tensor,  # (N, H, W) uint8
    labels: Tensor,  # (N,) int64
    state: Path | None = None,
    on_epoch: Callable[[EpochStats], None] = lambda stats: None,
) -> tuple[nn.Module, list[EpochStats]]:
    """Train an encoder on people's pictures; go on from ``state`` where that file exists.

    Args:
        config: every setting; checked before any work.
        images: one picture a row.
        labels: who it shows.
        state: file to save the state of training to, and to resume from. Deleting it when the
            result is safe is the caller's business.
        on_epoch: called after each epoch, also for those that the state already holds.

    Returns:
        The encoder, in evaluation mode, and one entry an epoch.
    """
    config.check()
    encoder = build_encoder(EncoderConfig(config.encoder, config.embedding), FACES, config.seed)
    optimizer = torch.optim.AdamW(_groups(encoder, config.weight_decay), lr=config.learning_rate)
    sampler = PeopleSampler(
        labels, config.people_per_batch, config.pictures_per_person, config.seed
    )
    history: list[EpochStats] = []
    if state is not None and state.exists():
        history = _restore(state, config, encoder, optimizer)
        for stats in history:
            on_epoch(stats)

    encoder.train()
    for epoch in range(len(history), config.epochs):
        stats = _run_epoch(config, epoch, encoder, optimizer, sampler, images, labels)
        history.append(stats)
        if not math.isfinite(stats.loss):
            raise InputError(
                f"the loss is {stats.loss} in epoch {epoch + 1}: lower learning_rate "
                f"(now {config.learning_rate:g})"
            )
        last = epoch + 1 == config.epochs
        if state is not None and (last or (epoch + 1) % config.save_every == 0):
            _save(state, config, encoder, optimizer, history)
        on_epoch(stats)
    return encoder.eval(), history


def _run_epoch(
    config: TrainConfig,
    epoch: int,
    encoder: nn.Module,
    optimizer: torch.optim.Optimizer,
    sampler: PeopleSampler,
    images: Tensor,
    labels: Tensor,
) -> EpochStats:
    started = time.perf_counter()
    generator = torch.Generator().manual_seed((1 << 40) + epoch_seed(config.seed, epoch))
    sums = torch.zeros(3, dtype=torch.float64)
    for batch, rows in enumerate(sampler.epoch(epoch)):
        progress = (epoch + batch / len(sampler)) / config.epochs
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(progress)
        views = random_views(images[rows], INPUT_SIZE, config.augment, generator)
        embeddings = encoder(views)
        i, j, target = balanced_pairs(labels[rows], embeddings, config.hard, generator)
        x1, x2 = embeddings[i], embeddings[j]
        loss = siamcuda.chopra_loss(x1, x2, target, q=config.q, energy=config.energy)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            energy = (x1 - x2).norm(p=1 if config.energy == "l1" else 2, dim=1)
            means = [loss, energy[target == 0].mean(), energy[target == 1].mean()]
            sums += torch.stack(means).double()
    loss_mean, genuine, impostor = (sums / len(sampler)).tolist()
    return EpochStats(epoch + 1, loss_mean, genuine, impostor, time.perf_counter() - started)


def schedule(progress: float, warm_up: float = 0.1) -> float:
    """Share of the peak learning rate at ``progress`` in [0, 1): a linear rise, then a cosine."""
    if progress < warm_up:
        return 0.05 + 0.95 * progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def _groups(encoder: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels; none for biases, gains and norms."""
    matrices = [p for p in encoder.parameters() if p.ndim > 1 and p.shape[-1] * p.shape[-2] > 1]
    others = [p for p in encoder.parameters() if not any(p is m for m in matrices)]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _save(
    path: Path,
    config: TrainConfig,
    encoder: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[EpochStats],
) -> None:
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    run = {"config": asdict(config), "history": [asdict(stats) for stats in history]}
    save_tensors(path, tensors, {"run": json.dumps(run)})


def _restore(
    path: Path, config: TrainConfig, encoder: nn.Module, optimizer: torch.optim.Optimizer
) -> list[EpochStats]:
    tensors, metadata = load_tensors(path)
    try:
        run = json.loads(metadata["run"])
        found, history = run["config"], [EpochStats(**stats) for stats in run["history"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"checkpoint: {path} is broken: no state of a run in it") from error
    if found != asdict(config):
        raise InputError(f"checkpoint: {path} belongs to a run with other settings")
    weights: dict[str, Tensor] = {}
    moments: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "encoder":
            weights[name] = tensor
        else:
            index, _, moment = name.partition(".")
            moments.setdefault(index, {})[moment] = tensor
    groups = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for position, parameter in enumerate(parameters):
        shapes = {name: t.shape for name, t in moments.get(str(position), {}).items()}
        if shapes != {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
            raise InputError(f"checkpoint: {path} is broken: moments of parameter {position}")
    load_weights(encoder, weights, path)
    numbered = {position: moments[str(position)] for position in range(len(parameters))}
    optimizer.load_state_dict({"state": numbered, "param_groups": groups})
    return history
