"""The tables of docs/benchmarks.md about verification: beside peers, and beside the peak."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cells import Row, markdown, ours_of, score, setting_of, time, verdict
from bench.results import number

NOTHING = "Not recorded yet."
MILLION = 1_000_000


def _chosen(rows: Sequence[Row]) -> list[Row]:
    def order(row: Row) -> tuple[object, ...]:
        return row["op"], int(row["columns"]), int(row["rows"]), int(row["threads"])

    return sorted((r for r in rows if r["suite"] == "verification"), key=order)


def _name(row: Row) -> list[str]:
    return [f"{row['op']} {row['rows']}x{row['columns']}", row["threads"]]


def _taken(row: Row) -> list[str]:
    """Time, and memory beyond the input."""
    return [time(float(row["median_us"])), _mib(row)]


def _mib(row: Row) -> str:
    return f"{float(row['peak_mib']):.0f}" if row["peak_mib"] else ""


def _peers(rows: Sequence[Row]) -> str:
    chosen = _chosen(rows)
    ours = ours_of(chosen)
    lines = [
        [
            *_name(row), *_taken(ours[setting_of(row)]), f"{row['peer']} ({row['variant']})",
            *_taken(row), score(row),
        ]
        for row in chosen
        if row["peer"] not in ("ours", "limit")
    ]  # fmt: skip
    if not lines:
        return NOTHING
    header = ("case", "threads", "ours", "MiB", "peer", "its time", "MiB", "score")
    return markdown(header, lines)


def _rates(rows: Sequence[Row]) -> str:
    """Pairs and operations a second, and the share of the peak of multiply-adds."""
    chosen = _chosen(rows)
    goals = {setting_of(row): row for row in chosen if row["peer"] == "limit"}
    lines = []
    for row in chosen:
        share = number(row, "of_limit")
        if row["peer"] != "ours" or share is None:
            continue
        seconds = float(row["median_us"]) * 1e-6
        pairs = int(row["rows"]) * (int(row["rows"]) - 1) // 2
        held = goals.get(setting_of(row))
        lines.append(
            [
                *_name(row), f"{seconds:.3g} s", f"{pairs:.3g}", f"{pairs / seconds:.3g}",
                f"{share * float(row['limit']):.0f}", row["limit"].partition(".")[0],
                f"{100 * share:.0f} %", f">= {100 * float(held['goal']):g} %" if held else "",
                verdict(held) if held else "", _mib(row),
            ]
        )  # fmt: skip
    if not lines:
        return NOTHING
    header = (
        "case", "threads", "time", "pairs", "pairs a second", "GFLOP/s", "FMA peak", "of peak",
        "goal", "", "MiB",
    )  # fmt: skip
    return markdown(header, lines) + _extrapolated(chosen)


def _extrapolated(rows: Sequence[Row]) -> str:
    """What the rate of the largest set says of a million embeddings."""
    whole = [r for r in rows if r["peer"] == "ours" and r["op"] == "evaluate"]
    largest = max(whole, key=lambda r: (int(r["rows"]), int(r["threads"])), default=None)
    if largest is None or int(largest["rows"]) < 100_000:
        return ""
    share = (MILLION * (MILLION - 1)) / (int(largest["rows"]) * (int(largest["rows"]) - 1))
    minutes = share * float(largest["median_us"]) / 60e6
    return (
        f"\n\nAt the rate of {int(largest['rows']):,} embeddings, with a time in proportion to the "
        f"pairs, 1,000,000 of them take {minutes:.0f} minutes on {largest['threads']} threads: "
        "scaled, not run."
    )


#: Marker -> what stands between its two comments.
SECTIONS = {"verification": _peers, "verification_rates": _rates}
