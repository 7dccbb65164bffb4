"""The benchmark harness itself: it refuses wrong peers, loses no row, resumes, and draws.

Nothing here looks at how long anything took.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import siamcuda
from bench import __main__ as command
from bench import engine, harness, limits, paired, plot, results, table
from bench.results import BenchError

ROOT = results.ROOT
TINY = harness.Effort(rounds=3, slice=1e-5, heats=2)


def _peer(family: str, value: float, variant: str = "v", runs: bool = True) -> harness.Peer:
    def step() -> torch.Tensor:
        if not runs:
            raise RuntimeError("does not compile")
        return torch.full((3,), value)

    return harness.Peer(family, variant, step, lambda: [step()])


def _case(*peers: harness.Peer, **options: Any) -> harness.Case:
    task = harness.Task(peers, lambda: [torch.ones(3, dtype=torch.float64)])
    return harness.Case("toy", "add", "forward", 3, 1, lambda: task, **options)


# --- correctness before time ----------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.01, math.nan, math.inf])
@pytest.mark.parametrize("family", ["ours", "eager"])
def test_wrong_peer_is_refused(family: str, value: float) -> None:
    peers = [_peer("ours", 1.0), _peer("eager", 1.0)]
    peers.append(_peer(family, value, "broken"))
    with pytest.raises(BenchError, match=rf"{family} \(broken\): result 0 is wrong in 3 of 3"):
        harness.measure(_case(*peers), "default", 1, {}, TINY)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [([torch.ones(4)], "has shape"), ([torch.ones(3)] * 2, "gives 2 results, expected 1")],
)
def test_peer_of_another_shape_is_refused(outputs: list[torch.Tensor], message: str) -> None:
    broken = harness.Peer("eager", "broken", lambda: None, lambda: outputs)
    with pytest.raises(BenchError, match=message):
        harness.check(_case(_peer("ours", 1.0), broken).make())


def test_nothing_is_timed_after_a_wrong_result(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    cases = [_case(_peer("ours", 2.0)), _case(_peer("ours", 1.0), _peer("eager", 1.0))]
    said: list[str] = []
    assert harness.run_cases(cases, "default", 1, path, quick=True, progress=said.append) == 1
    assert "FAILED" in said[0]
    assert [row["peer"] for row in results.read(path)] == ["ours", "eager"]


def test_peer_that_does_not_run_is_left_out() -> None:
    case = _case(_peer("ours", 1.0), _peer("compile", 1.0, runs=False), _peer("compile", 1.0, "w"))
    assert [peer.variant for peer in harness.check(case.make())] == ["v", "w"]
    with pytest.raises(BenchError, match=r"ours \(v\) does not run"):
        harness.check(_case(_peer("ours", 1.0, runs=False)).make())


# --- measuring ------------------------------------------------------------------------------------


def test_every_peer_runs_in_every_round_in_rotating_order() -> None:
    seen: list[str] = []
    peers = [
        harness.Peer(name, "v", lambda name=name: seen.append(name), None)  # type: ignore[misc]
        for name in "abc"
    ]
    timings = harness.interleave(peers, 3, 0.0)
    assert [len(timing.seconds) for timing in timings] == [3, 3, 3]
    calls = [name for i, name in enumerate(seen) if i == 0 or seen[i - 1] != name]
    assert "".join(calls).endswith("abcbcacab")


def test_scores_and_goals() -> None:
    ours = harness.Timing(_peer("ours", 1.0), 1, [1.0, 2.0, 3.0])
    other = harness.Timing(_peer("eager", 1.0), 1, [4.0, 4.0, 4.0])
    case = _case(goals=(harness.Goal("eager", 2.0, allocators=("warm",)),))
    score = harness._score(case, "warm", other, ours)
    assert (score["score"], score["score_rounds"], score["goal"]) == (2.0, 2.0, 2.0)
    assert harness._score(case, "default", other, ours)["goal"] is None
    excess = _case(goals=(harness.Goal("eager", 3.0, "excess"),))
    assert harness._score(excess, "warm", other, ours)["score"] == pytest.approx(-2e6)
    row = {"score": "2", "goal": "2", "compare": "ratio"}
    assert table.verdict(row) == "met"
    assert table.verdict(row | {"score": "1.9"}) == "missed"
    assert table.verdict(row | {"compare": "excess", "score": "2.1"}) == "missed"
    assert table.verdict(row | {"goal": ""}) == ""


def test_limit_counts_copies_then_the_rest() -> None:
    case = _case(reads=4_000, writes=2_000)
    limit = harness.limit_seconds(case, {"read": 4.0, "copy_stream": 8.0, "write_stream": 2.0})
    assert limit == pytest.approx((4_000 / 8 + 2_000 / 4) * 1e-9)
    assert harness.limit_seconds(_case(), {"read": 1.0}) is None


def test_limits_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "compiler", lambda: None)
    found, source = limits.measure(torch.get_num_threads(), quick=True)
    assert source == "torch"
    assert all(value > 0 for value in found.values())


def test_engine_reaches_some_share_of_the_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if limits.compiler() is None:
        pytest.skip("no C++ compiler to build bench/cpp/engine.cpp with")
    monkeypatch.setattr(limits, "BUILD", tmp_path)
    path = tmp_path / "r.csv"
    arguments = ["--threads", "1", "--quick", "--clock", "cpu", "--out", str(path)]
    assert engine.main(arguments) == 0, capsys.readouterr().err
    rows = results.read(path)
    assert {(row["op"], row["columns"]) for row in rows} == {
        (product, str(depth))
        for product in ("distances", "gradient")
        for depth in (64, 128, 256, 512, 768, 1024)
    }
    for row in rows:
        assert 0 < float(row["of_limit"]) <= 1.1, row["case"]
        assert (row["quick"], row["goal"], row["simd"]) == ("1", "", siamcuda.build_info()["simd"])
    lines = table.SECTIONS["engine"]([row | {"goal": "0.001"} for row in rows]).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith("| distances | 64 | 1 | ")
    assert lines[2].endswith(" | met |")


def test_engine_without_a_compiler_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "compiler", lambda: None)
    assert engine.main(["--quick", "--out", str(tmp_path / "r.csv")]) == 2
    assert "no C++ compiler" in capsys.readouterr().err
    assert not (tmp_path / "r.csv").exists()


# --- the result file ------------------------------------------------------------------------------


def _row(**values: Any) -> dict[str, Any]:
    row = dict.fromkeys(results.KEY, "x") | {"commit": "c", "build": "b", "threads": 1}
    return row | values


def test_append_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.csv"
    results.append(path, [_row(median_us=1.5)])
    path.write_text(path.read_text().replace("cpu,", "cpu,of_the_future,", 1))
    results.append(path, [_row(case="y, with a comma", peak_mib=None)])
    rows = results.read(path)
    assert [row["case"] for row in rows] == ["x", "y, with a comma"]
    assert (rows[0]["median_us"], rows[1]["peak_mib"]) == ("1.5", "")
    assert "of_the_future" in rows[0]
    assert [p.name for p in path.parent.iterdir()] == ["r.csv"]


def test_append_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.csv"
    results.append(path, [_row()])
    before = path.read_bytes()
    with pytest.raises(BenchError, match="no such columns: speed"):
        results.append(path, [_row(), _row(speed=1)])

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        results.append(path, [_row()])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.csv"]


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(BenchError, match="not a result file"):
        results.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BenchError, match="cannot read"):
        results.read(path)


def test_latest_shows_one_build_and_the_newest_of_each() -> None:
    rows = [
        _row(build="old", date="1"), _row(case="gone", build="old", date="1"),
        _row(date="2"), _row(case="z", date="2"), _row(date="3"),
    ]  # fmt: skip
    rows = [{name: str(value) for name, value in row.items()} for row in rows]
    assert [(row["case"], row["date"]) for row in results.latest(rows)] == [("z", "2"), ("x", "3")]
    assert results.latest([]) == []


def test_resume_skips_what_this_build_has(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    case = _case(_peer("ours", 1.0), _peer("eager", 1.0))
    for resume, lines in ((False, 2), (True, 2), (False, 4)):
        said: list[str] = []
        options: dict[str, Any] = {"quick": True, "resume": resume, "progress": said.append}
        assert harness.run_cases([case], "default", 1, path, **options) == 0
        assert len(results.read(path)) == lines
        assert ("done before" in said[0]) == resume
    text = path.read_text()
    path.write_text(text.replace(results.build_digest(), "00000000"))
    harness.run_cases([case], "default", 1, path, quick=True, resume=True, progress=said.append)
    assert len(results.read(path)) == 6, "another build is another measurement"


def test_warm_heap_must_come_from_outside() -> None:
    if "MALLOC_TOP_PAD_" in os.environ:
        pytest.skip("the heap of this process is warm already")
    with pytest.raises(BenchError, match="before the process starts"):
        harness.run_cases([], "warm", 1, Path("unused.csv"))


# --- the suite, the command, pictures and tables --------------------------------------------------


@pytest.mark.parametrize("op", paired.OPS.values(), ids=lambda op: op.name)
def test_peers_of_the_paired_suite_agree(op: paired.Op) -> None:
    for task in (paired._forward(op, 64), paired._autograd(op, 64, compiled=False)):
        assert len(harness.check(task)) == len(task.peers)


def test_random_rows_exercise_both_sides_of_the_hinge() -> None:
    for name in paired.MAIN:
        tensors, impostor = paired.inputs(paired.OPS[name], 512)
        distance = (tensors[0] - tensors[1]).norm(dim=1)
        assert 0.3 < impostor.float().mean() < 0.7
        assert 0.3 < (distance < paired.MARGIN).float().mean() < 0.7


def _sample() -> list[dict[str, Any]]:
    rows = []
    machine = {"cpu": "a CPU", "cores": 2, "simd": "avx2", "torch": "2", "python": "3",
               "numpy": "2", "compiler": "12", "kernel": "Linux 6", "thp": "madvise"}  # fmt: skip
    base = machine | {"date": "2026-01-02T03:04:05Z", "commit": "c", "build": "b", "quick": 0}
    for mode, size in (("forward", 32), *(("autograd", n) for n in (32, 2048, 65536))):
        for i, peer in enumerate(("ours", "floor" if mode == "forward" else "compile", "eager")):
            row = base | {
                "suite": "paired", "case": f"toy {mode} {size}x128", "op": "toy", "mode": mode,
                "rows": size, "columns": 128, "threads": 2, "allocator": "warm", "peer": peer,
                "variant": "v", "median_us": 10.0 * (i + 1), "gbps": 1.0, "of_limit": 0.5,
                "limit": 2.0, "faults": 0.0, "peak_mib": 1.0,
            }  # fmt: skip
            if peer != "ours":
                row |= {"compare": "excess" if peer == "floor" else "ratio", "score": 2.5,
                        "goal": 2.0}  # fmt: skip
            rows.append(row)
    rows.append(base | limits.rows({"read": 40.0}, "C++", 2)[0])
    return rows


def test_plot_and_table_of_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    results.append(path, _sample())
    assert plot.main(["--csv", str(path), "--out", str(tmp_path / "img")]) == 0
    pictures = sorted(p.name for p in (tmp_path / "img").iterdir())
    assert pictures == [
        f"bench_{name}.png" for name in ("cache", "memory", "overhead", "scaling", "tiny")
    ]
    for picture in (tmp_path / "img").iterdir():
        assert picture.read_bytes().startswith(b"\x89PNG")

    document = tmp_path / "page.md"
    marks = "".join(f"{table.BEGIN.format(n)}stale{table.END.format(n)}\n" for n in table.SECTIONS)
    document.write_text(f"# Title\n\n{marks}\nthe end\n")
    arguments = ["--csv", str(path), "--docs", str(document)]
    assert table.main([*arguments, "--check"]) == 1
    assert table.main(arguments) == 0
    assert table.main([*arguments, "--check"]) == 0
    text = document.read_text()
    assert "stale" not in text
    assert text.startswith("# Title")
    assert text.endswith("the end\n")
    assert "| toy autograd 2048x128 | warm | 2 | 10 us | compile (v) | 20 us | 2.50x |" in text


def test_plot_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot.main(["--csv", str(tmp_path / "none.csv"), "--out", str(tmp_path)]) == 2
    assert "nothing to draw" in capsys.readouterr().err


def test_page_has_every_section() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in table.DOCUMENTS)
    for name in table.SECTIONS:
        assert text.index(table.BEGIN.format(name)) < text.index(table.END.format(name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads: '0' is not one of"),
        (["--allocators", "hot"], "--allocators: 'hot' is not one of default, warm"),
        (["--only", "("], "--only: "),
        (["--only", "no such case"], "no case has such a name"),
    ],
)
def test_command_refuses_what_it_cannot_do(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--out", str(tmp_path / "r.csv"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.csv").exists()


def test_a_gpu_is_waited_for_and_its_goals_are_not_those_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[int] = []
    monkeypatch.setattr(harness, "device", "cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    harness._run(lambda: None, 3)
    assert len(waits) == 2
    peer = harness.Peer("eager", "v", lambda: None, None)
    timing = harness.Timing(peer, 1, [2.0])
    case = harness.Case("s", "op", "m", 1, 1, lambda: None, (harness.Goal("eager", 3.0),))
    score = harness._score(case, "default", timing, harness.Timing(peer, 1, [1.0]))
    assert score["score"] == 2.0
    assert score["goal"] is None


def test_on_a_gpu_every_case_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(case: harness.Case, *_: object) -> list[dict[str, Any]]:
        measured.append(case.allocators)
        raise BenchError("measured")

    monkeypatch.setattr(harness, "measure", measure)
    cases = [_case(allocators=("warm",)), _case(allocators=("default", "warm"))]
    threads, path = torch.get_num_threads(), tmp_path / "r.csv"
    assert harness.run_cases(cases, "default", threads, path) == 1
    monkeypatch.setattr(harness, "device", "cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert harness.run_cases(cases, "default", threads, path) == 2
    assert measured == [("default", "warm"), ("warm",), ("default", "warm")]


def test_no_gpu_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert command.main(["--device", "cuda"]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err
