"""What a training leaves, drawn to PNG bytes: its curve, trials of protocols, images by pairs.

Figures are built without pyplot, so no window system and no global state of matplotlib is touched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from siamcuda.verification import VerificationReport

__all__ = [
    "distance_histogram",
    "few_colours",
    "image_pairs",
    "picture_rows",
    "roc",
    "training_curve",
]

_GENUINE, _IMPOSTOR, _NEUTRAL = "#1b7f5c", "#c8553d", "#44546a"
_PROTOCOLS = ("#2f5d9b", "#d08a1d", "#7a4b94")


def training_curve(
    loss: Sequence[float],
    figures: Mapping[str, Sequence[float]],
    validation: Mapping[str, Sequence[float]],
    title: str,
) -> bytes:
    """Draw what an epoch left against its number, all sequences of one length.

    Args:
        loss: its mean over an epoch.
        figures: told of training; mean distances where there are "genuine" and "impostor", else
            whatever there is.
        validation: told of examples kept from training; NaN where an epoch was not validated.
        title: heading of the figure.
    """
    energies = {name: figures[name] for name in ("impostor", "genuine") if name in figures}
    others = {name: values for name, values in figures.items() if name != "active"}
    panels = [("mean distance of the training pairs", energies)] if energies else []
    if others and not energies:
        panels = [("figures of the training", others)]
    if validation:
        panels.append(("validation", dict(validation)))
    figure, (first, *rest) = _axes(1 + len(panels), title)
    epochs = np.arange(1, len(loss) + 1)
    marker = "o" if len(loss) == 1 else None
    first.plot(epochs, loss, color=_NEUTRAL, marker=marker)
    first.set(xlabel="epoch", ylabel="mean loss")
    kinds = {"impostor": _IMPOSTOR, "genuine": _GENUINE}
    for axes, (what, lines) in zip(rest, panels, strict=True):
        for number, (name, values) in enumerate(lines.items()):
            known = np.isfinite(values)
            axes.plot(epochs[known], np.asarray(values)[known], marker=marker,
                      color=kinds.get(name, _PROTOCOLS[number % len(_PROTOCOLS)]),
                      label=f"{name} pairs" if name in kinds else name)  # fmt: skip
        axes.set(xlabel="epoch", ylabel=what, ylim=(0, None))
        axes.legend(frameon=False)
    for axes in (first, *rest):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _png(figure)


def distance_histogram(
    trials: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    thresholds: Mapping[str, Mapping[float, float]],
    title: str,
) -> bytes:
    """Draw genuine and impostor distances, one panel a protocol.

    Args:
        trials: protocol -> (genuine, impostor) distances.
        thresholds: protocol -> {FAR: threshold}, drawn as lines; leave a protocol out for none.
        title: heading of the figure.
    """
    figure, panels = _axes(len(trials), title)
    for axes, (protocol, (genuine, impostor)) in zip(panels, trials.items(), strict=True):
        finite = np.concatenate([genuine, impostor])
        finite = finite[np.isfinite(finite)]
        count = int(np.clip(3 * np.sqrt(len(genuine)), 15, 40))
        bins = np.linspace(0, max(float(finite.max(initial=0)) * 1.02, 1e-6), count + 1)
        for values, colour, name in (
            (impostor, _IMPOSTOR, "impostor"),
            (genuine, _GENUINE, "genuine"),
        ):
            weights = np.full(len(values), 100 / max(len(values), 1))
            axes.hist(values, list(bins), weights=weights, color=colour, alpha=0.55,
                      label=f"{name}, {len(values):,} trials")  # fmt: skip
        top = axes.get_ylim()[1] * 1.18
        axes.set_ylim(0, top)
        lines = sorted(
            (t, far) for far, t in thresholds.get(protocol, {}).items() if np.isfinite(t)
        )
        for threshold, far in lines:
            axes.axvline(threshold, color=_NEUTRAL, linewidth=1, linestyle="--")
            # The first label stands left of its line, the others right: clear of the lines.
            side, gap = ("right", -2) if threshold == lines[0][0] else ("left", 2)
            axes.annotate(f"FAR {100 * far:g} %", (threshold, top * 0.985), (gap, 0),
                          textcoords="offset points", rotation=90, fontsize=7, color=_NEUTRAL,
                          ha=side, va="top")  # fmt: skip
        axes.set(xlabel="distance", ylabel="share of the trials, %", title=protocol)
        axes.legend(frameon=False, loc="upper left", fontsize=8)
    return _png(figure)


def image_pairs(
    left: Sequence[NDArray[np.uint8]], right: Sequence[NDArray[np.uint8]],
    captions: Sequence[str], title: str, most: int = 60,
) -> bytes:  # fmt: skip
    """Draw images side by side, pair by pair, each pair with its caption.

    Args:
        left: images (H, W), grey, or (H, W, 3).
        right: as many.
        captions: as many, a few words each.
        title: heading of the figure.
        most: pairs to draw; the first ones.
    """
    count = min(len(captions), most)
    columns = min(10, max(count, 1))
    lines = -(-max(count, 1) // columns)
    figure = Figure(figsize=(1.25 * columns + 0.2, 0.95 * lines + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for index, axes in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
        axes.set_axis_off()
        if index < count:
            both = np.concatenate([left[index], right[index]], axis=1)
            axes.imshow(both, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(captions[index], fontsize=7, pad=2)
    return _png(figure)


def picture_rows(
    rows: Mapping[str, Mapping[str, NDArray[np.uint8]]], title: str, width: float = 6.0
) -> bytes:
    """Draw rows of pictures, each with a caption, in 256 colours: photographs stay small files.

    Args:
        rows: what stands before a row -> caption -> picture (H, W, 3); as many pictures in each,
            of one shape in a row.
        title: heading of the figure.
        width: of the figure, in inches.
    """
    count = max(len(pictures) for pictures in rows.values())
    shapes = [next(iter(pictures.values())).shape for pictures in rows.values()]
    heights = [width / count * height / breadth + 0.25 for height, breadth, _ in shapes]
    figure = Figure(figsize=(width, sum(heights) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(len(rows), count, squeeze=False, height_ratios=heights)
    for line, (name, pictures) in zip(panels, rows.items(), strict=True):
        for axes, (caption, picture) in zip(line, pictures.items(), strict=True):
            axes.imshow(picture, interpolation="antialiased")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_title(caption, fontsize=8, pad=3)
        line[0].set_ylabel(name, fontsize=8)
    return few_colours(_png(figure))


def few_colours(png: bytes) -> bytes:
    """Bring a PNG to a palette of 256 colours, a third of the bytes where it shows photographs."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def roc(
    reports: Mapping[str, Sequence[VerificationReport]],
    published: Mapping[float, float],
    title: str,
) -> bytes:
    """Draw true accept rate against false accept rate, FAR on a logarithmic axis.

    Args:
        reports: protocol -> one report a split; several are drawn thin, with their mean on top.
        published: {FAR: FRR} of the paper, drawn as points; may be empty.
        title: heading of the figure.
    """
    figure, (axes,) = _axes(1, title)
    least = 1e-3
    grid = np.geomspace(least, 1, 400)
    lowest = 1.0
    for colour, (protocol, splits) in zip(_PROTOCOLS, reports.items(), strict=False):
        steps = np.stack([_true_accepts(report, grid) for report in splits])
        mean = steps.mean(0)
        if len(splits) > 1:
            axes.plot(100 * grid, 100 * steps.T, color=colour, linewidth=0.6, alpha=0.3,
                      drawstyle="steps-post")  # fmt: skip
        name = f"{protocol}, mean of {len(splits)} splits" if len(splits) > 1 else protocol
        eer = np.mean([report.eer for report in splits])
        axes.plot(100 * grid, 100 * mean, color=colour, linewidth=2, drawstyle="steps-post",
                  label=f"{name} (EER {100 * eer:.1f} %)")  # fmt: skip
        lowest = min(lowest, float(mean[0]))
    if published:
        axes.plot([100 * far for far in published], [100 - 100 * frr for frr in published.values()],
                  "kD", markersize=5, label="Chopra, Hadsell, LeCun 2005", zorder=5)  # fmt: skip
    axes.set(xscale="log", xlim=(100 * least, 100), ylim=(100 * max(0.0, lowest - 0.05), 100.8),
             xlabel="false accept rate, %", ylabel="true accept rate, %")  # fmt: skip
    axes.set_xticks([0.1, 1, 5, 10, 100], ["0.1", "1", "5", "10", "100"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", framealpha=0.9, edgecolor="none")
    return _png(figure)


def _true_accepts(report: VerificationReport, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    curve = report.roc()  # a step function: the last threshold whose FAR does not pass the grid's
    values: NDArray[np.float64] = curve.rate[np.searchsorted(curve.far, grid, side="right") - 1]
    return values


def _axes(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    width = 6.4 if panels == 1 else 4.6 * panels
    figure = Figure(figsize=(width, 4.2 if panels == 1 else 3.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
