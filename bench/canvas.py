"""What every picture is drawn on: a figure, its signature, its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.cells import Row

#: Behind a number, so that a goal's line does not cross it.
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


def figure_of(width: float, height: float, panels: int = 1) -> tuple[Any, list[Any]]:
    # Without pyplot: no window system, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _caption(rows: Sequence[Row]) -> str:
    row = rows[-1]
    return (
        f"{row['cpu']}, {row['cores']} cores, {row['simd']}; torch {row['torch']}; "
        f"commit {row['commit']}, {row['date'][:10]}"
    )


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, dpi=120, format="png", metadata={"Software": None})
    temporary.replace(path)


def sign(figure: Any, rows: Sequence[Row]) -> None:
    figure.supxlabel(_caption(rows), fontsize=6.5, color="#44546a")
