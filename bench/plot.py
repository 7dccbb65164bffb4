"""Draws the result file: ratios with their goals, and scaling over the batch.

python -m bench.plot            docs/img/bench_*.png from bench/results.csv and results_cuda.csv
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench import plot_search, results
from bench.canvas import PAPER, figure_of, save, sign
from bench.cells import GRAPH, Row
from bench.results import BenchError, number

IMAGES = results.ROOT / "docs" / "img"
COLOURS = {
    "ours": "#1b7f5c", "eager": "#c8553d", "compile": "#2f5d9b", "floor": "#8a8f98",
    "pytorch-metric-learning": "#b8860b", "sentence-transformers": "#7d4e9e",
    "open-metric-learning": "#3b9aa8",
}  # fmt: skip
NAMES = {"ours": "siamcuda", "eager": "PyTorch eager", "compile": "torch.compile"}
LIBRARIES = ("pytorch-metric-learning", "sentence-transformers", "open-metric-learning")
MODES = {
    "autograd": "forward + backward",
    "value_and_grad": "value_and_grad",
    "forward": "forward, no grad",
}


def _short(row: Row) -> str:
    title = row["op"].replace("_loss", "").replace("_", " ")
    return f"{title}, {MODES[row['mode']]}"


def ratios(rows: Sequence[Row], title: str, path: Path) -> bool:
    """How many times faster than each peer, one group of bars a case; False if there is none."""
    bars: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row.get("compare") == "ratio" and row["peer"] in NAMES:
            setting = f"{row['allocator']} heap, {row['threads']} thread"
            setting += "s" if row["threads"] != "1" else ""
            bars.setdefault((_short(row), setting), {})[row["peer"]] = row
    if not bars:
        return False
    groups = sorted(bars)
    figure, (ax,) = figure_of(9, 1.2 + 0.42 * len(groups))
    height = 0.38
    for i, peer in enumerate(("eager", "compile")):
        offset = (i - 0.5) * height
        found = [(y, bars[group][peer]) for y, group in enumerate(groups) if peer in bars[group]]
        ax.barh(
            [y + offset for y, _ in found], [float(row["score"]) for _, row in found], height,
            color=COLOURS[peer], label=f"against {NAMES[peer]}",
        )  # fmt: skip
        for y, row in found:
            goal, score = number(row, "goal"), float(row["score"])
            ax.text(score, y + offset, f" {score:.1f}", va="center", fontsize=7, bbox=PAPER)
            if goal is not None:
                edges = (y + offset - height / 2, y + offset + height / 2)
                ax.plot([goal, goal], edges, color="black", linewidth=2)
    ax.plot([], [], color="black", linewidth=2, label="goal")
    ax.axvline(1, color="#8a8f98", linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(groups)), [f"{case}\n{setting}" for case, setting in groups])
    ax.tick_params(axis="y", labelsize=7)
    ax.invert_yaxis()
    ax.set(xlabel="times faster (peer's median / ours)", title=title, xlim=(0, None))
    ax.margins(y=0.02)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=3)
    sign(figure, rows)
    save(figure, path)
    return True


def overhead(rows: Sequence[Row], path: Path) -> bool:
    """Microseconds of a call on tiny tensors: the empty op, ours, eager."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["mode"] == "forward" and row["threads"] == rows[-1]["threads"]:
            found.setdefault(row["op"], {})[row["peer"]] = row
    found = {op: peers for op, peers in found.items() if {"ours", "floor"} <= peers.keys()}
    if not found:
        return False
    figure, (ax,) = figure_of(8, 1.2 + 0.5 * len(found))
    goal = None
    for y, peers in enumerate(found.values()):
        for i, peer in enumerate(("floor", "ours", "eager")):
            if peer in peers:
                value = float(peers[peer]["median_us"])
                place = y + (i - 1) * 0.27
                ax.barh(place, value, 0.25, color=COLOURS[peer])
                ax.text(value, place, f" {value:.1f}", va="center", fontsize=7, bbox=PAPER)
        goal = number(peers["floor"], "goal")
        if goal is not None:
            end = float(peers["floor"]["median_us"]) + goal
            ax.plot([end, end], [y - 0.15, y + 0.15], color="black", linewidth=2)
    for peer, name in (("floor", "empty op"), ("ours", "siamcuda"), ("eager", "PyTorch eager")):
        ax.barh(0, 0, color=COLOURS[peer], label=name)
    if goal is not None:
        ax.plot([], [], color="black", linewidth=2, label=f"goal: empty op + {goal:g} us")
    ax.set_yticks(range(len(found)), list(found))
    ax.invert_yaxis()
    ax.set(xlabel="microseconds a call, no grad", title="Call overhead, 32 x 128")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=4)
    sign(figure, rows)
    save(figure, path)
    return True


