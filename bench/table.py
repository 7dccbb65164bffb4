"""The tables of results: on the terminal, and between markers in docs/benchmarks.md and README.md.

python -m bench.table            rewrites the tables in both from the CSVs, a GPU's from its own
python -m bench.table --check    fails if they are not what the CSVs say
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench import results, table_search, table_training, table_verification
from bench.cells import (
    GRAPH,
    HEADER,
    Row,
    comparisons,
    grid,
    in_order,
    markdown,
    ours_of,
    score,
    time,
    timed_rows,
    verdict,
)
from bench.results import BenchError, number
from siamcuda._files import write_atomically

DOCUMENTS = (results.ROOT / "docs" / "benchmarks.md", results.ROOT / "README.md")
BEGIN, END = "<!-- bench:{} begin -->", "<!-- bench:{} end -->"


def terminal(rows: Sequence[Row]) -> str:
    """Every comparison of the newest results, and how many goals are met."""
    lines = comparisons(rows, lambda row: True)
    if not lines:
        return "nothing measured yet"
    verdicts = [line[-1] for line in lines]
    count = f"{verdicts.count('met')} goals met, {verdicts.count('missed')} missed"
    return f"{grid(HEADER, lines)}\n\n{count}"


# --- the document ---------------------------------------------------------------------------------


def _machine(rows: Sequence[Row]) -> str:
    if not rows:
        return "Nothing measured yet."
    row = rows[-1]
    dates = sorted(r["date"][:10] for r in rows)
    period = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    suites = {r["suite"]: r for r in timed_rows(rows)}
    facts = [
        ("measured", period),
        *(
            (f"commit, {name}", f"{r['commit']} (extension {r['build']})")
            for name, r in sorted(suites.items())
        ),
        ("CPU", f"{row['cpu']}, {row['cores']} cores"),
        ("SIMD level", row["simd"]),
        ("system", f"{row['kernel']}, transparent huge pages: {row['thp']}"),
        ("versions", f"torch {row['torch']}, Python {row['python']}, numpy {row['numpy']}, "
                     f"GCC {row['compiler']}"),
    ]  # fmt: skip
    return markdown(("", ""), facts)


def _limits(rows: Sequence[Row]) -> str:
    found = {(r["op"], r["threads"]): r["limit"] for r in rows if r["suite"] == "limits"}
    counts = sorted({threads for _, threads in found}, key=int)
    names = list(dict.fromkeys(name for name, _ in found))
    lines = [
        [name.replace("_", " "), "GFLOP/s" if "flops" in name else "GB/s"]
        + [found.get((name, count), "") for count in counts]
        for name in names
    ]
    return markdown(
        ("limit", "unit", *(f"{count} thread{'s' if count != '1' else ''}" for count in counts)),
        lines,
    )


def _section(mode: Callable[[Row], bool]) -> Callable[[Sequence[Row]], str]:
    return lambda rows: markdown(HEADER, comparisons(rows, mode))


def _paired(row: Row) -> bool:
    return row["suite"] == "paired"


def _traffic(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["case"], row["allocator"], row["threads"], row["peer"],
            time(float(row["median_us"])), f"{float(row['gbps']):.1f}",
            f"{float(row['limit']):.1f}", f"{100 * float(row['of_limit']):.0f} %",
            f"{float(row['peak_mib'] or 'nan'):.0f}", f"{float(row['faults']):.0f}",
        ]
        for row in in_order([r for r in timed_rows(rows) if _paired(r) and r.get("gbps")])
    ]  # fmt: skip
    header = (
        "case", "allocator", "threads", "who", "time", "GB/s", "limit", "of limit", "peak MiB",
        "page faults",
    )  # fmt: skip
    return markdown(header, lines)


def _summary(rows: Sequence[Row]) -> str:
    """For README: the losses in cache and from memory, warm heap, the most threads measured."""
    timed = [
        r for r in timed_rows(rows)
        if r["suite"] == "paired" and int(r["rows"]) > 32 and r["allocator"] == "warm"
    ]  # fmt: skip
    if not timed:
        return "Nothing measured yet."
    threads = max((r["threads"] for r in timed), key=int)
    chosen = [r for r in timed if r["threads"] == threads]
    ours = ours_of(chosen)
    cases = list(dict.fromkeys(r["case"] for r in in_order(chosen)))
    lines = []
    for case in cases:
        own = next(r for r in ours.values() if r["case"] == case)
        peers = {r["peer"]: r for r in chosen if r["case"] == case and r["peer"] != "ours"}
        cells = [score(peers[p]) if p in peers else "" for p in ("eager", "compile")]
        lines.append([case, time(float(own["median_us"])), *cells])
    header = ("forward and backward", "siamcuda", "times as fast as eager", "as torch.compile")
    return f"{markdown(header, lines)}\n\n{_facts(chosen, threads)}"


def _facts(rows: Sequence[Row], threads: str) -> str:
    row = rows[-1]
    facts = f"{row['cpu']}, {row['simd']}, {threads} threads, torch {row['torch']}, warm heap"
    return f"{facts}, commit {row['commit']}."


def _batch_summary(rows: Sequence[Row]) -> str:
    """For README: the losses over a batch against each family, the most threads measured."""
    timed = [r for r in timed_rows(rows) if r["suite"] == "batch" and r["allocator"] == "warm"]
    if not timed:
        return "Nothing measured yet."
    threads = max((r["threads"] for r in timed), key=int)
    chosen = [r for r in timed if r["threads"] == threads]
    ours = ours_of(chosen)
    families = list(dict.fromkeys(r["peer"] for r in chosen if r["peer"] != "ours"))
    lines = []
    for case in dict.fromkeys(r["case"] for r in in_order(chosen)):
        own = next(r for r in ours.values() if r["case"] == case)
        found = {r["peer"]: r for r in chosen if r["case"] == case}
        cells = [score(found[f]) if f in found else "" for f in families]
        lines.append([case.replace(" autograd", ""), time(float(own["median_us"])), *cells])
    header = ("forward and backward", "siamcuda", *families)
    return f"{markdown(header, lines)}\n\n{_facts(chosen, threads)}"


def _batch(rows: Sequence[Row]) -> str:
    return markdown(HEADER, comparisons(rows, lambda r: r["suite"] == "batch"))


def _large(rows: Sequence[Row]) -> str:
    lines = [
        [r["op"], r["rows"], r["threads"], f"{float(r['median_us']) / 1e6:.1f} s",
         f"{float(r['peak_mib']):.0f}"]
        for r in rows
        if r["suite"] == "large"
    ]  # fmt: skip
    if not lines:
        return "Not recorded yet."
    return markdown(
        ("loss", "rows", "threads", "forward and backward", "MiB beyond inputs and gradient"), lines
    )


def _engine(rows: Sequence[Row]) -> str:
    lines = []
    for r in rows:
        if r["suite"] != "engine":
            continue
        share, peak = float(r["of_limit"]), float(r["limit"])
        lines.append(
            [r["op"], r["columns"], r["threads"], r["simd"], f"{share * peak:.0f}", f"{peak:.0f}",
             f"{100 * share:.0f} %", f">= {100 * float(r['goal']):g} %", verdict(r)]
        )  # fmt: skip
    if not lines:
        return "Not recorded yet."
    header = (
        "product", "D", "threads", "SIMD level", "GFLOP/s", "FMA peak", "of peak", "goal", "",
    )  # fmt: skip
    return markdown(header, lines)


def _batch_memory(rows: Sequence[Row]) -> str:
    """Memory of one step above its inputs."""
    timed = [r for r in timed_rows(rows) if r["suite"] == "batch" and r["allocator"] == "warm"]
    lines = [
        [r["case"], r["threads"], r["peer"], r["variant"], f"{float(r['peak_mib'] or 'nan'):.0f}"]
        for r in in_order(timed)
    ]
    return markdown(("case", "threads", "who", "variant", "MiB above the inputs"), lines)


#: Marker -> what stands between its two comments.
SECTIONS: dict[str, Callable[[Sequence[Row]], str]] = {
    "summary": _summary,
    "machine": _machine,
    "limits": _limits,
    "overhead": _section(lambda r: _paired(r) and int(r["rows"]) <= 32),
    "cache": _section(lambda r: _paired(r) and 32 < int(r["rows"]) < 65536),
    "memory": _section(lambda r: _paired(r) and int(r["rows"]) >= 65536),
    "batch": _batch,
    "batch_memory": _batch_memory,
    "large": _large,
    "engine": _engine,
    "batch_summary": _batch_summary,
    "traffic": _traffic,
    **table_search.SECTIONS,
    **table_verification.SECTIONS,
    **table_training.SECTIONS,
}


# --- on a GPU -------------------------------------------------------------------------------------

NO_GPU = "Nothing was measured on a GPU yet."


def _cuda_machine(rows: Sequence[Row]) -> str:
    if not rows:
        return NO_GPU
    dates = sorted(r["date"][:10] for r in rows)
    period = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    row = rows[-1]
    facts = [
        ("measured", period),
        *(
            (f"commit, {name}", f"{r['commit']} (extension {r['build']})")
            for name, r in sorted({r["suite"]: r for r in timed_rows(rows)}.items())
        ),
        ("GPU", row["gpu"]),
        ("driver, CUDA", f"{row['driver']}, {row['cuda']}"),
        ("host", f"{row['cpu']}, {row['cores']} cores, {row['kernel']}"),
        ("versions", f"torch {row['torch']}, Python {row['python']}"),
    ]
    names = {
        "copy": ("copy of 1 GiB on the device, read and written", "GB/s"),
        "matmul_fp32_tflops": ("8192 x 8192 x 8192 product, float32", "TFLOP/s"),
        "matmul_tf32_tflops": ("the same, TF32", "TFLOP/s"),
        "matmul_bf16_tflops": ("the same, bfloat16", "TFLOP/s"),
    }
    facts += [
        (names[r["op"]][0], f"{float(r['limit']):.4g} {names[r['op']][1]}")
        for r in rows
        if r["suite"] == "limits" and r["op"] in names
    ]
    return markdown(("", ""), facts)


def _mib(row: Row | None) -> str:
    value = number(row, "peak_mib") if row else None
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _cuda(suite: str) -> Callable[[Sequence[Row]], str]:
    """A line a peer: both times of each, ratios, and memory."""

    def section(rows: Sequence[Row]) -> str:
        timed = [r for r in rows if r["suite"] == suite]
        if not timed:
            return NO_GPU
        found = {(r["case"], r["peer"]): r for r in timed}
        lines = []
        for row in in_order([r for r in timed if not r["mode"].endswith(GRAPH)]):
            graph_case = row["case"].replace(f" {row['mode']} ", f" {row['mode']}{GRAPH} ")
            graph = found.get((graph_case, row["peer"]))
            variant = row["variant"]
            if graph and graph["variant"] != variant:
                variant = f"{variant}; graph: {graph['variant']}"
            share = number(row, "of_limit")
            traffic = ""
            if share is not None and int(row["rows"]) > 65536:  # else partly in the L2 cache
                traffic = f"{100 * share:.0f} %"
            lines.append(
                [
                    row["case"],
                    "siamcuda" if row["peer"] == "ours" else f"{row['peer']} ({variant})",
                    time(float(row["median_us"])), score(row),
                    time(float(graph["median_us"])) if graph else "",
                    score(graph) if graph else "",
                    _mib(row), *([traffic] if suite == "paired" else []),
                ]
            )  # fmt: skip
        header = (
            "case", "who", "time", "its time / ours", "as a graph", "its graph / ours",
            "MiB above the inputs", *(["of the copy's speed"] if suite == "paired" else []),
        )  # fmt: skip
        return markdown(header, lines)

    return section


def _cuda_large(rows: Sequence[Row]) -> str:
    lines = [
        [r["op"], r["rows"], time(float(r["median_us"])), _mib(r)]
        for r in rows
        if r["suite"] == "large"
    ]
    if not lines:
        return NO_GPU
    return markdown(
        ("loss", "rows", "forward and backward", "MiB beyond inputs and gradient"), lines
    )


def _cuda_picture(rows: Sequence[Row]) -> str:
    if not any(r["suite"] in ("batch", "paired") for r in rows):
        return NO_GPU
    return "![Time and memory over rows on a GPU](img/bench_cuda.png)"


#: The same from the rows of a GPU.
CUDA_SECTIONS: dict[str, Callable[[Sequence[Row]], str]] = {
    "cuda_machine": _cuda_machine,
    "cuda_batch": _cuda("batch"),
    "cuda_paired": _cuda("paired"),
    "cuda_large": _cuda_large,
    "cuda_picture": _cuda_picture,
}


def fill(text: str, rows: Sequence[Row], cuda: Sequence[Row] = ()) -> str:
    """The document with every marked section made anew."""
    sections = [(name, partial(make, rows)) for name, make in SECTIONS.items()]
    sections += [(name, partial(make, cuda)) for name, make in CUDA_SECTIONS.items()]
    for name, make in sections:
        begin, end = BEGIN.format(name), END.format(name)
        if begin not in text:
            continue
        head, _, rest = text.partition(begin)
        _, found, tail = rest.partition(end)
        if not found:
            raise BenchError(f"marker {end!r} is missing")
        text = f"{head}{begin}\n\n{make()}\n\n{end}{tail}"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the tables; returns 1 if --check finds them out of date, 2 on bad files."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("--csv", type=Path, default=results.DEFAULT_CSV)
    parser.add_argument("--cuda-csv", type=Path, default=results.CUDA_CSV)
    parser.add_argument("--docs", type=Path, nargs="+", default=DOCUMENTS)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    try:
        rows, cuda = (
            [r for r in results.read(path) if r.get("quick") != "1"]
            for path in (options.csv, options.cuda_csv)
        )
        cuda = results.latest(cuda)
        old = {path: path.read_text(encoding="utf-8") for path in options.docs}
        new = {path: fill(text, results.latest(rows), cuda) for path, text in old.items()}
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
