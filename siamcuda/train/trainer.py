"""The training loop: a system, a config, and a state on disk from which it goes on.

Nothing in it is drawn from a generator that outlives an epoch: batches, views and dropout of epoch
e follow (seed, e). So the state is the weights, the optimizer's moments, the position, and within
an epoch the states of two generators; a resumed run ends with the bits of one that was never
interrupted. Ctrl-C and SIGTERM end the running step, save, and raise KeyboardInterrupt.

With several ranks (torchrun) each encodes its share of every batch; losses over a batch are those
of the joined one (siamcuda.distributed), gradients are added by DistributedDataParallel.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from siamcuda.grad_cache import cached_step
from siamcuda.train.config import TrainConfig
from siamcuda.train.errors import InputError
from siamcuda.train.loader import batches
from siamcuda.train.placement import Placement, kept_random_state
from siamcuda.train.samplers import epoch_seed
from siamcuda.train.state import EpochStats, Position, load_state, save_state
from siamcuda.train.system import Outcome, System

__all__ = ["Fitted", "Listener", "fit"]

#: Steps between two of which the objective tells figures beside the loss.
TELL_EVERY = 10


class Listener:
    """Hears how a training goes; a progress bar, a log. Every method does nothing by default."""

    def began(self, epochs: int, steps: int) -> None:
        """Before the first step: epochs in all, steps of one."""

    def stepped(self, epoch: int, step: int, loss: Callable[[], float]) -> None:
        """After a step; asking for the loss waits for a GPU."""

    def ended(self, stats: EpochStats) -> None:
        """After an epoch, also for those that a resumed state already holds."""


@dataclass(frozen=True)
class Fitted:
    """What training made: the system's modules hold the weights."""

    history: list[EpochStats]
    epoch: int  # whose weights the modules hold: the best one where there is a validation


def fit(
    system: System,
    config: TrainConfig,
    *,
    state: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
) -> Fitted:
    """Train the system's model; go on from ``state`` where that file exists.

    Args:
        system: examples, sampler, model and objective. The model is trained in place, and is in
            evaluation mode in the end.
        config: every setting; checked before any work.
        state: file to save the state to and to resume from. Deleting it when the result is safe is
            the caller's business.
        settings: what else decides the weights, written into the state: a state of other settings,
            of other examples or of another architecture is refused.
        listener: is told of each epoch.

    Raises:
        InputError: a setting that cannot work, a state that does not fit, a loss that is not
            finite, a disk that is full (the last state is kept).
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state of the last step is saved before.
    """
    config.check()
    run = _Run(system, config, state, settings or {}, listener or Listener())
    with kept_random_state(run.place.device):
        return run.fit()


