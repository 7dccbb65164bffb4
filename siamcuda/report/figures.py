"""The plots of one evaluation. Each is drawn once, for the page and as a PNG.

Every colour is one of LIGHT: in a page it becomes a CSS variable of that name, so that one drawing
serves a light and a dark screen and paper. Numbers come from the report's curves as they are; the
curves are steps, since that is what counts of pairs are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from siamcuda.report.numbers import chosen, percent, plain, threshold
from siamcuda.verification import Calibrator, VerificationReport

__all__ = ["DARK", "LIGHT", "Plot", "draw"]

#: Blue and orange stay apart for eyes that don't tell red from green.
LIGHT = {
    "ink": "#1d2530",
    "muted": "#5a6675",
    "grid": "#dde2e8",
    "genuine": "#2166ac",
    "impostor": "#c4511c",
    "curve": "#5b3f8c",
}
DARK = {
    "ink": "#e6e9ee",
    "muted": "#a3adba",
    "grid": "#39424f",
    "genuine": "#6fb2f0",
    "impostor": "#f0935e",
    "curve": "#b79df0",
}
_SIZE = (4.8, 3.7)
#: Marks of the asked rates, in the order of the operating points.
_MARKERS = "osD^vP*X"
_DASHES = ((0, ()), (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)))
#: Points that a curve is drawn with, along one axis.
_FINE = 1000

_Doubles = NDArray[np.float64]
_Choice = TypeVar("_Choice")


@dataclass(frozen=True)
class Plot:
    """A figure, what it shows in a line, and what it says to somebody who doesn't see it."""

    name: str  # of the PNG file too
    title: str
    caption: str
    alt: str
    figure: Figure


def draw(
    report: VerificationReport, far: Sequence[float], calibrator: Calibrator | None = None
) -> tuple[list[Plot], list[str]]:
    """Draw every plot that the report has numbers for, and say why others are not there."""
    drawings: list[Callable[[], Plot]] = [
        lambda: _histogram(report, far),
        lambda: _roc(report, far),
        lambda: _det(report, far),
    ]
    if report.identification is not None:
        drawings += [lambda: _cmc(report), lambda: _open_set(report)]
    if calibrator is not None:
        drawings += [
            lambda: _similarity(report, calibrator),
            lambda: _reliability(report, calibrator),
        ]
    plots, without = [], []
    for drawing in drawings:
        try:
            plots.append(drawing())
        except _NothingToDrawError as reason:
            without.append(str(reason))
    return plots, without


class _NothingToDrawError(Exception):
    """A plot would be empty; the message says which and why."""


# --- verification ---------------------------------------------------------------------------------


def _histogram(report: VerificationReport, far: Sequence[float]) -> Plot:
    if not np.isfinite(report.distance).any():
        raise _NothingToDrawError("Histogram of distances: no distance is finite.")
    edges, genuine, impostor = report.histogram(60)
    if edges[0] == edges[-1]:  # one distance alone: one bin, of some width
        edges = edges[0] + np.array([-0.5, 0.5])
        genuine, impostor = genuine.sum(keepdims=True), impostor.sum(keepdims=True)
    figure, axes = _figure("distance", "share of the pairs in a bin, %")
    for counts, total, name in (
        (impostor, report.impostor, "impostor"),
        (genuine, report.genuine, "genuine"),
    ):
        axes.stairs(
            100 * counts / total, edges, fill=True, color=LIGHT[name], alpha=0.3, linewidth=0
        )
        axes.stairs(100 * counts / total, edges, color=LIGHT[name], linewidth=1.2,
                    label=f"{name} pairs")  # fmt: skip
    axes.set_ylim(0, None)
    shown = [(rate, at) for rate in far if np.isfinite(at := report.threshold(rate))]
    low, high = axes.get_xlim()
    for (rate, at), dashes in zip(shown, _cycled(_DASHES, len(shown)), strict=True):
        axes.axvline(at, color=LIGHT["ink"], linewidth=1, linestyle=dashes,
                     label=f"threshold at FAR {chosen(rate)}")  # fmt: skip
    axes.set_xlim(low, high)
    _legend(figure, 2)
    lines = "; ".join(
        f"{threshold(at, report.distance.dtype)} at FAR {chosen(rate)}" for rate, at in shown
    )
    means = ""
    if report.spread is not None:
        means = (
            f" Genuine pairs have mean distance {report.spread.genuine_mean:.4g}, impostor pairs "
            f"{report.spread.impostor_mean:.4g}."
        )
    return Plot(
        "histogram",
        "Distances of genuine and impostor pairs",
        "Each kind adds up to 100 %. Pairs left of a threshold are accepted; genuine pairs right "
        "of it are false rejects, impostor pairs left of it false accepts.",
        f"Histogram of the distances of genuine and of impostor pairs.{means}"
        + (f" Thresholds: {lines}." if lines else ""),
        figure,
    )