def scaling(rows: Sequence[Row], path: Path) -> bool:
    """Time over batch size, one panel an operation and mode, on the warm heap."""
    threads = max((int(row["threads"]) for row in rows), default=1)
    series: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        tiny = int(row["rows"]) <= 32  # measured on the default heap alone, where it is no matter
        if (
            row["peer"] in NAMES
            and row["mode"] in ("autograd", "value_and_grad")
            and int(row["threads"]) == threads
            and (row["allocator"] == "warm" or tiny)
        ):
            panel = series.setdefault((row["op"], row["mode"]), {})
            panel.setdefault(row["peer"], {})[int(row["rows"])] = float(row["median_us"])
    panels = {
        key: peers for key, peers in series.items()
        if max(len(times) for times in peers.values()) >= 3
    }  # fmt: skip
    if not panels:
        return False
    figure, grid = figure_of(3.6 * len(panels), 3.8, len(panels))
    for ax, ((op, mode), peers) in zip(grid, sorted(panels.items()), strict=True):
        for peer in NAMES:
            times = sorted(peers.get(peer, {}).items())
            if times:
                style = {"color": COLOURS[peer], "label": NAMES[peer], "marker": "o"}
                ax.loglog([b for b, _ in times], [t for _, t in times], markersize=4, **style)
        ax.set(xlabel="rows (D = 128)", title=f"{op}\n{MODES[mode]}")
        ax.title.set_fontsize(9)
        ax.grid(True, which="major", color="#e5e7eb", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel(f"microseconds a step, {threads} thread{'s' if threads > 1 else ''}")
    grid[0].legend(frameon=False, fontsize=8)
    sign(figure, rows)
    save(figure, path)
    return True


def batch_scaling(rows: Sequence[Row], path: Path) -> bool:
    """Time and memory over batch size, a column an operation, each peer as far as it was run."""
    threads = max((int(row["threads"]) for row in rows), default=1)
    series: dict[str, dict[str, dict[int, tuple[float, float]]]] = {}
    for row in rows:
        if int(row["threads"]) == threads and row["allocator"] == "warm":
            point = (float(row["median_us"]) / 1000, float(row["peak_mib"] or "nan"))
            panel = series.setdefault(row["op"], {}).setdefault(row["peer"], {})
            panel[int(row["rows"])] = point
    panels = {op: found for op, found in series.items() if len(found.get("ours", {})) >= 3}
    if not panels:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.8 * len(panels), 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(panels), squeeze=False)
    for column, (op, found) in enumerate(sorted(panels.items())):
        for quantity, label in ((0, "milliseconds a step"), (1, "MiB above the inputs")):
            ax = grid[quantity][column]
            for peer in (*NAMES, *LIBRARIES):
                points = sorted(found.get(peer, {}).items())
                # Below a mebibyte there is nothing to see.
                values = [max(p[quantity], 1.0) if quantity else p[quantity] for _, p in points]
                if points:
                    ax.loglog(
                        [b for b, _ in points], values, marker="o", markersize=4,
                        color=COLOURS[peer], label=NAMES.get(peer, peer),
                    )  # fmt: skip
            sizes = sorted({b for points in found.values() for b in points})
            ax.set_xticks(sizes, [str(b) for b in sizes])
            ax.set_xticks([], minor=True)
            ax.grid(True, which="major", color="#e5e7eb", linewidth=0.6)
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
            if quantity == 0:
                ax.set_title(op, fontsize=9)
            else:
                ax.set_xlabel("rows of the batch (D = 128)")
            if column == 0:
                ax.set_ylabel(f"{label}, {threads} threads" if quantity == 0 else label)
    handles: dict[str, Any] = {}
    for ax in grid[0]:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(
        list(handles.values()), list(handles), frameon=False, fontsize=8,
        loc="outside upper center", ncols=len(handles),
    )  # fmt: skip
    sign(figure, rows)
    save(figure, path)
    return True


