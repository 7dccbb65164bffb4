"""Options that every recipe has."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from siamcuda.train.config import TrainConfig, check_least

__all__ = ["RunOptions"]


@dataclass(frozen=True)
class RunOptions:
    """Options of every recipe; a recipe adds its own and its defaults."""

    out: Path = Path("runs/run")  # run folder; a run that was interrupted there goes on
    fresh: bool = False  # forget what an earlier run left in the folder
    threads: int = 0  # CPU threads; the last bits follow their number. 0: PyTorch's own choice
    train: TrainConfig = field(default_factory=lambda: TrainConfig(device="cpu"))

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_least(self, threads=0)
        self.train.check()

    def config(self, **others: Any) -> dict[str, Any]:
        """All that decides the figures: what a run folder is claimed with."""
        return {"train": asdict(self.train), "threads": self.threads, **others}
