"""What a training leaves, drawn to PNG bytes: its curve, trials, pairs of images, what was found.

Figures are built without pyplot, so no window system and no global state of matplotlib is touched.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from siamcuda import reference
from siamcuda.verification import VerificationReport

__all__ = [
    "by_epoch",
    "distance_histogram",
    "embedding_map",
    "few_colours",
    "grouped_bars",
    "image_pairs",
    "loss_surface",
    "picture_rows",
    "radius_curves",
    "retrieval_grid",
    "roc",
    "scatter",
    "training_curve",
]

_GENUINE, _IMPOSTOR, _NEUTRAL = "#1b7f5c", "#c8553d", "#44546a"
_PROTOCOLS = ("#2f5d9b", "#d08a1d", "#7a4b94")
#: Of images that are of the query's class, or not: told apart by more than colour.
_FRAMES: dict[bool, dict[str, Any]] = {
    True: {"edgecolor": _GENUINE, "linewidth": 1.2},
    False: {"edgecolor": _IMPOSTOR, "linewidth": 2.8},
}
_SYSTEMS = (*_PROTOCOLS, "#6b8e6b", "#9a9a9a")


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


def embedding_map(
    points: NDArray[np.floating], labels: NDArray[np.integer], names: Sequence[str],
    images: NDArray[np.uint8], title: str, *, inverted: bool = False, cells: int = 24,
) -> bytes:  # fmt: skip
    """Draw embeddings in the plane: as points coloured by class, and as the images themselves.

    Args:
        points: (N, 2), finite.
        labels: (N,) classes of the points, positions in ``names``.
        names: of the classes, each written at the median of its points.
        images: (N, H, W), grey, or (N, H, W, 3). Of those in a cell of the plane the one nearest to
            its middle is drawn.
        title: heading of the figure.
        inverted: draw 0 white and 255 black, as ink; grey images alone.
        cells: along each axis.
    """
    low, high = points.min(0), points.max(0)
    side = max(float((high - low).max()), 1e-6) * 1.04  # a square, so that both axes are alike
    low = (low + high - side) / 2
    figure = Figure(figsize=(11, 5.55), layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2)
    colours = colormaps["tab10" if len(names) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    for label, name in enumerate(names):
        mine = points[labels == label]
        if not len(mine):
            continue
        left.scatter(*mine.T, s=3, color=colours[label % len(colours)], linewidths=0)
        halo = [withStroke(linewidth=2, foreground="white")]
        left.text(*np.median(mine, 0), name, fontsize=12, fontweight="bold", ha="center",
                  va="center", path_effects=halo, zorder=3)  # fmt: skip
    width = side / cells
    for row in _nearest_to_cells((points - low) / width):
        x, y = low + width * np.floor((points[row] - low) / width)
        right.imshow(images[row], cmap="gray_r" if inverted else "gray", vmin=0, vmax=255,
                     extent=(x, x + width, y, y + width), interpolation="nearest")  # fmt: skip
    for axes in (left, right):
        axes.set(xlim=(low[0], low[0] + side), ylim=(low[1], low[1] + side), aspect="equal")
        axes.tick_params(labelsize=8)
    return _png(figure)


def _nearest_to_cells(points: NDArray[np.floating]) -> list[int]:
    """The point nearest to the middle of each unit square that has one."""
    cells = np.floor(points)
    off = np.square(points - cells - 0.5).sum(1)
    nearest: dict[tuple[float, float], int] = {}
    for row in np.argsort(-off, kind="stable").tolist():
        nearest[tuple(cells[row].tolist())] = row
    return sorted(nearest.values())


def radius_curves(
    codes: Mapping[str, tuple[Sequence[float | None], Sequence[float]]], title: str
) -> bytes:
    """Draw what all codes within a Hamming radius are worth: precision and recall by radius.

    Args:
        codes: name -> (precision, recall) in 0…1 at the radii 0, 1, ...; None where nothing is.
        title: heading of the figure.
    """
    figure, panels = _axes(2, title)
    for number, (name, both) in enumerate(codes.items()):
        colour = _PROTOCOLS[number % len(_PROTOCOLS)]
        for axes, values in zip(panels, both, strict=True):
            percent = 100 * np.asarray(values, dtype=np.float64)  # None is NaN: left out
            axes.plot(np.arange(len(percent)), percent, color=colour, label=name, marker=".")
    for axes, what in zip(panels, ("precision", "recall"), strict=True):
        axes.set(xlabel="Hamming radius, bits", ylabel=f"{what}, %", ylim=(0, 102))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="center right")
    return _png(figure)


def picture_rows(
    rows: Mapping[str, Mapping[str, NDArray[np.uint8]]], title: str, width: float = 7.5
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
    axes.axhline(0, color=_NEUTRAL, linewidth=0.8)
    axes.margins(y=0.08)
    axes.set(ylabel=ylabel)
    figure.legend(loc="outside lower center", ncols=len(systems), frameon=False, fontsize=9)
    return _png(figure)


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
    figure, places = _axes(len(panels), title)
    for axes, (name, (x, y)) in zip(places, panels.items(), strict=True):
        axes.scatter(x, y, s=9, color=_PROTOCOLS[0], alpha=0.35, linewidths=0)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=f"{name}, {len(x):,} pairs")
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
