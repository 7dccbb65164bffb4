"""The tables of docs/benchmarks.md about search: against peers, against the machine, streamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.cells import Row, goal, markdown, ours_of, score, setting_of, time, verdict
from bench.results import number

NOTHING = "Not recorded yet."
#: Rows of the galleries that are drawn over their size, beside the one that goals are set for.
SCALED = ("1000", "10000", "1000000")


def order(row: Row) -> tuple[object, ...]:
    """Searches first, k = 10 before 100, few columns before many."""
    kinds = ("search", "range_search", "hamming", "build", "stream")
    kind = kinds.index(row["op"].partition("[")[0])
    sizes = int(row["columns"]), int(row["rows"])
    return kind, len(row["op"]), row["op"], *sizes, row["mode"], int(row["threads"])


def _chosen(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> list[Row]:
    return sorted((r for r in rows if r["suite"] == "gallery" and wanted(r)), key=order)


def _name(row: Row) -> list[str]:
    return [f"{row['op']} {row['rows']}x{row['columns']}", row["mode"], row["threads"]]


def _one_query(row: Row) -> bool:
    return row["op"].startswith("search[1 query")


def _many(row: Row) -> bool:
    return row["op"].startswith(("search[1000", "range_search")) and row["rows"] not in SCALED


def _against(wanted: Callable[[Row], bool]) -> Callable[[Sequence[Row]], str]:
    """A line for each peer: its time beside ours."""

    def section(rows: Sequence[Row]) -> str:
        chosen = _chosen(rows, wanted)
        ours = ours_of(chosen)
        lines = [
            [
                *_name(row), time(float(ours[setting_of(row)]["median_us"])),
                f"{row['peer']} ({row['variant']})", time(float(row["median_us"])),
                score(row), goal(row), verdict(row),
            ]
            for row in chosen
            if row["peer"] not in ("ours", "limit")
        ]  # fmt: skip
        if not lines:
            return NOTHING
        header = ("case", "screening", "threads", "ours", "peer", "its time", "score", "goal", "")
        return markdown(header, lines)

    return section


def _shares(
    rows: Sequence[Row], wanted: Callable[[Row], bool], rate: Callable[[Row], list[str]],
    header: Sequence[str],
) -> str:  # fmt: skip
    """A line for us and for each peer: the share of the machine's limit."""
    chosen = _chosen(rows, wanted)
    goals = {setting_of(row): row for row in chosen if row["peer"] == "limit"}
    lines = []
    for row in chosen:
        share = number(row, "of_limit")
        if row["peer"] == "limit" or share is None:
            continue
        held = goals.get(setting_of(row)) if row["peer"] == "ours" else None
        aim = [f">= {100 * float(held['goal']):g} %", verdict(held)] if held else ["", ""]
        who = "siamcuda" if row["peer"] == "ours" else row["peer"]
        lines.append([*_name(row), who, *rate(row), f"{100 * share:.0f} %", *aim])
    if not lines:
        return NOTHING
    return markdown(("case", "screening", "threads", "who", *header, "goal", ""), lines)


def _rates(rows: Sequence[Row]) -> str:
    """Operations a second beside the peak of multiply-adds in float32."""

    def rate(row: Row) -> list[str]:
        peak = float(row["limit"])
        return [f"{float(row['of_limit']) * peak:.0f}", f"{peak:.0f}"]

    return _shares(
        rows, lambda r: _many(r) and r["peer"] in ("ours", "faiss", "limit"), rate,
        ("GFLOP/s", "FMA peak", "of peak"),
    )  # fmt: skip


def _bandwidth(rows: Sequence[Row]) -> str:
    """Bytes read a second beside the memory's bandwidth, and what float32 would have to read."""

    def rate(row: Row) -> list[str]:
        plain = 4e-3 * int(row["rows"]) * int(row["columns"]) / float(row["median_us"])
        return [
            time(float(row["median_us"])), f"{float(row['bytes']) / 2**20:.0f}",
            f"{float(row['gbps']):.1f}", f"{plain:.1f}", f"{float(row['limit']):.1f}",
        ]  # fmt: skip

    return _shares(
        rows, _one_query, rate,
        ("time", "MiB read", "GB/s", "as float32", "memory", "of memory"),
    )  # fmt: skip


def _stream(rows: Sequence[Row]) -> str:
    lines = []
    for r in sorted((r for r in rows if r["suite"] == "stream"), key=order):
        size = float(r["bytes"])
        share = number(r, "of_limit")
        lines.append(
            [
                f"{r['op']} {r['rows']}x{r['columns']}", r["mode"], r["threads"],
                f"{size / 2**30:.3g} GiB", f"{float(r['median_us']) / 1e6:.1f} s",
                f"{float(r['gbps']):.2f}",
                "" if share is None else f"{float(r['limit']):.2f}",
                f"{float(r['peak_mib']):.0f}",
            ]
        )  # fmt: skip
    if not lines:
        return NOTHING
    header = (
        "case", "screening", "threads", "file", "time", "GB/s", "reading alone, GB/s",
        "peak MiB of the process",
    )  # fmt: skip
    return markdown(header, lines)


def _picture(title: str, name: str) -> Callable[[Sequence[Row]], str]:
    """A picture that bench/plot_search.py draws from the same rows."""
    return lambda rows: f"![{title}](img/{name})" if _chosen(rows, _many) else NOTHING


#: Marker -> what stands between its two comments.
SECTIONS: dict[str, Callable[[Sequence[Row]], str]] = {
    "search": _against(_many),
    "search_picture": _picture("Search beside faiss", "bench_search.png"),
    "search_rates": _rates,
    "search_one": _bandwidth,
    "search_one_peers": _against(_one_query),
    "search_bits": _against(lambda r: r["op"].startswith("hamming")),
    "search_build": _against(lambda r: r["op"] == "build"),
    "search_sizes": _against(lambda r: r["op"].startswith("search[1000") and not _many(r)),
    "search_scaling": _picture("Search over size, threads and columns", "bench_search_scaling.png"),
    "search_stream": _stream,
}
