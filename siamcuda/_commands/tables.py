"""Tables on a terminal: by rich where it is installed, else in plain columns."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from siamcuda.report.summary import KeyFigure, OperatingPoint

__all__ = ["print_facts", "print_key_figures", "print_points"]


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print what was evaluated, a line each."""
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        print(f"{name:<{width}}  {text}")
    print()


def print_key_figures(figures: Sequence[KeyFigure]) -> None:
    """Print the numbers that say how good the whole is."""
    rows = [(f.name, f.value.text if f.value else "-", f.note) for f in figures]
    _print(("", "", ""), rows, numbers=(1,))


def print_points(points: Sequence[OperatingPoint]) -> None:
    """Print thresholds and their error rates."""
    heads = ("FAR asked", "threshold", "FAR reached", "false accepts", "FRR", "TAR")
    rows = []
    for p in points:
        frr = p.frr.text
        if p.interval:
            frr += f" ({p.interval[0]} to {p.interval[1]})"
        rows.append((
            p.asked.text if p.asked else "equal error",
            p.threshold.text,
            p.far.text,
            f"{p.false_accepts} ({p.one_in})",
            frr,
            p.tar.text,
        ))  # fmt: skip
    _print(heads, rows, numbers=range(6))


def _print(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> None:
    if sys.stdout.isatty():
        try:
            _print_by_rich(heads, rows, numbers)
        except ModuleNotFoundError:
            pass
        else:
            return
    named = [heads, *rows] if any(heads) else rows
    widths = [max(len(row[k]) for row in named) for k in range(len(heads))]
    for row in named:
        cells = [
            f"{text:>{widths[k]}}" if k in numbers else f"{text:<{widths[k]}}"
            for k, text in enumerate(row)
        ]
        print("  ".join(cells).rstrip())
    print()


def _print_by_rich(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=any(heads), box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for k, head in enumerate(heads):
        table.add_column(head, justify="right" if k in numbers else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # labels are text, not markup
    Console().print(table)
    print()
