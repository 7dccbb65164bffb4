"""What the tables are made of: cells from a row of the result file, lines, grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.results import number

#: The end of a mode whose steps ran as captured CUDA graphs.
GRAPH = " graph"

Row = dict[str, str]


def time(microseconds: float) -> str:
    """Three digits with their unit."""
    if microseconds < 1000:
        return f"{microseconds:.3g} us"
    return f"{microseconds / 1000:.3g} ms"


def verdict(row: Row) -> str:
    """met, missed, or nothing where no goal is set."""
    score, goal = number(row, "score"), number(row, "goal")
    if score is None or goal is None:
        return ""
    return "met" if (score >= goal) == (row["compare"] == "ratio") or score == goal else "missed"


def score(row: Row) -> str:
    value = number(row, "score")
    if value is None:
        return ""
    return f"{value:.2f}x" if row["compare"] == "ratio" else f"{value:+.2f} us"


def goal(row: Row) -> str:
    value = number(row, "goal")
    if value is None:
        return ""
    return f">= {value:g}x" if row["compare"] == "ratio" else f"<= {value:g} us"


def grid(header: Sequence[str], lines: Sequence[Sequence[str]], numeric: int = 99) -> str:
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    text = []
    for line in [header, *lines]:
        cells = [
            cell.rjust(width) if i >= numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def in_order(rows: Sequence[Row]) -> list[Row]:
    modes = ("forward", "autograd", "value_and_grad", "bits", "float32", "int8")
    return sorted(
        rows,
        key=lambda r: (
            int(r["rows"]), modes.index(r["mode"].removesuffix(GRAPH)), r["op"],
            r["mode"].endswith(GRAPH), r["allocator"], int(r["threads"]),
        ),
    )  # fmt: skip


def timed_rows(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["suite"] != "limits"]


def ours_of(rows: Sequence[Row]) -> dict[tuple[str, ...], Row]:
    return {setting_of(row): row for row in rows if row["peer"] == "ours"}


def setting_of(row: Row) -> tuple[str, ...]:
    return row["suite"], row["case"], row["allocator"], row["threads"]


def comparisons(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> list[list[str]]:
    ours = ours_of(rows)
    lines = []
    for row in in_order([r for r in timed_rows(rows) if r["peer"] != "ours" and wanted(r)]):
        own = ours[setting_of(row)]
        lines.append(
            [
                row["case"], row["allocator"], row["threads"],
                time(float(own["median_us"])),
                f"{row['peer']} ({row['variant']})", time(float(row["median_us"])),
                score(row), goal(row), verdict(row),
            ]
        )  # fmt: skip
    return lines


HEADER = ("case", "allocator", "threads", "ours", "peer", "its time", "score", "goal", "")
