"""Curves of what a training leaves and of what was compared, drawn to PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from siamcuda import reference
from siamcuda.report.canvas import GENUINE, IMPOSTOR, NEUTRAL, PROTOCOLS, panels_of, png_of
from siamcuda.verification import VerificationReport

__all__ = [
    "by_epoch",
    "distance_histogram",
    "grouped_bars",
    "loss_surface",
    "radius_curves",
    "roc",
    "scatter",
    "training_curve",
]

_SYSTEMS = (*PROTOCOLS, "#6b8e6b", "#9a9a9a")


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
    figure, (first, *rest) = panels_of(1 + len(panels), title)
    epochs = np.arange(1, len(loss) + 1)
    marker = "o" if len(loss) == 1 else None
    first.plot(epochs, loss, color=NEUTRAL, marker=marker)
    first.set(xlabel="epoch", ylabel="mean loss")
    kinds = {"impostor": IMPOSTOR, "genuine": GENUINE}
    for axes, (what, lines) in zip(rest, panels, strict=True):
        for number, (name, values) in enumerate(lines.items()):
            known = np.isfinite(values)
            axes.plot(epochs[known], np.asarray(values)[known], marker=marker,
                      color=kinds.get(name, PROTOCOLS[number % len(PROTOCOLS)]),
                      label=f"{name} pairs" if name in kinds else name)  # fmt: skip
        axes.set(xlabel="epoch", ylabel=what, ylim=(0, None))
        axes.legend(frameon=False)
    for axes in (first, *rest):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return png_of(figure)


def by_epoch(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> bytes:
    """Draw several trainings side by side, one panel a figure.

    Args:
        panels: figure -> {training: its value after each epoch, NaN where there is none}; a
            training has one colour in all of them.
        title: heading of the figure.
    """
    figure, axes = panels_of(len(panels), title)
    for one, (what, lines) in zip(axes, panels.items(), strict=True):
        for colour, (name, values) in zip(PROTOCOLS, lines.items(), strict=False):
            marker = "o" if len(values) == 1 else None
            one.plot(np.arange(1, len(values) + 1), values, color=colour, marker=marker,
                     linewidth=1.2, label=name)  # fmt: skip
        one.set(xlabel="epoch", ylabel=what, ylim=(0, None))
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.legend(frameon=False)
    return png_of(figure)


def distance_histogram(
    trials: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    thresholds: Mapping[str, Mapping[float, float]],
    title: str,
    *,
    kinds: tuple[str, str] = ("genuine", "impostor"),
    rate: str = "FAR",
) -> bytes:
    """Draw genuine and impostor distances, one panel a protocol.

    Args:
        trials: protocol -> (genuine, impostor) distances.
        thresholds: protocol -> {FAR: threshold}, drawn as lines; leave a protocol out for none.
        title: heading of the figure.
        kinds: what genuine and impostor trials are called.
        rate: what the rates of ``thresholds`` are called.
    """
    figure, panels = panels_of(len(trials), title)
    for axes, (protocol, (genuine, impostor)) in zip(panels, trials.items(), strict=True):
        finite = np.concatenate([genuine, impostor])
        finite = finite[np.isfinite(finite)]
        count = int(np.clip(3 * np.sqrt(len(genuine)), 15, 40))
        least = min(float(finite.min(initial=0)), 0.0)  # scores may be negative
        bins = np.linspace(least, max(float(finite.max(initial=0)) * 1.02, 1e-6), count + 1)
        for values, colour, name in (
            (impostor, IMPOSTOR, kinds[1]),
            (genuine, GENUINE, kinds[0]),
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
            axes.axvline(threshold, color=NEUTRAL, linewidth=1, linestyle="--")
            # The first label stands left of its line, the others right: clear of the lines.
            side, gap = ("right", -2) if threshold == lines[0][0] else ("left", 2)
            axes.annotate(f"{rate} {100 * far:.3g} %", (threshold, top * 0.985), (gap, 0),
                          textcoords="offset points", rotation=90, fontsize=7, color=NEUTRAL,
                          ha=side, va="top")  # fmt: skip
        axes.set(xlabel="distance", ylabel="share of the trials, %", title=protocol)
        # On the side without thresholds.
        right = bool(lines) and np.mean([t for t, _ in lines]) < np.mean(axes.get_xlim())
        place: Literal["upper right", "upper left"] = "upper right" if right else "upper left"
        axes.legend(frameon=False, loc=place, fontsize=8)
    return png_of(figure)


def radius_curves(
    codes: Mapping[str, tuple[Sequence[float | None], Sequence[float]]], title: str
) -> bytes:
    """Draw what all codes within a Hamming radius are worth: precision and recall by radius.

    Args:
        codes: name -> (precision, recall) in 0…1 at the radii 0, 1, ...; None where nothing is.
        title: heading of the figure.
    """
    figure, panels = panels_of(2, title)
    for number, (name, both) in enumerate(codes.items()):
        colour = PROTOCOLS[number % len(PROTOCOLS)]
        for axes, values in zip(panels, both, strict=True):
            percent = 100 * np.asarray(values, dtype=np.float64)  # None is NaN: left out
            axes.plot(np.arange(len(percent)), percent, color=colour, label=name, marker=".")
    for axes, what in zip(panels, ("precision", "recall"), strict=True):
        axes.set(xlabel="Hamming radius, bits", ylabel=f"{what}, %", ylim=(0, 102))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="center right")
    return png_of(figure)


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
    figure, (axes,) = panels_of(1, title)
    least = 1e-3
    grid = np.geomspace(least, 1, 400)
    lowest = 1.0
    for colour, (protocol, splits) in zip(PROTOCOLS, reports.items(), strict=False):
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
    return png_of(figure)


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
               + np.interp(on + margin, energies, impostor), color=IMPOSTOR, zorder=9)  # fmt: skip
    solid.set(**labels)  # the colours' own axis says what its height is
    solid.view_init(elev=28, azim=-130)

    flat = figure.add_subplot(1, 2, 2)
    shades = flat.contourf(x, y, total, levels=16, cmap="viridis")
    figure.colorbar(shades, ax=flat, label="loss")
    flat.fill_between(on, on + margin, q, facecolor="none", edgecolor="white", hatch="//",
                      linewidth=0, alpha=0.45)  # fmt: skip
    flat.plot(on, on + margin, color=IMPOSTOR, linewidth=1.8)
    at = np.linspace(0.1, 0.9, 5) * (q - margin)
    down = (-np.interp(at, energies, np.gradient(genuine, energies)),
            -np.interp(at + margin, energies, np.gradient(impostor, energies)))  # fmt: skip
    flat.quiver(at, at + margin, *down, color="white", angles="xy", scale=22, width=0.009, zorder=4)
    flat.annotate("genuine + m < impostor", (0.04 * q, 0.93 * q), color="white", fontsize=9,
                  bbox={"facecolor": NEUTRAL, "edgecolor": "none", "alpha": 0.85})  # fmt: skip
    flat.set(**labels, xlim=(0, q), ylim=(0, q), aspect="equal")
    return png_of(figure)


def grouped_bars(
    groups: Mapping[str, Mapping[str, float | None]], ylabel: str, title: str
) -> bytes:
    """Draw a bar for each system in each group, with its value; a dash where it has none.

    Args:
        groups: name -> {system: value}, the same systems in each.
        ylabel: what the values are.
        title: heading of the figure.
    """
    systems = list(next(iter(groups.values())))
    figure = Figure(figsize=(max(6.4, 0.55 * len(groups) * len(systems)), 3.8),
                    layout="constrained")  # fmt: skip
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    width = 0.8 / len(systems)
    for number, system in enumerate(systems):
        places = np.arange(len(groups)) + (number - (len(systems) - 1) / 2) * width
        values = [group[system] for group in groups.values()]
        axes.bar(places, [value or 0 for value in values], 0.92 * width, label=system,
                 color=_SYSTEMS[number % len(_SYSTEMS)])  # fmt: skip
        for place, value in zip(places, values, strict=True):
            text = "–" if value is None else f"{value:.2f}"
            below = value is not None and value < 0
            axes.annotate(text, (place, value or 0), (0, -2 if below else 2), ha="center",
                          va="top" if below else "bottom", textcoords="offset points",
                          fontsize=8)  # fmt: skip
    axes.set_xticks(np.arange(len(groups)), list(groups))
    axes.tick_params(axis="x", length=0)
    axes.axhline(0, color=NEUTRAL, linewidth=0.8)
    axes.margins(y=0.08)
    axes.set(ylabel=ylabel)
    figure.legend(loc="outside lower center", ncols=len(systems), frameon=False, fontsize=9)
    return png_of(figure)


def scatter(
    panels: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    xlabel: str,
    ylabel: str,
    title: str,
) -> bytes:
    """Draw points, one panel a set.

    Args:
        panels: name -> (x, y), each (N,).
        xlabel: what x is.
        ylabel: what y is.
        title: heading of the figure.
    """
    figure, places = panels_of(len(panels), title)
    for axes, (name, (x, y)) in zip(places, panels.items(), strict=True):
        axes.scatter(x, y, s=9, color=PROTOCOLS[0], alpha=0.35, linewidths=0)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=f"{name}, {len(x):,} pairs")
    return png_of(figure)


def _true_accepts(report: VerificationReport, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    curve = report.roc()  # a step function: the last threshold whose FAR does not pass the grid's
    values: NDArray[np.float64] = curve.rate[np.searchsorted(curve.far, grid, side="right") - 1]
    return values
