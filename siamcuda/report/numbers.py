"""Numbers for people, each beside the exact one that it was made from."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = [
    "Number",
    "chosen",
    "count",
    "decimal",
    "fraction",
    "one_in",
    "percent",
    "plain",
    "threshold",
]


class Number(NamedTuple):
    """A number as it is read, and as it is."""

    text: str
    exact: float

    def __str__(self) -> str:
        """Return what is read."""
        return self.text


def percent(value: float) -> Number:
    """Write a rate with three digits of itself or of what it lacks to 1: 99.987 %, not 100 %."""
    if math.isnan(value):
        return Number("not a number", value)
    # The space before the sign is one where no line breaks.
    return Number(f"{100 * value:.{_decimals(100 * value, 100)}f}\N{NO-BREAK SPACE}%", value)


def chosen(value: float) -> Number:
    """Write a rate that somebody chose, as it was chosen."""
    return Number(f"{plain(100 * value)}\N{NO-BREAK SPACE}%", value)


def plain(value: float) -> str:
    """Write 0.00001, which Python would write as 1e-05."""
    return np.format_float_positional(float(f"{value:.12g}"), trim="-")


def fraction(value: float) -> Number:
    """Write a number in 0…1 likewise, with four decimals at least."""
    if math.isnan(value):
        return Number("not a number", value)
    return Number(f"{value:.{max(4, _decimals(value, 1))}f}", value)


def _decimals(value: float, whole: float) -> int:
    least = min(abs(value), abs(whole - value))
    if least == 0:
        return 0
    return min(max(2 - math.floor(math.log10(least)), 0), 10)


def decimal(value: float) -> Number:
    """Write any number with four digits."""
    return Number(_word(value) or f"{value:#.4g}", value)


def count(value: int) -> Number:
    """Write a count with its thousands apart."""
    return Number(f"{value:,}", value)


def threshold(value: float, dtype: np.dtype[np.floating]) -> Number:
    """Write a distance with every digit that its precision needs, so that it can be used."""
    return Number(_word(value) or str(dtype.type(value)), value)


def one_in(part: int, total: int) -> str:
    """Say a share as people count: ``1 in 1,000``."""
    if part == 0:
        return f"none of {total:,}"
    each = total / part
    return f"1 in {each:,.1f}" if each < 20 and total % part else f"1 in {round(each):,}"


def _word(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "+∞" if value > 0 else "−∞"
    return ""