class _Run:
    """One training in this process."""

    def __init__(
        self, system: System, config: TrainConfig, path: Path | None, settings: Mapping[str, Any],
        listener: Listener,
    ) -> None:  # fmt: skip
        self.system, self.config, self.path, self.listener = system, config, path, listener
        self.place = Placement(config)
        self.modules: dict[str, nn.Module] = {"model": system.model}
        if isinstance(system.objective, nn.Module):
            self.modules["objective"] = system.objective.to(self.place.device)
        if config.chunk:
            _refuse_batch_norm(system.model)
        self.model, self.encode = self.place.place(system.model)
        self.optimizer = _optimizer(config, list(self.modules.values()))
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.settings = {
            "train": asdict(config), "examples": system.examples.digest(),
            "ranks": self.place.ranks, **settings,
        }  # fmt: skip
        self.position = Position()
        self.best: dict[str, Tensor] = {}
        self.generator = torch.Generator()
        self.sums: dict[str, tuple[Tensor, int]] = {}  # of the running epoch
        self.resumed: dict[str, Tensor] = {}  # states of generators, one for each rank

    def fit(self) -> Fitted:
        config, position = self.config, self.position
        if self.path is not None and self.path.exists():
            position = self._resume(self.path)
        self.listener.began(config.epochs, len(self.system.sampler))
        for stats in position.history:
            self.listener.ended(stats)
        with _interruptible() as interrupted:
            while len(position.history) < config.epochs and not self._stale():
                self._epoch(interrupted)
        return self._result()

    # --- one epoch --------------------------------------------------------------------------------

    def _epoch(self, interrupted: Callable[[], bool]) -> None:
        config, position = self.config, self.position
        epoch = len(position.history)
        rows = self.system.sampler.epoch(epoch)
        self._seed(epoch)
        started = time.perf_counter() - position.seconds
        self.model.train()
        left = rows[position.step :]
        pin = self.place.device.type == "cuda"
        for chosen, stored in batches(self.system.examples, left, config.workers, pin):
            progress = (epoch + position.step / len(rows)) / config.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = config.learning_rate * config.share_of_peak(progress)
            outcome = self._step(chosen, stored)
            self._add(outcome)
            position.step += 1
            self.listener.stepped(epoch, position.step, outcome.loss.item)
            if position.step < len(rows) and self._stops(interrupted):
                position.seconds = time.perf_counter() - started
                self._save()
                raise KeyboardInterrupt
        stops = self.place.any(interrupted())
        self._close(epoch, sum(len(one) for one in rows), started, save=stops)
        if stops:
            raise KeyboardInterrupt

    def _stops(self, interrupted: Callable[[], bool]) -> bool:
        """Whether any rank was interrupted; asked now and then where asking costs a message."""
        if self.place.ranks > 1 and self.position.step % TELL_EVERY:
            return False
        return self.place.any(interrupted())

    def _step(self, chosen: Tensor, stored: Tensor) -> Outcome:
        device = self.place.device
        labels = self.system.examples.labels[chosen].to(device, non_blocking=True)
        # Views are drawn on the CPU, so that they are the same wherever the model runs.
        inputs = self.system.transform(stored, self.generator).to(device, non_blocking=True)
        tell = self.position.step % TELL_EVERY == 0
        told: list[Outcome] = []

        def loss_of(outputs: Tensor) -> Tensor:
            with torch.autocast(device.type, enabled=False):
                objective = self.system.objective
                told.append(objective(outputs.float(), labels, self.generator, tell))
            return told[0].loss

        self.optimizer.zero_grad(set_to_none=True)
        if self.config.chunk:
            with self.place.autocast():
                cached_step(
                    self.encode, inputs.split(self.config.chunk), loss_of, scale=self.place.scaled
                )
        else:
            with self.place.autocast():
                outputs = self.encode(inputs)
            self.place.scaled(loss_of(outputs)).backward()
        own = self.modules.get("objective")
        if own is not None:
            self.place.mean([p.grad for p in own.parameters() if p.grad is not None])
        self.place.step(self.optimizer, self.parameters)
        loss = told[0].loss.detach()
        return Outcome(loss, told[0].figures)

    def _add(self, outcome: Outcome) -> None:
        """Add up where the figures are: bringing one home would wait for a GPU."""
        for name, value in {"loss": outcome.loss, **outcome.figures}.items():
            total, count = self.sums.get(name, (torch.zeros((), dtype=torch.float64), 0))
            self.sums[name] = (total.to(value.device) + value.detach().double(), count + 1)

    def _close(self, epoch: int, rows: int, started: float, save: bool) -> None:
        """End an epoch: its figures, validation, state."""
        config, position = self.config, self.position
        means = {name: total.item() / count for name, (total, count) in self.sums.items()}
        loss = means.pop("loss", 0.0)
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} in epoch {epoch + 1}: lower learning_rate "
                f"(now {config.learning_rate:g})"
            )
        last = epoch + 1 == config.epochs
        validation: dict[str, float] = {}
        if self.system.validate and (last or (epoch + 1) % config.validate_every == 0):
            validation = self._validate(epoch + 1)
        rate = self.optimizer.param_groups[0]["lr"]
        stats = EpochStats(
            epoch + 1, loss, means, validation, rate, rows * self.place.ranks,
            time.perf_counter() - started,
        )  # fmt: skip
        position.history.append(stats)
        position.step, position.seconds, self.sums = 0, 0.0, {}
        if save or last or self._stale() or (epoch + 1) % config.save_every == 0:
            self._save()
        self.listener.ended(stats)

    def _validate(self, epoch: int) -> dict[str, float]:
        assert self.system.validate is not None
        self.model.eval()
        figures: dict[str, float] = {}
        if self.place.rank == 0:
            with torch.inference_mode():
                figures = dict(self.system.validate(self.model))
        figures = self.place.from_first(figures)
        self.model.train()
        position, value = self.position, figures[self.system.figure]
        if position.best is None or value < position.best:
            position.best, position.best_epoch, position.stale = value, epoch, 0
            self.best = {
                f"best.{kind}.{name}": tensor.detach().clone()
                for kind, module in self.modules.items()
                for name, tensor in module.state_dict().items()
            }
        else:
            position.stale += 1
        return figures

    def _stale(self) -> bool:
        return 0 < self.config.patience <= self.position.stale

    # --- state ------------------------------------------------------------------------------------

    def _seed(self, epoch: int) -> None:
        """Generators of an epoch, from its beginning or from where it was interrupted."""
        seed = (1 << 40) + epoch_seed(self.config.seed, epoch)
        seed += self.place.rank << 48
        self.generator.manual_seed(seed)
        torch.manual_seed(seed)
        if self.resumed:
            own = {name: states[self.place.rank] for name, states in self.resumed.items()}
            self.resumed = {}
            self.generator.set_state(own["views"])
            torch.set_rng_state(own["torch"])
            if "cuda" in own:
                torch.cuda.set_rng_state(own["cuda"], self.place.device)

    def _save(self) -> None:
        if self.path is None:
            return
        position, extra = self.position, dict(self.best)
        if position.step:
            own = {"views": self.generator.get_state(), "torch": torch.get_rng_state()}
            if self.place.device.type == "cuda":
                own["cuda"] = torch.cuda.get_rng_state(self.place.device)
            extra |= {name: torch.stack(self.place.gather(t)) for name, t in own.items()}
        position.sums = {name: (total.item(), count) for name, (total, count) in self.sums.items()}
        position.scale = self.place.scale
        if self.place.rank == 0:
            save_state(self.path, self.settings, position, self.modules, self.optimizer, extra)
        self.place.wait()

    def _resume(self, path: Path) -> Position:
        self.position, extra = load_state(path, self.settings, self.modules, self.optimizer)
        self.place.scale = self.position.scale
        self.best = {name: t for name, t in extra.items() if name.startswith("best.")}
        self.resumed = {name: t for name, t in extra.items() if name not in self.best}
        self.sums = {
            name: (torch.tensor(total, dtype=torch.float64), count)
            for name, (total, count) in self.position.sums.items()
        }
        return self.position

    def _result(self) -> Fitted:
        """Put the weights that count into the modules."""
        epoch = len(self.position.history)
        if self.best:
            epoch = self.position.best_epoch
            for kind, module in self.modules.items():
                prefix = f"best.{kind}."
                weights = {
                    name.removeprefix(prefix): tensor
                    for name, tensor in self.best.items()
                    if name.startswith(prefix)
                }
                module.load_state_dict(weights)
        for module in self.modules.values():
            module.eval()
        return Fitted(self.position.history, epoch)


def _refuse_batch_norm(model: nn.Module) -> None:
    """It would see a chunk instead of the batch, and the gradient would be another."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"chunk: gradient caching needs a model without batch normalisation, this one has "
                f"{type(module).__name__} ({name}); use GroupNorm or LayerNorm"
            )


def _optimizer(config: TrainConfig, modules: list[nn.Module]) -> torch.optim.Optimizer:
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim > 1 and p.shape[-1] * p.shape[-2] > 1]
    kept = {id(p) for p in matrices}
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) not in kept], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, config.learning_rate, config.momentum, nesterov=config.momentum > 0
        )
    return torch.optim.AdamW(groups, lr=config.learning_rate)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C and SIGTERM instead of raising; a second one raises at once."""
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    kinds = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {kind: signal.signal(kind, note) for kind in kinds}
    try:
        yield lambda: bool(asked)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
