"""Who hears how a training goes: a bar on the terminal, TensorBoard, several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siamcuda.train.state import EpochStats
from siamcuda.train.trainer import Listener

__all__ = ["Bar", "Listeners", "TensorBoard", "listening"]

#: Steps between two at which the bar asks for the loss, which waits for a GPU.
ASK_EVERY = 20


class Bar(Listener):
    """A progress bar over all steps, where the terminal can draw one."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Any = None
        self.steps = 0

    def began(self, epochs: int, steps: int) -> None:
        """Draw it empty."""
        from tqdm import tqdm

        self.steps = steps
        self.bar = tqdm(total=epochs * steps, desc=self.title, unit="step", disable=None)

    def stepped(self, epoch: int, step: int, loss: Callable[[], float]) -> None:
        """Move it on."""
        self._reach(epoch * self.steps + step)
        if step % ASK_EVERY == 1 and not self.bar.disable:
            self.bar.set_postfix(epoch=epoch + 1, loss=f"{loss():.3g}", refresh=False)

    def ended(self, stats: EpochStats) -> None:
        """Show what an epoch left."""
        self._reach(stats.epoch * self.steps)
        shown = {"loss": stats.loss, **stats.validation}
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()}, refresh=False)

    def _reach(self, place: int) -> None:
        if place > self.bar.n:
            self.bar.update(place - self.bar.n)

    def close(self) -> None:
        """Leave it as it is."""
        if self.bar is not None:
            self.bar.close()


class TensorBoard(Listener):
    """Scalars of each epoch, for ``tensorboard --logdir``.

    A resumed run tells the epochs of its state again, so what it finds in the folder is replaced.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if folder.is_dir():
            for events in folder.glob("events.out.tfevents.*"):
                events.unlink()
        self.writer: Any = SummaryWriter(str(folder))

    def ended(self, stats: EpochStats) -> None:
        """Write an epoch."""
        scalars = {"loss": stats.loss, "learning_rate": stats.learning_rate}
        scalars |= {f"train/{name}": value for name, value in stats.figures.items()}
        scalars |= {f"validation/{name}": value for name, value in stats.validation.items()}
        scalars["rows_per_second"] = stats.rows / max(stats.seconds, 1e-9)
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, stats.epoch)
        self.writer.flush()

    def close(self) -> None:
        """End the file."""
        self.writer.close()


class Listeners(Listener):
    """Several at once."""

    def __init__(self, *others: Listener) -> None:
        self.others = others

    def began(self, epochs: int, steps: int) -> None:
        """Tell all."""
        for other in self.others:
            other.began(epochs, steps)

    def stepped(self, epoch: int, step: int, loss: Callable[[], float]) -> None:
        """Tell all."""
        for other in self.others:
            other.stepped(epoch, step, loss)

    def ended(self, stats: EpochStats) -> None:
        """Tell all."""
        for other in self.others:
            other.ended(stats)


@contextmanager
def listening(title: str, folder: Path | None) -> Iterator[Listeners]:
    """A bar, and TensorBoard where a folder is given; closed in the end, whatever happens."""
    bar = Bar(title)
    board = TensorBoard(folder) if folder is not None else None
    try:
        yield Listeners(bar, board) if board is not None else Listeners(bar)
    finally:
        bar.close()
        if board is not None:
            board.close()
