"""Pictures of search: bars against peers, and scaling over sizes, threads and columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.canvas import PAPER, figure_of, save, sign
from bench.cells import Row
from bench.results import number
from bench.table_search import order

#: (peer, mode) -> colour and name. Every peer is timed beside float32, faiss beside int8 too.
LINES = {
    ("ours", "int8"): ("#0f4f3a", "siamcuda, int8 screening"),
    ("ours", "float32"): ("#35a57c", "siamcuda, float32"),
    ("faiss", "float32"): ("#2f5d9b", "faiss"),
    ("torch", "float32"): ("#c8553d", "torch, in blocks"),
    ("scikit-learn", "float32"): ("#b8860b", "scikit-learn"),
    ("torch.cdist", "float32"): ("#7d4e9e", "torch.cdist"),
}
#: Cases that lines go through: a thousand queries, and the size that most are measured at.
OP, ROWS, COLUMNS = "search[1000 queries, k=10]", "100000", "128"
GRID = {"which": "major", "color": "#e5e7eb", "linewidth": 0.6}


def _most_threads(rows: Sequence[Row]) -> list[Row]:
    threads = max((int(row["threads"]) for row in rows), default=1)
    return [row for row in rows if int(row["threads"]) == threads]


def ratios(rows: Sequence[Row], path: Path) -> bool:
    """How many times faster than faiss, a bar a case, goals as lines; False if there is none."""
    found = [
        row for row in _most_threads(rows)
        if row["peer"] == "faiss" and row["op"] != "build" and number(row, "goal") is not None
    ]  # fmt: skip
    if not found:
        return False
    found.sort(key=order)
    figure, (ax,) = figure_of(9, 1.4 + 0.3 * len(found))
    for y, row in enumerate(found):
        colour = LINES["ours", "int8" if row["mode"] == "int8" else "float32"][0]
        value, goal = float(row["score"]), float(row["goal"])
        ax.barh(y, value, 0.7, color=colour)
        ax.annotate(
            f"{value:.2f}", (max(value, goal), y), (5, 0), textcoords="offset points", va="center",
            fontsize=7, bbox=PAPER,
        )  # fmt: skip
        ax.plot([goal, goal], [y - 0.35, y + 0.35], color="black", linewidth=2)
    for mode, name in (("int8", "screened by codes"), ("float32", "float32, or bits")):
        ax.barh(0, 0, color=LINES["ours", mode][0], label=name)
    ax.plot([], [], color="black", linewidth=2, label="goal")
    ax.axvline(1, color="#8a8f98", linewidth=0.8, linestyle=":")
    labels = [f"{r['op']} {int(r['rows']):,} x {r['columns']}, {r['mode']}" for r in found]
    ax.set_yticks(range(len(found)), labels)
    ax.tick_params(axis="y", labelsize=7)
    ax.invert_yaxis()
    threads = found[0]["threads"]
    ax.set(
        xlabel=f"times faster (faiss's median / ours), {threads} thread{'s' * (threads != '1')}",
        title="Exact search beside faiss",
        xlim=(0, 1.08 * max(float(row[name]) for row in found for name in ("score", "goal"))),
    )  # fmt: skip
    ax.margins(y=0.02)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=3)
    sign(figure, rows)
    save(figure, path)
    return True


def _series(
    rows: Sequence[Row], x: str, y: Callable[[Row], float]
) -> dict[tuple[str, str], list[tuple[int, float]]]:
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row["op"] == OP:
            found.setdefault((row["peer"], row["mode"]), {})[int(row[x])] = y(row)
    return {key: sorted(found[key].items()) for key in LINES if key in found}


def _milliseconds(row: Row) -> float:
    return float(row["median_us"]) / 1000


def _gflops(row: Row) -> float:
    return float(row["of_limit"]) * float(row["limit"])


def scaling(rows: Sequence[Row], path: Path) -> bool:
    """Time over the gallery's size and over threads, and the rate over columns."""
    fast = _most_threads(rows)
    at_rows = [r for r in rows if r["rows"] == ROWS]
    sizes = _series([r for r in fast if r["columns"] == COLUMNS], "rows", _milliseconds)
    threads = _series([r for r in at_rows if r["columns"] == COLUMNS], "threads", _milliseconds)
    widths = _series(
        [r for r in fast if r in at_rows and r["peer"] in ("ours", "faiss") and r["of_limit"]],
        "columns", _gflops,
    )  # fmt: skip
    if len(sizes.get(("ours", "float32"), [])) < 2:
        return False
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (over_size, over_threads, over_columns) = figure_of(12, 4.4, 3)
    many = fast[0]["threads"]
    of_threads = f"{many} thread{'s' * (many != '1')}"
    handles: dict[str, Any] = {}
    for ax, found in ((over_size, sizes), (over_threads, threads), (over_columns, widths)):
        for key, points in found.items():
            colour, name = LINES[key]
            (line,) = ax.plot(
                [at for at, _ in points], [value for _, value in points], color=colour, marker="o",
                markersize=4,
            )  # fmt: skip
            handles.setdefault(name, line)
        ticks = sorted({at for points in found.values() for at, _ in points})
        ax.set_xscale("log")
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        ax.set_xticks([], minor=True)
        ax.grid(True, **GRID)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    for ax, steps in ((over_size, (1,)), (over_threads, (1, 2, 5))):
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=steps))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    over_size.set(
        xlabel="rows of the gallery", title=f"D = {COLUMNS}, {of_threads}",
        ylabel="milliseconds for 1000 queries, k = 10",
    )  # fmt: skip
    over_threads.set(
        xlabel="threads", title=f"{int(ROWS):,} x {COLUMNS}",
        ylabel="milliseconds for 1000 queries, k = 10",
    )  # fmt: skip
    over_columns.set(
        xlabel="columns", ylabel="GFLOP/s, counted as 2QND", ylim=(0, None),
        title=f"{int(ROWS):,} rows, {of_threads}",
    )  # fmt: skip
    peaks = [number(r, "limit") or 0.0 for r in fast if (r["peer"], r["mode"]) in widths]
    if peaks:
        line = over_columns.axhline(max(peaks), color="black", linestyle=":", linewidth=1)
        handles["peak of multiply-adds in float32"] = line
    for ax in (over_size, over_threads, over_columns):
        ax.title.set_fontsize(10)
    figure.legend(
        list(handles.values()), list(handles), frameon=False, fontsize=8,
        loc="outside upper center", ncols=4,
    )  # fmt: skip
    sign(figure, rows)
    save(figure, path)
    return True
