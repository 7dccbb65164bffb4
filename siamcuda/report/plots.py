"""What a training leaves, drawn to PNG bytes: its curve, trials of protocols, images by pairs.

Figures are built without pyplot, so no window system and no global state of matplotlib is touched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from siamcuda import reference
from siamcuda.verification import VerificationReport

__all__ = ["by_epoch", "distance_histogram", "image_pairs", "loss_surface", "roc", "training_curve"]

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


def by_epoch(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> bytes:
    """Draw several trainings side by side, one panel a figure.

    Args:
        panels: figure -> {training: its value after each epoch, NaN where there is none}; a
            training has one colour in all of them.
        title: heading of the figure.
    """
    figure, axes = _axes(len(panels), title)
    for one, (what, lines) in zip(axes, panels.items(), strict=True):
        for colour, (name, values) in zip(_PROTOCOLS, lines.items(), strict=False):
            marker = "o" if len(values) == 1 else None
            one.plot(np.arange(1, len(values) + 1), values, color=colour, marker=marker,
                     linewidth=1.2, label=name)  # fmt: skip
        one.set(xlabel="epoch", ylabel=what, ylim=(0, None))
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.legend(frameon=False)
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
        least = min(float(finite.min(initial=0)), 0.0)  # scores may be negative
        bins = np.linspace(least, max(float(finite.max(initial=0)) * 1.02, 1e-6), count + 1)
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
            axes.annotate(f"FAR {100 * far:.3g} %", (threshold, top * 0.985), (gap, 0),
                          textcoords="offset points", rotation=90, fontsize=7, color=_NEUTRAL,
                          ha=side, va="top")  # fmt: skip
        axes.set(xlabel="distance", ylabel="share of the trials, %", title=protocol)
        # On the side without thresholds.
        right = bool(lines) and np.mean([t for t, _ in lines]) < np.mean(axes.get_xlim())
        place: Literal["upper right", "upper left"] = "upper right" if right else "upper left"
        axes.legend(frameon=False, loc=place, fontsize=8)
    return _png(figure)


def image_pairs(
    left: Sequence[NDArray[np.uint8]], right: Sequence[NDArray[np.uint8]],
    captions: Sequence[str], title: str, most: int = 60, negative: bool = True,
    columns: int = 10,
) -> bytes:  # fmt: skip
    """Draw images pair by pair, side by side or wide ones one above the other, with captions.

    Args:
        left: images (H, W), grey, or (H, W, 3).
        right: as many.
        captions: as many, a few words each.
        title: heading of the figure.
        most: pairs to draw; the first ones.
        negative: draw high values dark: strokes of MNIST, not photographs.
        columns: pairs in a line.
    """
    count = min(len(captions), most)
    shades = "gray_r" if negative else "gray"
    columns = min(columns, max(count, 1))
    lines = -(-max(count, 1) // columns)
    height, width = left[0].shape[:2] if count else (1, 1)
    axis = int(height > width / 1.3)  # of a tall image's pair: side by side
    shape = (2 - axis) * height / ((1 + axis) * width)  # of a pair: its height by its width
    size = (1.25 * columns + 0.2, (1.25 * shape + 0.32) * lines + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for index, axes in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
        axes.set_axis_off()
        if index < count:
            both = np.concatenate([left[index], right[index]], axis=axis)
            axes.imshow(both, cmap=shades, vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(captions[index], fontsize=7, pad=2)
    return _png(figure)


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


def loss_surface(q: float, margin: float | None = None) -> bytes:
    """Draw the loss of one genuine and one impostor pair, H(E_genuine, E_impostor), as in Chopra.

    Chopra, Hadsell and LeCun (2005) want E_genuine + m < E_impostor for some margin m > 0, and show
    that the loss falls into the half plane where it holds: H is convex, and on the line
    E_genuine + m = E_impostor its negative gradient points to that side.

    Args:
        q: Q of the loss, and the end of both axes.
        margin: m of the line that is drawn; by default Q/10.
    """
    margin = q / 10 if margin is None else margin
    energies = np.linspace(0, q, 121)
    ends = torch.from_numpy(energies)[:, None], torch.zeros(len(energies), 1, dtype=torch.float64)
    genuine, impostor = (
        reference.chopra_loss(*ends, torch.full((len(energies),), y), q=q, reduction="none").numpy()
        for y in (0, 1)
    )
    x, y = np.meshgrid(energies, energies)  # x: genuine, y: impostor
    total = genuine[None, :] + impostor[:, None]
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    figure.suptitle(f"Chopra loss of a genuine and an impostor pair, Q = {q:g}", fontsize=11)
    labels = {"xlabel": "energy of the genuine pair", "ylabel": "energy of the impostor pair"}

    solid = figure.add_subplot(1, 2, 1, projection="3d")
    solid.plot_surface(x, y, total, cmap="viridis", rcount=40, ccount=40, linewidth=0)
    on = energies[energies + margin <= q]
    solid.plot(on, on + margin, np.interp(on, energies, genuine)
               + np.interp(on + margin, energies, impostor), color=_IMPOSTOR, zorder=9)  # fmt: skip
    solid.set(**labels)  # the colours' own axis says what its height is
    solid.view_init(elev=28, azim=-130)

    flat = figure.add_subplot(1, 2, 2)
    shades = flat.contourf(x, y, total, levels=16, cmap="viridis")
    figure.colorbar(shades, ax=flat, label="loss")
    flat.fill_between(on, on + margin, q, facecolor="none", edgecolor="white", hatch="//",
                      linewidth=0, alpha=0.45)  # fmt: skip
    flat.plot(on, on + margin, color=_IMPOSTOR, linewidth=1.8)
    at = np.linspace(0.1, 0.9, 5) * (q - margin)
    down = (-np.interp(at, energies, np.gradient(genuine, energies)),
            -np.interp(at + margin, energies, np.gradient(impostor, energies)))  # fmt: skip
    flat.quiver(at, at + margin, *down, color="white", angles="xy", scale=22, width=0.009, zorder=4)
    flat.annotate("genuine + m < impostor", (0.04 * q, 0.93 * q), color="white", fontsize=9,
                  bbox={"facecolor": _NEUTRAL, "edgecolor": "none", "alpha": 0.85})  # fmt: skip
    flat.set(**labels, xlim=(0, q), ylim=(0, q), aspect="equal")
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
