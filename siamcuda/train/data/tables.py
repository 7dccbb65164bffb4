"""Rows of CSV and TSV files, each with its line, so that an error can say where it is."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from siamcuda.train.errors import InputError

__all__ = ["read_columns", "read_rows"]


def read_rows(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[int, list[str]]]:
    """Yield the line (from 1) and the fields of each row that isn't empty.

    Fields are parted by tabs where the file's name ends in .tsv, .tab or .txt, else by commas.
    """
    tabs = path.suffix.lower() in (".tsv", ".tab", ".txt")
    line = 0
    try:
        with path.open(encoding=encoding, newline="") as file:
            rows = csv.reader(file, delimiter="\t" if tabs else ",", strict=True)
            for row in rows:
                line = rows.line_num
                if row:
                    yield line, [field.strip() for field in row]
    except UnicodeDecodeError as error:
        raise InputError(f"data: {path}: not a text file in UTF-8 ({error})") from error
    except OSError as error:
        raise InputError(f"data: cannot read {path}: {error.strerror or error}") from error
    except csv.Error as error:
        raise InputError(f"data: {path}: after line {line}: {error}") from error


def read_columns(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> tuple[list[int], list[list[str]]]:
    """Read columns by the names in a file's first row, in any order and case; others are ignored.

    Returns:
        The line of each row, and the rows: the fields of ``columns`` and then of those of
        ``optional`` that the file has.

    Raises:
        InputError: names the file, and the column that is missing or the line that is short.
    """
    rows = read_rows(path)
    _, header = next(rows, (0, []))
    known = [name.lower() for name in header]
    for name in columns:
        if known.count(name.lower()) != 1:
            raise InputError(
                f"data: {path}: the first row must name the columns {', '.join(columns)} once "
                f"each, it has {', '.join(header) or 'nothing'}"
            )
    places = [known.index(name.lower()) for name in columns]
    places += [known.index(name.lower()) for name in optional if name.lower() in known]
    lines, found = [], []
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"data: {path}: line {line} has {len(row)} fields, the first row {len(header)}"
            )
        lines.append(line)
        found.append([row[place] for place in places])
    if not found:
        raise InputError(f"data: {path}: holds no row beside the names of its columns")
    return lines, found
