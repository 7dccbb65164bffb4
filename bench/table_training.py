"""The tables of docs/benchmarks.md about training: whole steps, and what a step is made of."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cells import Row, markdown, setting_of
from bench.results import number
from bench.training import PARTS, PRODUCT, REFERENCE, SUITE

NOTHING = "Not recorded yet."


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """Steps of ours, by encoder, objective and size."""

    def order(row: Row) -> tuple[object, ...]:
        objective, _, encoder = row["op"].partition(", ")
        return encoder, objective, int(row["rows"]), int(row["threads"])

    return sorted((r for r in rows if r["suite"] == SUITE and r["peer"] == "ours"), key=order)


def _others(rows: Sequence[Row]) -> dict[tuple[str, ...], Row]:
    """Setting and peer -> row."""
    return {(*setting_of(row), row["peer"]): row for row in rows if row["suite"] == SUITE}


def _rate(row: Row) -> str:
    return f"{1e6 / float(row['median_us']):.3g}"


def _mib(row: Row) -> str:
    return f"{float(row['peak_mib']):.0f}" if row["peak_mib"] else ""


def _steps(rows: Sequence[Row]) -> str:
    found = _others(rows)
    lines = []
    for row in _chosen(rows):
        theirs = [found.get((*setting_of(row), peer)) for peer in (REFERENCE, PRODUCT)]
        cells = [
            cell
            for r in theirs
            for cell in ([f"{float(r['score_rounds']):.2f}x", _mib(r)] if r else ["", ""])
        ]
        lines.append(
            [
                row["op"], row["rows"], row["threads"], _rate(row), _mib(row), *cells,
                f"{float(row['busy']):.2f}",
            ]
        )  # fmt: skip
    if not lines:
        return NOTHING
    header = (
        "objective, encoder", "rows", "threads", "our steps a second", "MiB a step",
        "reference / ours", "its MiB", "product / ours", "its MiB", "processors at work",
    )  # fmt: skip
    return markdown(header, lines)


def _parts(rows: Sequence[Row]) -> str:
    """Shares of our step, the loss in plain PyTorch beside it, and what is left over."""
    found = _others(rows)
    lines = []
    for row in _chosen(rows):
        own = {part: found.get((*setting_of(row), part)) for part in PARTS}
        if not any(own.values()):
            continue
        shares = {part: number(r, "score_rounds") for part, r in own.items() if r}
        known = sum(share or 0 for part, share in shares.items() if part != "plain loss")
        cells = [_percent(shares.get(part)) for part in PARTS]
        lines.append([row["op"], row["rows"], row["threads"], *cells, _percent(1 - known)])
    if not lines:
        return NOTHING
    return markdown(("objective, encoder", "rows", "threads", *PARTS, "the rest"), lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


#: Marker -> what stands between its two comments.
SECTIONS = {"training": _steps, "training_parts": _parts}
