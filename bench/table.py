"""The tables of results: on the terminal, and between markers in docs/benchmarks.md and README.md.

python -m bench.table            rewrites the tables in both from the CSV
python -m bench.table --check    fails if they are not what the CSV says
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import results
from bench.results import BenchError, number
from siamcuda._files import write_atomically

DOCUMENTS = (results.ROOT / "docs" / "benchmarks.md", results.ROOT / "README.md")
BEGIN, END = "<!-- bench:{} begin -->", "<!-- bench:{} end -->"

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


def _grid(header: Sequence[str], lines: Sequence[Sequence[str]], numeric: int = 99) -> str:
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    text = []
    for line in [header, *lines]:
        cells = [
            cell.rjust(width) if i >= numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _sorted(rows: Sequence[Row]) -> list[Row]:
    sizes = ("forward", "autograd", "value_and_grad")
    return sorted(
        rows,
        key=lambda r: (
            int(r["rows"]), sizes.index(r["mode"]), r["op"], r["allocator"], int(r["threads"]),
        ),
    )  # fmt: skip


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["suite"] != "limits"]


def _ours(rows: Sequence[Row]) -> dict[tuple[str, ...], Row]:
    return {_setting(row): row for row in rows if row["peer"] == "ours"}


def _setting(row: Row) -> tuple[str, ...]:
    return row["suite"], row["case"], row["allocator"], row["threads"]


def _comparisons(rows: Sequence[Row], wanted: Callable[[Row], bool]) -> list[list[str]]:
    ours = _ours(rows)
    lines = []
    for row in _sorted([r for r in _timed(rows) if r["peer"] != "ours" and wanted(r)]):
        own = ours[_setting(row)]
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


def terminal(rows: Sequence[Row]) -> str:
    """Every comparison of the newest results, and how many goals are met."""
    lines = _comparisons(rows, lambda row: True)
    if not lines:
        return "nothing measured yet"
    verdicts = [line[-1] for line in lines]
    count = f"{verdicts.count('met')} goals met, {verdicts.count('missed')} missed"
    return f"{_grid(HEADER, lines)}\n\n{count}"


# --- the document ---------------------------------------------------------------------------------


def _machine(rows: Sequence[Row]) -> str:
    if not rows:
        return "Nothing measured yet."
    row = rows[-1]
    dates = sorted(r["date"][:10] for r in rows)
    period = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    facts = [
        ("measured", period),
        ("commit", f"{row['commit']} (extension {row['build']})"),
        ("CPU", f"{row['cpu']}, {row['cores']} cores"),
        ("SIMD level", row["simd"]),
        ("system", f"{row['kernel']}, transparent huge pages: {row['thp']}"),
        ("versions", f"torch {row['torch']}, Python {row['python']}, numpy {row['numpy']}, "
                     f"GCC {row['compiler']}"),
    ]  # fmt: skip
    return _markdown(("", ""), facts)


def _limits(rows: Sequence[Row]) -> str:
    found = {(r["op"], r["threads"]): r["limit"] for r in rows if r["suite"] == "limits"}
    counts = sorted({threads for _, threads in found}, key=int)
    names = list(dict.fromkeys(name for name, _ in found))
    lines = [
        [name.replace("_", " "), "GFLOP/s" if "flops" in name else "GB/s"]
        + [found.get((name, count), "") for count in counts]
        for name in names
    ]
    return _markdown(
        ("limit", "unit", *(f"{count} thread{'s' if count != '1' else ''}" for count in counts)),
        lines,
    )


def _section(mode: Callable[[Row], bool]) -> Callable[[Sequence[Row]], str]:
    return lambda rows: _markdown(HEADER, _comparisons(rows, mode))


def _traffic(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["case"], row["allocator"], row["threads"], row["peer"],
            time(float(row["median_us"])), f"{float(row['gbps']):.1f}",
            f"{float(row['limit']):.1f}", f"{100 * float(row['of_limit']):.0f} %",
            f"{float(row['peak_mib'] or 'nan'):.0f}", f"{float(row['faults']):.0f}",
        ]
        for row in _sorted([r for r in _timed(rows) if r.get("of_limit")])
    ]  # fmt: skip
    header = (
        "case", "allocator", "threads", "who", "time", "GB/s", "limit", "of limit", "peak MiB",
        "page faults",
    )  # fmt: skip
    return _markdown(header, lines)


def _summary(rows: Sequence[Row]) -> str:
    """For README: the losses in cache and from memory, warm heap, the most threads measured."""
    timed = [r for r in _timed(rows) if int(r["rows"]) > 32 and r["allocator"] == "warm"]
    if not timed:
        return "Nothing measured yet."
    threads = max((r["threads"] for r in timed), key=int)
    chosen = [r for r in timed if r["threads"] == threads]
    ours = _ours(chosen)
    cases = list(dict.fromkeys(r["case"] for r in _sorted(chosen)))
    lines = []
    for case in cases:
        own = next(r for r in ours.values() if r["case"] == case)
        peers = {r["peer"]: r for r in chosen if r["case"] == case and r["peer"] != "ours"}
        cells = [score(peers[p]) if p in peers else "" for p in ("eager", "compile")]
        lines.append([case, time(float(own["median_us"])), *cells])
    row = rows[-1]
    facts = f"{row['cpu']}, {row['simd']}, {threads} threads, torch {row['torch']}, warm heap"
    header = ("forward and backward", "siamcuda", "times as fast as eager", "as torch.compile")
    return f"{_markdown(header, lines)}\n\n{facts}, commit {row['commit']}."


#: Marker -> what stands between its two comments.
SECTIONS: dict[str, Callable[[Sequence[Row]], str]] = {
    "summary": _summary,
    "machine": _machine,
    "limits": _limits,
    "overhead": _section(lambda r: int(r["rows"]) <= 32),
    "cache": _section(lambda r: 32 < int(r["rows"]) < 65536),
    "memory": _section(lambda r: int(r["rows"]) >= 65536),
    "traffic": _traffic,
}


def fill(text: str, rows: Sequence[Row]) -> str:
    """The document with every marked section made anew."""
    for name, make in SECTIONS.items():
        begin, end = BEGIN.format(name), END.format(name)
        if begin not in text:
            continue
        head, _, rest = text.partition(begin)
        _, found, tail = rest.partition(end)
        if not found:
            raise BenchError(f"marker {end!r} is missing")
        text = f"{head}{begin}\n\n{make(rows)}\n\n{end}{tail}"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the tables; returns 1 if --check finds them out of date, 2 on bad files."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("--csv", type=Path, default=results.DEFAULT_CSV)
    parser.add_argument("--docs", type=Path, nargs="+", default=DOCUMENTS)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    try:
        rows = [r for r in results.read(options.csv) if r.get("quick") != "1"]
        old = {path: path.read_text(encoding="utf-8") for path in options.docs}
        new = {path: fill(text, results.latest(rows)) for path, text in old.items()}
    except (BenchError, OSError) as error:
        print(f"bench.table: error: {error}", file=sys.stderr)
        return 2
    stale = [path for path in old if new[path] != old[path]]
    if options.check:
        for path in stale:
            print(f"{path} is out of date: python -m bench.table", file=sys.stderr)
        return int(bool(stale))
    for path in stale:
        write_atomically(path, new[path].encode())
    print(f"{', '.join(str(path) for path in stale) or 'nothing to change'}: {len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