def cuda(rows: Sequence[Row], path: Path) -> bool:
    """A GPU's time, called and as captured graphs (dashed), and memory over rows; False if none."""
    series: dict[str, dict[tuple[str, bool], dict[int, tuple[float, float]]]] = {}
    for row in rows:
        mode = row["mode"].removesuffix(GRAPH)
        if (
            row["suite"] not in ("batch", "paired")
            or mode != "autograd"
            or row["peer"] not in NAMES
        ):
            continue
        memory = number(row, "peak_mib")
        point = float(row["median_us"]), float("nan") if memory is None else memory
        line = series.setdefault(row["op"], {}).setdefault((row["peer"], mode != row["mode"]), {})
        line[int(row["rows"])] = point
    sizes_of = {op: len(found.get(("ours", False), {})) for op, found in series.items()}
    least = min(3, max(sizes_of.values(), default=0))  # of two sizes only where none has more
    panels = {op: found for op, found in series.items() if sizes_of[op] >= max(least, 2)}
    if not panels:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(3.3 * len(panels), 7.5), 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(panels), squeeze=False)
    handles: dict[str, Any] = {}
    for column, (op, found) in enumerate(sorted(panels.items())):
        sizes = sorted({b for points in found.values() for b in points})
        for quantity, label in ((0, "microseconds a step"), (1, "MiB above the inputs")):
            ax = grid[quantity][column]
            for (peer, graph), points in sorted(found.items()):
                if graph and quantity:
                    continue  # a graph keeps its memory; what it takes was not measured
                name = NAMES[peer] + (", CUDA graph" if graph else "")
                # Below a mebibyte there is nothing to see.
                values = [max(p[1], 1.0) if quantity else p[0] for _, p in sorted(points.items())]
                (line,) = ax.loglog(
                    sorted(points), values, marker="o", markersize=4, color=COLOURS[peer],
                    linestyle="--" if graph else "-",
                )  # fmt: skip
                handles.setdefault(name, line)
            ax.set_xticks(sizes, [str(b) for b in sizes])
            ax.set_xticks([], minor=True)
            ax.tick_params(axis="x", labelsize=8)
            ax.grid(True, which="major", color="#e5e7eb", linewidth=0.6)
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
            if quantity == 0:
                ax.set_title(op.replace("batch_contrastive_loss[", "batch_contrastive_loss\n["))
                ax.title.set_fontsize(9)
            else:
                ax.set_xlabel("rows (D = 128)")
            if column == 0:
                ax.set_ylabel(label)
    order = sorted(handles)
    figure.legend(
        [handles[name] for name in order], order, frameon=False, fontsize=8,
        loc="outside upper center", ncols=3,
    )  # fmt: skip
    row = rows[-1]
    caption = f"{row['gpu']}, driver {row['driver']}, CUDA {row['cuda']}; torch {row['torch']}"
    figure.supxlabel(
        f"{caption}; commit {row['commit']}, {row['date'][:10]}", fontsize=6.5, color="#44546a"
    )
    save(figure, path)
    return True


def draw(rows: Sequence[Row], folder: Path, gpu: Sequence[Row] = ()) -> list[Path]:
    """Every picture that the rows have data for."""
    timed = [row for row in rows if row["suite"] == "paired"]
    batch = [row for row in rows if row["suite"] == "batch"]
    search = [row for row in rows if row["suite"] == "gallery"]
    wanted: list[tuple[Callable[[Path], bool], str]] = [
        (partial(overhead, timed), "bench_overhead.png"),
        (partial(scaling, timed), "bench_scaling.png"),
        (partial(batch_scaling, batch), "bench_batch.png"),
        (partial(plot_search.ratios, search), "bench_search.png"),
        (partial(plot_search.scaling, search), "bench_search_scaling.png"),
        (partial(cuda, gpu), "bench_cuda.png"),
    ]
    sizes = (
        ("tiny", "On 32 x 128 (call overhead)", range(33)),
        ("cache", "On 2048 x 128 (in cache)", range(2048, 2049)),
        ("memory", "On 65536 x 128 (from memory)", range(65536, 65537)),
    )
    for name, title, inside in sizes:
        part = [
            row for row in timed
            if int(row["rows"]) in inside and row["mode"] in ("autograd", "value_and_grad")
        ]  # fmt: skip
        wanted.append((partial(ratios, part, title), f"bench_{name}.png"))
    return [folder / name for make, name in wanted if make(folder / name)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 if there is nothing to draw or no matplotlib."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("--csv", type=Path, default=results.DEFAULT_CSV)
    parser.add_argument("--cuda-csv", type=Path, default=results.CUDA_CSV)
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder; default docs/img")
    options = parser.parse_args(arguments)
    try:
        rows, gpu = (
            results.latest([r for r in results.read(path) if r.get("quick") != "1"])
            for path in (options.csv, options.cuda_csv)
        )
        pictures = draw(rows, options.out, gpu)
    except (BenchError, OSError) as error:
        print(f"bench.plot: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"bench.plot needs {error.name}: pip install matplotlib", file=sys.stderr)
        return 2
    for picture in pictures:
        print(picture)
    if not pictures:
        print(f"bench.plot: nothing to draw in {options.csv}", file=sys.stderr)
    return 0 if pictures else 2


if __name__ == "__main__":
    sys.exit(main())
