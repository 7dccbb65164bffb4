"""A run: the options that all have, its folder, and who does what in it.

A folder holds::

    config.json                  every setting and a digest of the examples
    training_state.safetensors   while training: where to go on from
    tensorboard/                 curves, for tensorboard --logdir
    checkpoint.safetensors       the trained system: siamcuda.train.siamese.Siamese.load
    calibrator.json              from distances to similarities
    history.json, training.png   figures by epoch
    *.png                        pictures, and what else a recipe leaves
    metrics.json                 the figures, written last: a folder that has it is finished

Of several ranks (torchrun) all train, and the first one does the rest: it owns the folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

import siamcuda
from siamcuda._files import write_atomically
from siamcuda.report import plots
from siamcuda.train.config import TrainConfig, check_choices, check_least
from siamcuda.train.errors import InputError
from siamcuda.train.listeners import listening
from siamcuda.train.placement import Placement, rank_and_ranks
from siamcuda.train.siamese import CALIBRATOR, CHECKPOINT
from siamcuda.train.storage import load_json, open_folder, save_json
from siamcuda.train.system import System
from siamcuda.train.trainer import fit

__all__ = ["RunFolder", "RunOptions", "using_threads"]


@dataclass(frozen=True)
class RunOptions:
    """Options of every recipe; a recipe adds its own and its defaults."""

    out: Path = Path("runs/run")  # run folder; a run that was interrupted there goes on
    fresh: bool = False  # forget what an earlier run left in the folder
    threads: int = 0  # CPU threads; the last bits follow their number. 0: PyTorch's own choice
    train: TrainConfig = field(default_factory=lambda: TrainConfig(device="cpu"))

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_choices(self)
        check_least(self, threads=0)
        for part in fields(self):  # what can check itself does
            check = getattr(getattr(self, part.name), "check", None)
            if check is not None:
                check()

    def config(self, **others: Any) -> dict[str, Any]:
        """All that decides the figures: what a run folder is claimed with."""
        return {"train": asdict(self.train), "threads": self.threads, **others}


class _HelpedError(Exception):
    """This rank has helped to train; the first one goes on."""


@dataclass(frozen=True)
class RunFolder:
    """One run of a recipe."""

    path: Path
    files: tuple[str, ...]  # what the recipe writes beside what stands above: pictures, trials

    @property
    def state(self) -> Path:
        """Where to go on from."""
        return self.path / "training_state.safetensors"

    @property
    def finished(self) -> dict[str, Any] | None:
        """What metrics.json holds, None for a run that is not finished."""
        path = self.path / "metrics.json"
        return load_json(path) if path.exists() else None

    def claim(self, config: Mapping[str, Any], fresh: bool) -> None:
        """Write the config, or check that the folder already belongs to this very run."""
        if rank_and_ranks()[0]:
            return
        open_folder(self.path)
        if fresh:
            self.forget()
        path, wanted = self.path / "config.json", json.loads(json.dumps(config))
        if not path.exists():
            save_json(path, wanted)
            return
        found = load_json(path)
        if found != wanted:
            differ = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            raise InputError(
                f"out: {self.path} holds a run with other settings ({', '.join(differ)}); "
                "give another folder, or --fresh to replace it"
            )

    def forget(self) -> None:
        """Delete what a run of this recipe writes, and nothing else."""
        if rank_and_ranks()[0]:
            return
        names = ("metrics.json", "config.json", "history.json", "training.png")
        for name in (*names, CALIBRATOR, CHECKPOINT, self.state.name, *self.files):
            (self.path / name).unlink(missing_ok=True)
        for events in (self.path / "tensorboard").glob("events.out.tfevents.*"):
            events.unlink()

    def fit(
        self, system: System, config: TrainConfig, settings: Mapping[str, Any], title: str,
        bar: str = "training",
    ) -> dict[str, Any]:  # fmt: skip
        """Train, or go on; write history.json and training.png.

        What was trained is on the CPU in the end, where a recipe's examples are.

        Args:
            system: what is trained.
            config: how.
            settings: what else decides the weights.
            title: of the picture.
            bar: of the progress bar.

        Returns:
            Figures of the training, for metrics.json.
        """
        if rank_and_ranks()[0]:
            fit(system, config, state=self.state, settings=settings)
            raise _HelpedError
        with listening(bar, self.path / "tensorboard") as listener:
            fitted = fit(system, config, state=self.state, settings=settings, listener=listener)
        for module in (system.model, system.objective):
            if isinstance(module, nn.Module):
                module.cpu()
        history = fitted.history
        epochs = [asdict(stats) for stats in history]
        save_json(self.path / "history.json", {"epoch": fitted.epoch, "epochs": epochs})
        curve = plots.training_curve(
            [stats.loss for stats in history],
            _by_name([stats.figures for stats in history]),
            _by_name([stats.validation for stats in history]),
            title,
        )
        write_atomically(self.path / "training.png", curve)
        return {
            "epochs": len(history),
            "epoch_kept": fitted.epoch,
            "final_loss": history[-1].loss,
            "seconds_training": round(sum(stats.seconds for stats in history), 1),
            "threads": torch.get_num_threads(),
            "versions": {"siamcuda": siamcuda.__version__, "torch": torch.__version__},
        }

    def complete(
        self, options: RunOptions, config: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return the figures of a finished run; else claim the folder, make them, write them.

        Args:
            options: threads, training, and whether to begin afresh.
            config: what the folder is claimed with.
            make: trains by :meth:`fit`, tests, writes all but the figures, and returns them.
        """
        self.claim(config, options.fresh)
        _wait_for_all(options.train)  # the folder is the first rank's until here
        finished = self.finished
        if finished is not None:
            return finished
        with using_threads(options.threads):
            with suppress(_HelpedError):
                self.finish(make())
            _wait_for_all(options.train)
        # What is returned is what a finished run would return.
        return load_json(self.path / "metrics.json")

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the figures; there is nothing to go on from any more."""
        save_json(self.path / "metrics.json", metrics)
        self.state.unlink(missing_ok=True)


def _by_name(epochs: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Figures by epoch to figures by name; NaN for an epoch that has none of that name."""
    names = dict.fromkeys(name for figures in epochs for name in figures)
    return {name: [figures.get(name, math.nan) for figures in epochs] for name in names}


def _wait_for_all(config: TrainConfig) -> None:
    if rank_and_ranks()[1] > 1:
        Placement(config).wait()


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let PyTorch use ``count`` threads for a while; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
