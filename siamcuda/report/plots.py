"""What a training leaves, drawn to PNG bytes: its curve, trials, pairs of images, what was found.

Figures are built without pyplot, so no window system and no global state of matplotlib is touched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from siamcuda.verification import VerificationReport

__all__ = [
    "distance_histogram",
    "episode",
    "image_pairs",
    "retrieval_grid",
    "roc",
    "training_curve",
]

_GENUINE, _IMPOSTOR, _NEUTRAL = "#1b7f5c", "#c8553d", "#44546a"
_PROTOCOLS = ("#2f5d9b", "#d08a1d", "#7a4b94")
#: Of a figure that shows photographs: half of the bytes, where there is no colour bar.
_COLOURS = 128
#: Of images that are of the query's class, or not: told apart by more than colour.
_FRAMES: dict[bool, dict[str, Any]] = {
    True: {"edgecolor": _GENUINE, "linewidth": 1.2},
    False: {"edgecolor": _IMPOSTOR, "linewidth": 2.8},
}


class DistanceMap(NamedTuple):
    """A picture that was inspected patch by patch."""

    name: str
    image: NDArray[np.uint8]  # (H, W), grey
    distances: NDArray[np.floating]  # (rows, columns), of the patches
    patch: tuple[int, int]  # side of a patch, and pixels between two of them
    boxes: Sequence[tuple[int, int, int, str]]  # top, left, side, name: what is to be found


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
    figure, panels = _axes(len(trials), title)
    for axes, (protocol, (genuine, impostor)) in zip(panels, trials.items(), strict=True):
        finite = np.concatenate([genuine, impostor])
        finite = finite[np.isfinite(finite)]
        count = int(np.clip(3 * np.sqrt(len(genuine)), 15, 40))
        bins = np.linspace(0, max(float(finite.max(initial=0)) * 1.02, 1e-6), count + 1)
        for values, colour, name in (
            (impostor, _IMPOSTOR, kinds[1]),
            (genuine, _GENUINE, kinds[0]),
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
            axes.annotate(f"{rate} {100 * far:g} %", (threshold, top * 0.985), (gap, 0),
                          textcoords="offset points", rotation=90, fontsize=7, color=_NEUTRAL,
                          ha=side, va="top")  # fmt: skip
        axes.set(xlabel="distance", ylabel="share of the trials, %", title=protocol)
        axes.legend(frameon=False, loc="upper left", fontsize=8)
    return _png(figure)


def image_pairs(
    left: Sequence[NDArray[np.uint8]], right: Sequence[NDArray[np.uint8]],
    captions: Sequence[str], title: str, most: int = 60, *, columns: int = 10,
    inverted: bool = True,
) -> bytes:  # fmt: skip
    """Draw images side by side, pair by pair, each pair with its caption.

    Args:
        left: images (H, W), grey, or (H, W, 3).
        right: as many.
        captions: as many, a few words each.
        title: heading of the figure.
        most: pairs to draw; the first ones.
        columns: pairs in a line.
        inverted: draw 0 white and 255 black, as ink; grey images alone.
    """
    count = min(len(captions), most)
    columns = min(columns, max(count, 1))
    lines = -(-max(count, 1) // columns)
    words = 0.12 * max((caption.count("\n") for caption in captions), default=0)
    height = (0.95 + words) * lines + 0.5
    figure = Figure(figsize=(1.25 * columns + 0.2, height), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for index, axes in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
        axes.set_axis_off()
        if index < count:
            both = np.concatenate([left[index], right[index]], axis=1)
            axes.imshow(both, cmap="gray_r" if inverted else "gray", vmin=0, vmax=255,
                        interpolation="nearest")  # fmt: skip
            axes.set_title(captions[index], fontsize=7, pad=2)
    return _png(figure, 0 if inverted else _COLOURS)


def distance_maps(maps: Sequence[DistanceMap], threshold: float, title: str) -> bytes:
    """Draw pictures, one a line, and beside each the distances of its patches, in their places.

    The colours turn at the threshold, which a line marks too: what it encloses is refused.

    Args:
        maps: at least one.
        threshold: the largest distance that passes; greater than 0.
        title: heading of the figure.
    """
    tallest = max(one.image.shape[0] / one.image.shape[1] for one in maps)
    size = (6.8, 0.5 + len(maps) * (2.9 * tallest + 0.3))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11)
    drawn = None
    panels = figure.subplots(len(maps), 2, squeeze=False)
    for (left, right), one in zip(panels, maps, strict=True):
        height, width = one.image.shape
        side, step = one.patch
        rows, columns = one.distances.shape
        for axes in (left, right):
            axes.imshow(one.image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            for top, beside, length, name in one.boxes:
                axes.add_patch(
                    Rectangle((beside - 0.5, top - 0.5), length, length, fill=False,
                              edgecolor="white", linewidth=1.0, linestyle=":")
                )  # fmt: skip
                if axes is left:
                    axes.annotate(name, (beside + length / 2, top - 1.5), ha="center", va="bottom",
                                  fontsize=7, color="white",
                                  bbox={"pad": 1, "color": "black", "alpha": 0.6})  # fmt: skip
        left.set_title(one.name, fontsize=9)
        first = (side - 1) / 2  # a patch's distance stands at its middle
        x, y = first + step * np.arange(columns), first + step * np.arange(rows)
        extent = (x[0] - step / 2, x[-1] + step / 2, y[-1] + step / 2, y[0] - step / 2)
        drawn = right.imshow(one.distances, cmap="PuOr_r", vmin=0, vmax=2 * threshold,
                             extent=extent, interpolation="nearest")  # fmt: skip
        if rows > 1 and columns > 1 and (one.distances > threshold).any():
            right.contour(x, y, one.distances, [threshold], colors="black", linewidths=1.0)
        right.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        right.set_title("distance of the patch around each place", fontsize=9)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels[:, 1], shrink=0.6, pad=0.02, extend="max")
        bar.set_ticks([0, threshold, 2 * threshold], labels=["0", f"{threshold:.2f}\nthreshold",
                                                            f"{2 * threshold:.2f}"])  # fmt: skip
        bar.ax.tick_params(labelsize=8)
    return _png(figure)


def episode(
    supports: Sequence[NDArray[np.uint8]], queries: Sequence[NDArray[np.uint8]],
    answers: Sequence[int], title: str, *, inverted: bool = False,
) -> bytes:  # fmt: skip
    """Draw one example of each of W classes and, beside them, W queries with their answers.

    A right answer has a thin frame, a wrong one a thick one of another colour and both classes.

    Args:
        supports: W images (H, W), grey, or (H, W, 3), of classes 0, 1, ...; printed from 1.
        queries: as many, query w is of class w.
        answers: as many, the class that each query was given.
        title: heading of the figure.
        inverted: draw 0 white and 255 black, as ink; grey images alone.
    """
    columns = min(5, len(supports))
    lines = -(-len(supports) // columns)
    figure = Figure(figsize=(2 * 0.64 * columns + 0.5, 0.84 * lines + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    halves: Any = figure.subfigures(1, 2, wspace=0.06)
    both = ("examples", supports), ("queries", queries)
    for half, (what, images) in zip(halves, both, strict=True):
        half.suptitle(what, fontsize=8)
        for place, axes in enumerate(half.subplots(lines, columns, squeeze=False).flat):
            if place >= len(images):
                axes.set_axis_off()
                continue
            axes.imshow(images[place], cmap="gray_r" if inverted else "gray", vmin=0, vmax=255,
                        interpolation="nearest")  # fmt: skip
            axes.set(xticks=[], yticks=[])
            caption, frame = f"{place + 1}", {"edgecolor": "#bbbbbb", "linewidth": 0.6}
            if what == "queries":
                right = answers[place] == place
                caption = caption if right else f"{answers[place] + 1}, is {place + 1}"
                frame = _FRAMES[right]
            axes.set_title(caption, fontsize=7, pad=3)
            for spine in axes.spines.values():
                spine.set(**frame)
    return _png(figure, _COLOURS)


def retrieval_grid(
    queries: Sequence[NDArray[np.uint8]], found: Sequence[Sequence[NDArray[np.uint8]]],
    right: Sequence[Sequence[bool]], title: str, *, names: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (), inverted: bool = False,
) -> bytes:  # fmt: skip
    """Draw queries, one a line, each with what a search found for it, the nearest first.

    What is right has a thin frame, what is wrong a thick one of another colour.

    Args:
        queries: Q images (H, W), grey, or (H, W, 3); of any size, each keeps its shape.
        found: for each query its images, at most k.
        right: for each of these whether it is of the query's class.
        title: heading of the figure.
        names: a few characters above each query; none by default.
        captions: above each image that was found; none by default.
        inverted: draw 0 white and 255 black, as ink; grey images alone.
    """
    most = max((len(images) for images in found), default=0)
    text = 0.22 if names or captions else 0.0  # of a cell's side
    gap, high, apart = 0.12, 1.12 + text, 0.35  # apart: between a query and what was found
    wide, tall = 1 + apart + most * (1 + gap), max(1, len(queries)) * high
    figure = Figure(figsize=(0.72 * wide + 0.3, 0.72 * tall + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots()
    axes.set_axis_off()

    def show(image: NDArray[np.uint8], x: float, y: float, caption: str) -> None:
        height, width = image.shape[:2]
        half_wide, half_tall = (side / max(height, width) / 2 for side in (width, height))
        x, y = x + 0.5, y + text + 0.5
        extent = (x - half_wide, x + half_wide, y + half_tall, y - half_tall)
        axes.imshow(image, cmap="gray_r" if inverted else "gray", vmin=0, vmax=255, extent=extent,
                    interpolation="nearest", aspect="equal")  # fmt: skip
        if caption:
            axes.text(x, y - 0.54, caption, fontsize=7, ha="center", va="bottom")

    for line, (query, images, hits) in enumerate(zip(queries, found, right, strict=True)):
        y = line * high
        show(query, 0, y, names[line] if names else "")
        for place, (image, hit) in enumerate(zip(images, hits, strict=True)):
            x = 1 + apart + place * (1 + gap)
            show(image, x, y, captions[line][place] if captions else "")
            axes.add_patch(Rectangle((x, y + text), 1, 1, fill=False, **_FRAMES[bool(hit)]))
    # last, since imshow sets the limits to its image
    axes.set(xlim=(-0.06, wide - gap + 0.06), ylim=(tall, -0.06))
    keys = [Rectangle((0, 0), 1, 1, fill=False, **_FRAMES[hit]) for hit in (True, False)]
    figure.legend(keys, ["of the query's class", "of another class"], loc="outside lower center",
                  ncols=2, fontsize=8, frameon=False, handlelength=1, handleheight=1)  # fmt: skip
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


def _png(figure: Figure, colours: int = 0) -> bytes:
    """PNG bytes, of so many colours where asked."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    if not colours:
        return buffer.getvalue()
    with Image.open(buffer) as image:
        few = image.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    few.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
