"""Images as a system sees them, drawn to PNG bytes: pairs, searches, episodes, maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from siamcuda.report.canvas import GENUINE, IMPOSTOR, png_of

__all__ = [
    "DistanceMap",
    "distance_maps",
    "embedding_map",
    "episode",
    "image_pairs",
    "picture_rows",
    "retrieval_grid",
]

#: Of a figure that shows photographs: half of the bytes, where there is no colour bar.
_COLOURS = 128
#: Of images that are of the query's class, or not: told apart by more than colour.
_FRAMES: dict[bool, dict[str, Any]] = {
    True: {"edgecolor": GENUINE, "linewidth": 1.2},
    False: {"edgecolor": IMPOSTOR, "linewidth": 2.8},
}


class DistanceMap(NamedTuple):
    """A picture that was inspected patch by patch."""

    name: str
    image: NDArray[np.uint8]  # (H, W), grey
    distances: NDArray[np.floating]  # (rows, columns), of the patches
    patch: tuple[int, int]  # side of a patch, and pixels between two of them
    boxes: Sequence[tuple[int, int, int, str]]  # top, left, side, name: what is to be found


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
    return png_of(figure)


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
    # Of a map that lists its colours, which the base class of all maps doesn't.
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
    return png_of(figure)


def _nearest_to_cells(points: NDArray[np.floating]) -> list[int]:
    """The point nearest to the middle of each unit square that has one."""
    cells = np.floor(points)
    off = np.square(points - cells - 0.5).sum(1)
    nearest: dict[tuple[float, float], int] = {}
    for row in np.argsort(-off, kind="stable").tolist():
        nearest[tuple(cells[row].tolist())] = row
    return sorted(nearest.values())


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
    return png_of(figure, _COLOURS)


def image_pairs(
    left: Sequence[NDArray[np.uint8]], right: Sequence[NDArray[np.uint8]],
    captions: Sequence[str], title: str, most: int = 60, *, columns: int = 10,
    inverted: bool = True,
) -> bytes:  # fmt: skip
    """Draw images pair by pair, side by side or wide ones one above the other, with captions.

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
    height, width = left[0].shape[:2] if count else (1, 1)
    axis = int(height > width / 1.3)  # of a tall image's pair: side by side
    shape = (2 - axis) * height / ((1 + axis) * width)  # of a pair: its height by its width
    words = 0.12 * max((caption.count("\n") for caption in captions), default=0)
    size = (1.25 * columns + 0.2, (1.25 * shape + 0.32 + words) * lines + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for index, axes in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
        axes.set_axis_off()
        if index < count:
            both = np.concatenate([left[index], right[index]], axis=axis)
            axes.imshow(both, cmap="gray_r" if inverted else "gray", vmin=0, vmax=255,
                        interpolation="nearest")  # fmt: skip
            axes.set_title(captions[index], fontsize=7, pad=2)
    return png_of(figure, 0 if inverted else _COLOURS)


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
    return png_of(figure, 256)


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
    return png_of(figure)