def _roc(report: VerificationReport, far: Sequence[float]) -> Plot:
    curve = report.roc()
    least = _decade_below(1 / report.impostor)
    figure, axes = _figure("false accept rate, %", "true accept rate, %")
    lowest = float(curve.rate[np.searchsorted(curve.far, least, side="right") - 1])
    bottom = max(0.0, np.floor(20 * lowest - 0.5) / 20)
    rates, accepted = np.maximum(curve.far, least), curve.rate
    keep = _visible(np.log10(rates) / -np.log10(least), (accepted - bottom) / (1 - bottom))
    _step(axes, 100 * rates[keep], 100 * accepted[keep])
    for rate, mark in zip(far, _cycled(_MARKERS, len(far)), strict=True):
        if rate >= least:
            at = 100 * report.tar(rate)
            axes.plot(100 * rate, at, mark, color=LIGHT["curve"], markersize=6, clip_on=False,
                      label=f"FAR {chosen(rate)}", zorder=4)  # fmt: skip
            ends = report.confidence.frr.get(rate) if report.confidence else None
            if ends is not None:
                axes.vlines(100 * rate, 100 - 100 * ends[1], 100 - 100 * ends[0],
                            color=LIGHT["curve"], linewidth=1.6, alpha=0.55)  # fmt: skip
    axes.set(xscale="log", xlim=(100 * least, 100), ylim=(100 * bottom, 100 + 2 * (1 - bottom)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if axes.get_legend_handles_labels()[0]:
        _legend(figure, 4)
    caption = "Left is strict, up is good. At the left edge no impostor pair is accepted."
    if report.confidence is not None:
        caption += f" Bars: {100 * report.confidence.level:g} % intervals."
    said = ", ".join(f"{percent(report.tar(rate))} at FAR {chosen(rate)}" for rate in far)
    return Plot(
        "roc",
        "ROC: true accepts against false accepts",
        caption,
        f"Receiver operating characteristic. True accept rate {said}. "
        f"Area under the curve {report.auc:.4f}.",
        figure,
    )


def _det(report: VerificationReport, far: Sequence[float]) -> Plot:
    curve = report.det()
    figure, axes = _figure("false accept rate, %", "false reject rate, %")
    low, high = _range(report, far)
    limits = [(_normal(a), _normal(b)) for a, b in zip(low, high, strict=True)]
    x = _normals(np.clip(curve.far, low[0], high[0]))
    y = _normals(np.clip(curve.rate, low[1], high[1]))
    # Beyond an edge the curve is not drawn along it, but for the point where it comes in.
    inside = (curve.far <= high[0]) & (curve.rate <= high[1])
    inside[:-1] |= inside[1:]
    if not inside.any():
        raise _NothingToDrawError("DET curve: both error rates are never small together.")
    x, y = x[inside], y[inside]
    keep = _visible(*(
        (values - ends[0]) / (ends[1] - ends[0])
        for values, ends in zip((x, y), limits, strict=True)
    ))  # fmt: skip
    _step(axes, x[keep], y[keep])
    equal = max(low), min(high)
    axes.plot([_normal(v) for v in equal], [_normal(v) for v in equal], color=LIGHT["muted"],
              linewidth=1, linestyle=(0, (4, 3)), label="equal rates")  # fmt: skip
    if report.eer >= max(low):
        axes.plot(_normal(report.eer), _normal(report.eer), "P", color=LIGHT["ink"], markersize=7,
                  label=f"EER {percent(report.eer)}", zorder=4)  # fmt: skip
    for rate, mark in zip(far, _cycled(_MARKERS, len(far)), strict=True):
        missed = max(report.frr(rate), low[1])
        if low[0] <= rate <= high[0] and missed <= high[1]:
            axes.plot(_normal(rate), _normal(missed), mark, color=LIGHT["curve"], markersize=6,
                      clip_on=False, label=f"FAR {chosen(rate)}", zorder=4)  # fmt: skip
    for axis, ends in zip((axes.xaxis, axes.yaxis), limits, strict=True):
        within = [t for t in _TICKS if ends[0] <= _normal(t) <= ends[1]]
        ticks = _apart(within, ends, sideways=axis is axes.xaxis)
        axis.set_ticks([_normal(t) for t in ticks], [plain(100 * t) for t in ticks])
    axes.set(xlim=limits[0], ylim=limits[1])
    _legend(figure, 3)
    return Plot(
        "det",
        "DET: both errors, on normal deviates",
        "Down and left is good; normal distances make a straight line. A rate of 0 is drawn at the "
        "edge.",
        "Detection error trade-off, false reject rate against false accept rate on normal deviate "
        f"axes. Equal error rate {percent(report.eer)}.",
        figure,
    )


#: Rates that may stand at an axis of normal deviates.
_TICKS = (
    *(n * 10.0**e for e in range(-10, -1) for n in ((1, 2, 5) if e > -4 else (1,))),
    *(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
)


def _range(
    report: VerificationReport, far: Sequence[float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Lowest and highest (FAR, FRR) of a DET plot: where the curve is, and the asked rates."""
    curve, half = report.det(), (0.5 / report.impostor, 0.5 / report.genuine)
    asked = [(rate, report.frr(rate)) for rate in far if rate >= 2 * half[0]]
    top = [min(max(0.5, 1.5 * report.eer), 0.99)] * 2
    top[1] = min(max(top[1], *(missed + 0.02 for _, missed in asked), 0), 0.99)
    within = curve.far[curve.rate <= top[1]], curve.rate[curve.far <= top[0]]
    bottom = [
        min(max(0.8 * float(seen.min(initial=1)), least), 0.05)
        for seen, least in zip(within, half, strict=True)
    ]
    bottom[0] = min([bottom[0], *(0.7 * rate for rate, missed in asked if missed <= top[1])])
    return (bottom[0], bottom[1]), (top[0], top[1])


def _apart(ticks: Sequence[float], ends: tuple[float, float], sideways: bool) -> list[float]:
    """Ticks whose labels leave each other room, from the largest rate down.

    A label has the height of a thirteenth of the axis; sideways, a digit takes 1.1 % of its length
    on either side of the tick.
    """
    taken: list[float] = []
    for tick in reversed(ticks):
        room = 1 / 13
        if sideways and taken:
            room = 0.03 + 0.011 * (len(plain(100 * tick)) + len(plain(100 * taken[-1])))
        if not taken or _normal(taken[-1]) - _normal(tick) >= room * (ends[1] - ends[0]):
            taken.append(tick)
    return taken


def _normal(rate: float) -> float:
    return NormalDist().inv_cdf(rate)


def _normals(rates: _Doubles) -> _Doubles:
    values, at = np.unique(rates, return_inverse=True)
    return np.array([_normal(float(v)) for v in values])[at]


# --- identification -------------------------------------------------------------------------------


def _cmc(report: VerificationReport) -> Plot:
    found = report.identification
    assert found is not None
    if not found.mated.any():
        raise _NothingToDrawError("CMC: no query has a mate in the gallery.")
    rates = found.cmc(20)
    ranks = np.arange(1, len(rates) + 1)
    figure, axes = _figure("rank", "queries found, %")
    axes.plot(ranks, 100 * rates, color=LIGHT["curve"], marker="o", markersize=4, linewidth=1.8,
              clip_on=False)  # fmt: skip
    bottom = max(0.0, np.floor(20 * float(rates[0]) - 0.5) / 20)
    axes.set(xlim=(0.5, len(rates) + 0.5), ylim=(100 * bottom, 100 + 2 * (1 - bottom)))
    axes.set_xticks([1, 5, 10, 15, 20])
    return Plot(
        "cmc",
        "CMC: how soon the right identity comes",
        f"Share of {int(found.mated.sum()):,} queries whose own identity is among the nearest r "
        "entries. A tie counts against the query.",
        f"Cumulative match characteristic: {percent(float(rates[0]))} at rank 1, "
        f"{percent(float(rates[4]))} at rank 5, {percent(float(rates[-1]))} at rank 20.",
        figure,
    )


def _open_set(report: VerificationReport) -> Plot:
    found = report.identification
    assert found is not None
    if not found.mated.any():
        raise _NothingToDrawError("Open-set identification: no query has a mate in the gallery.")
    strangers = len(found.mated) if found.left_out else int((~found.mated).sum())
    least = _decade_below(1 / strangers)
    asked = np.geomspace(least, 1, 64)
    missed = np.array([found.fnir(found.threshold(float(rate))) for rate in asked])
    figure, axes = _figure(
        "false positive identification rate, %", "false negative identification rate, %"
    )
    _step(axes, 100 * asked, 100 * missed)
    axes.set(xscale="log", xlim=(100 * least, 100), ylim=(0, max(5.0, 105 * float(missed.max()))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    who = (
        "Every query has a mate, so as a stranger each is searched for without its own identity."
        if found.left_out
        else f"{strangers:,} queries have no mate: they are the strangers."
    )
    middle = found.fnir(found.threshold(0.1))
    return Plot(
        "open_set",
        "Open-set identification",
        f"Searches for strangers that return somebody, against searches that miss their mate at "
        f"rank 1. {who}",
        "False negative against false positive identification rate: "
        f"{percent(middle)} of the mated searches miss where 10 % of the strangers are found.",
        figure,
    )


# --- calibration ----------------------------------------------------------------------------------


def _similarity(report: VerificationReport, calibrator: Calibrator) -> Plot:
    finite = report.distance[np.isfinite(report.distance)].astype(np.float64)
    if not finite.size:
        raise _NothingToDrawError("Similarity against distance: no distance is finite.")
    at = np.linspace(float(finite[0]), float(finite[-1]), 400)
    if calibrator.knots:
        at = np.union1d(at, np.clip(calibrator.knots, finite[0], finite[-1]))
    similarity = calibrator(at)
    figure, axes = _figure("distance", "similarity")
    axes.plot(at, similarity, color=LIGHT["curve"], linewidth=1.8)
    axes.set_ylim(-0.02, 1.02)
    even = float(np.interp(-0.5, -similarity, at))
    return Plot(
        "similarity",
        "Similarity against distance",
        f"The chance that a pair is genuine if genuine pairs have the prior {calibrator.prior:g}.",
        f"Similarity falls from {similarity[0]:.3f} at distance {at[0]:.4g} to "
        f"{similarity[-1]:.3f} at {at[-1]:.4g}; it is about one half at {even:.4g}.",
        figure,
    )


def _reliability(report: VerificationReport, calibrator: Calibrator) -> Plot:
    genuine, impostor = (
        np.diff(within, prepend=0).astype(np.float64)
        for within in (report.genuine_within, report.impostor_within)
    )
    similarity = calibrator(report.distance.astype(np.float64))
    shares = [
        np.bincount(np.minimum((10 * similarity).astype(int), 9), counts / total, minlength=10)
        for counts, total in ((genuine, report.genuine), (impostor, report.impostor))
    ]
    own, other = calibrator.prior * shares[0], (1 - calibrator.prior) * shares[1]
    weight = own + other
    said = np.bincount(
        np.minimum((10 * similarity).astype(int), 9),
        similarity * (calibrator.prior * genuine / report.genuine
                      + (1 - calibrator.prior) * impostor / report.impostor),
        minlength=10,
    )  # fmt: skip
    some = weight > 0
    x, y = said[some] / weight[some], own[some] / weight[some]
    figure, axes = _figure("similarity, mean of a bin", "genuine among the pairs of a bin")
    axes.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)),
              label="as it should be")  # fmt: skip
    axes.plot(x, y, color=LIGHT["curve"], linewidth=1, alpha=0.6)
    axes.scatter(x, y, s=18 + 160 * weight[some], color=LIGHT["curve"], zorder=3, clip_on=False,
                 label="observed; a larger dot has more pairs")  # fmt: skip
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _legend(figure, 2)
    off = float(np.sum(weight[some] * np.abs(x - y)) / weight.sum())
    return Plot(
        "reliability",
        "Reliability of the similarity",
        "Kinds weighed by the prior. Dots on the line: a similarity of 0.8 is right in 80 of 100 "
        "cases. On pairs that it was not fitted to, a calibration does worse.",
        "Observed share of genuine pairs against similarity in ten bins; the mean gap is "
        f"{off:.3f}.",
        figure,
    )


# --- what all share -------------------------------------------------------------------------------


def _figure(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(xlabel, color=LIGHT["ink"])
    axes.set_ylabel(ylabel, color=LIGHT["ink"])
    axes.set_axisbelow(True)
    axes.grid(color=LIGHT["grid"], linewidth=0.8)
    axes.tick_params(which="both", color=LIGHT["muted"], labelcolor=LIGHT["ink"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LIGHT["muted"])
    return figure, axes


def _step(axes: Axes, x: _Doubles, y: _Doubles) -> None:
    axes.plot(x, y, color=LIGHT["curve"], linewidth=1.8, drawstyle="steps-post", zorder=3)


def _visible(x: _Doubles, y: _Doubles) -> NDArray[np.bool_]:
    """Points that move the pen: a curve may have 65,536, a screen has not."""
    cells = np.stack([np.floor(x * _FINE), np.floor(y * _FINE)])
    moved: NDArray[np.bool_] = (np.diff(cells) != 0).any(0)
    keep: NDArray[np.bool_] = np.append(moved, True) | np.append(True, moved)
    return keep  # the last point of a cell and the first of the next


def _legend(figure: Figure, columns: int) -> None:
    """Below the axes, where nothing can lie under it."""
    figure.legend(
        loc="outside lower center", ncols=columns, frameon=False, labelcolor=LIGHT["ink"],
        fontsize=9, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip


def _decade_below(rate: float) -> float:
    """Where a logarithmic axis starts that shows ``rate``, a decade wide at least."""
    return float(10.0 ** min(np.floor(np.log10(rate)), -1))


def _cycled(choices: Sequence[_Choice], many: int) -> list[_Choice]:
    return [choices[n % len(choices)] for n in range(many)]
