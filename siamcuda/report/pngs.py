"""The plots of an evaluation as PNG files."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from siamcuda._files import write_atomically
from siamcuda.report import summary
from siamcuda.report.drawing import to_png
from siamcuda.report.figures import LIGHT, draw
from siamcuda.verification import Calibrator, VerificationReport

__all__ = ["write_pngs"]


def write_pngs(
    folder: str | Path,
    report: VerificationReport,
    *,
    far: float | Iterable[float] | None = None,
    calibrator: Calibrator | None = None,
    names: Collection[str] | None = None,
) -> list[Path]:
    """Write the plots of the page into a folder that is there; return their paths.

    ``names`` are those of the plots wanted ("histogram", "roc", ...); by default all.
    """
    plots, _ = draw(report, summary.asked_rates(report, far), calibrator)
    paths = []
    for plot in plots:
        if names is not None and plot.name not in names:
            continue
        plot.figure.suptitle(plot.title, fontsize=11, color=LIGHT["ink"])
        paths.append(Path(folder) / f"{plot.name}.png")
        write_atomically(paths[-1], to_png(plot.figure))
    return paths
