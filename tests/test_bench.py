"""The benchmark harness itself: it refuses wrong peers, loses no row, resumes, and draws.

Nothing here looks at how long anything took.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import siamcuda
from bench import __main__ as command
from bench import (
    batch,
    breakdown,
    engine,
    gpu,
    harness,
    large,
    limits,
    paired,
    plot,
    results,
    table,
)
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


def test_share_of_a_limit_has_a_row_where_a_goal_is_set() -> None:
    limits = {"fma_gflops": 2.0, "read": 4.0, "copy_stream": 1.0, "write_stream": 1.0}
    peers = [_peer("ours", 1.0), dataclasses.replace(_peer("eager", 1.0), reads=8_000)]
    case = _case(*peers, flops=3_000, limit_goal=0.85, rounds=2)
    ours, eager, limit = harness.measure(case, "default", 1, limits, TINY)
    assert [row["rounds"] for row in (ours, eager)] == [2, 2]
    assert limit["median_us"] == pytest.approx(1.5)
    assert (limit["peer"], limit["variant"], limit["goal"]) == ("limit", "FMA peak", 0.85)
    assert limit["score"] == ours["of_limit"] == pytest.approx(1.5 / ours["median_us"])
    assert (eager["limit"], "gbps" in eager) == (2.0, False)

    case = _case(*peers, reads=4_000, limit_goal=0.9)
    ours, eager, limit = harness.measure(case, "default", 1, limits, TINY)
    assert (ours["bytes"], eager["bytes"]) == (4_000, 8_000)
    assert limit["median_us"] == pytest.approx(1.0), "ours is held against what ours reads"
    assert limit["variant"] == "memory bandwidth"
    no_goal = harness.measure(_case(*peers, reads=4_000), "default", 1, limits, TINY)
    unknown = harness.measure(case, "default", 1, {}, TINY)
    for rows in (no_goal, unknown):
        assert [row["peer"] for row in rows] == ["ours", "eager"]


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
    no_gpu = ["--cuda-csv", str(tmp_path / "none.csv")]
    assert plot.main(["--csv", str(path), *no_gpu, "--out", str(tmp_path / "img")]) == 0
    pictures = sorted(p.name for p in (tmp_path / "img").iterdir())
    assert pictures == [
        f"bench_{name}.png" for name in ("cache", "memory", "overhead", "scaling", "tiny")
    ]
    for picture in (tmp_path / "img").iterdir():
        assert picture.read_bytes().startswith(b"\x89PNG")

    document = tmp_path / "page.md"
    names = (*table.SECTIONS, *table.CUDA_SECTIONS)
    marks = "".join(f"{table.BEGIN.format(n)}stale{table.END.format(n)}\n" for n in names)
    document.write_text(f"# Title\n\n{marks}\nthe end\n")
    arguments = ["--csv", str(path), *no_gpu, "--docs", str(document)]
    assert table.main([*arguments, "--check"]) == 1
    assert table.main(arguments) == 0
    assert table.main([*arguments, "--check"]) == 0
    text = document.read_text()
    assert "stale" not in text
    assert text.startswith("# Title")
    assert text.endswith("the end\n")
    assert "| toy autograd 2048x128 | warm | 2 | 10 us | compile (v) | 20 us | 2.50x |" in text
    assert text.count(table.NO_GPU) == len(table.CUDA_SECTIONS)


def test_plot_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = str(tmp_path / "none.csv")
    assert plot.main(["--csv", none, "--cuda-csv", none, "--out", str(tmp_path)]) == 2
    assert "nothing to draw" in capsys.readouterr().err


def test_page_has_every_section() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in table.DOCUMENTS)
    for name in (*table.SECTIONS, *table.CUDA_SECTIONS):
        assert text.index(table.BEGIN.format(name)) < text.index(table.END.format(name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads: '0' is not one of"),
        (["--allocators", "hot"], "--allocators: 'hot' is not one of default, warm"),
        (["--only", "("], "--only: "),
        (["--only", "no such case"], "no case has such a name"),
        (["--time-limit", "0"], "--time-limit 0: must be above 0"),
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


def test_search_has_no_cases_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    built = siamcuda.build_info() | {"cuda": True}
    monkeypatch.setattr(siamcuda, "build_info", lambda: built)
    assert command.main(["--device", "cuda", "--suite", "gallery"]) == 2
    assert "--suite gallery: has no cases for --device cuda" in capsys.readouterr().err


def test_no_gpu_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert command.main(["--device", "cuda"]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err


# --- where a GPU's time goes ----------------------------------------------------------------------


def test_breakdown_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert breakdown.main([]) == 2
    assert "finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("name", breakdown.LOSSES)
def test_breakdown_takes_steps(name: str) -> None:
    step = breakdown.step_of(name, 16, 4, torch.float32)
    assert torch.equal(step(), step())


def test_breakdown_adds_kernels_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, gpu = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    events = [
        SimpleNamespace(device_type=gpu, name="a", device_time=2.0),
        SimpleNamespace(device_type=cpu, name="launch", device_time=0.0),
        SimpleNamespace(device_type=gpu, name="b", device_time=5.0),
        SimpleNamespace(device_type=gpu, name="a", device_time=4.0),
    ]
    found = breakdown.add_up(events)
    assert found == [(6.0, 2, "a"), (5.0, 1, "b")]
    monkeypatch.setattr(breakdown, "microseconds", lambda step, rounds: 7.0)
    monkeypatch.setattr(breakdown, "captured", lambda step: step)
    monkeypatch.setattr(breakdown, "kernels", lambda step: found)
    breakdown.report("title", lambda: None, 3)
    assert capsys.readouterr().out.splitlines() == [
        "title: 7 us, as a graph 7 us", "        6.0 us   2 x a", "        5.0 us   1 x b",
    ]  # fmt: skip


# --- a pretended GPU ------------------------------------------------------------------------------


class Pretended:
    """A GPU whose tensors are on the CPU: what it is asked, and what of it shall fail."""

    def __init__(self) -> None:
        self.sync_mode = "default"
        self.capturing = False
        self.left: list[str] = []
        self.lost = False

    def synchronize(self) -> None:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        assert self.sync_mode == "default"
        self.capturing = True
        yield  # as in torch, what fails in it leaves the stream as it is
        self.capturing = False


class Stream:
    def wait_stream(self, other: object) -> None:
        pass


class Graph:
    def replay(self) -> None:
        pass  # what was computed while it was captured stands

    def pool(self) -> tuple[int, int]:
        return 0, 1


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    found = Pretended()
    stream = Stream()
    for name, value in {
        "is_available": lambda: True,
        "get_device_name": lambda: "Pretended 100",
        "synchronize": found.synchronize,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1 << 20,
        "max_memory_allocated": lambda: 1 << 22,
        "current_device": lambda: 0,
        "current_stream": lambda: stream,
        "set_stream": lambda s: found.left.append("stream"),
        "set_sync_debug_mode": lambda mode: setattr(found, "sync_mode", mode),
        "Stream": Stream,
        "stream": lambda s: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": found.graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(
        torch._C, "_cuda_endAllocateToPool", lambda *_: found.left.append("pool"), raising=False
    )
    monkeypatch.setattr(harness, "device", "cuda")
    monkeypatch.setattr(harness, "place", lambda tensor: tensor)
    monkeypatch.setattr(harness, "CUDA", TINY)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return found


def _run_here(monkeypatch: pytest.MonkeyPatch, statuses: list[int] | None = None) -> list[Any]:
    """Workers of the command run in this process; their jobs. Or they only end with a status."""
    jobs: list[Any] = []
    run = subprocess.run

    def fake(arguments: list[str], **options: Any) -> Any:
        if "--worker" not in arguments:
            return run(arguments, **options)
        job = json.loads(arguments[-1])
        jobs.append(job | {"timeout": options["timeout"]})
        if statuses is None:
            return SimpleNamespace(returncode=command.main(["--worker", arguments[-1]]))
        with Path(job["diary"]).open("a") as file:
            file.write(f"case {len(jobs)}\n")
        return SimpleNamespace(returncode=statuses.pop(0))

    monkeypatch.setattr(subprocess, "run", fake)
    built = siamcuda.build_info() | {"cuda": True}
    monkeypatch.setattr(siamcuda, "build_info", lambda: built)
    return jobs


def test_a_run_on_a_gpu_from_the_command_to_the_picture(
    pretended: Pretended,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gpu, "limits", lambda quick: {"copy": 3000.0, "matmul_fp32_tflops": 50.0})
    monkeypatch.setattr(results, "_driver", lambda: "580.1")
    # A second size makes a line in the picture; sizes that need a GPU are left out.
    pairs = [*batch.cuda_cases(True), *paired.cuda_cases(True)]
    more = {"contrastive_loss": 64, "triplet_loss": 64}
    extra_cases = [paired._case(op, "autograd", n, graph=True) for op, n in more.items()]
    monkeypatch.setattr(batch, "cuda_cases", lambda quick: pairs[:2])
    monkeypatch.setattr(paired, "cuda_cases", lambda quick: [*pairs[2:], *extra_cases])
    jobs = _run_here(monkeypatch)
    path = tmp_path / "cuda.csv"
    assert command.main(["--device", "cuda", "--time-limit", "300", "--out", str(path)]) == 0
    assert [job["suites"] for job in jobs] == [["batch", "paired"]]
    said = capsys.readouterr().out
    assert "copy 3000" in said
    assert "as a graph" in said

    rows = results.read(path)
    assert {(r["device"], r["gpu"], r["driver"], r["threads"]) for r in rows} == {
        ("cuda", "Pretended 100", "580.1", "1")
    }
    assert {r["mode"] for r in rows} == {
        "limit", "autograd", "autograd graph", "value_and_grad", "value_and_grad graph"
    }  # fmt: skip
    called = {(r["case"], r["peer"]) for r in rows if r["mode"] == "autograd"}
    assert {peer for _, peer in called} >= {"ours", "eager", "compile"}
    for case, peer in called:
        assert (case.replace("autograd", "autograd graph"), peer) in {
            (r["case"], r["peer"]) for r in rows
        }
    assert all(r["peak_mib"] == ("" if "graph" in r["mode"] else "3") for r in rows[2:])
    assert {r["dtype"] for r in rows} >= {"float32", "bfloat16"}

    loss, seconds, extra = large.measure_on_gpu(
        "batch_contrastive_loss", {}, 64, device="cpu"
    )  # fmt: skip
    assert math.isfinite(loss)
    assert seconds > 0
    assert extra == pytest.approx(3 - 64 * 128 * 4 / 2**20)
    monkeypatch.setattr(large, "measure_on_gpu", lambda *_: (1.0, 0.5, 20.0))
    assert large.main(["--device", "cuda", "--out", str(path)]) == 0

    document = tmp_path / "page.md"
    marks = (f"{table.BEGIN.format(n)}x{table.END.format(n)}\n" for n in table.CUDA_SECTIONS)
    document.write_text("".join(marks))
    arguments = ["--csv", str(tmp_path / "none.csv"), "--cuda-csv", str(path)]
    assert table.main([*arguments, "--docs", str(document)]) == 0
    assert table.main([*arguments, "--docs", str(document), "--check"]) == 0
    text = document.read_text()
    rows.append(
        next(r for r in rows if r["peer"] == "ours" and r["suite"] == "paired")
        | {"case": "big", "rows": "131072", "of_limit": "0.876", "mode": "autograd"}
    )
    assert "| 88 % |" in table.CUDA_SECTIONS["cuda_paired"](rows)
    for words in (
        "| GPU | Pretended 100 |", "| driver, CUDA | 580.1, ", "3000 GB/s", "50 TFLOP/s",
        "| contrastive_loss autograd 64x128 | siamcuda | ", "| eager (", "| compile (",
        "| batch_triplet_loss[hard] | 65536 | 500 ms | 20 |", "img/bench_cuda.png",
    ):  # fmt: skip
        assert words in text, words
    assert table.NO_GPU not in text
    assert plot.main([*arguments, "--out", str(tmp_path / "img")]) == 0
    [picture] = (tmp_path / "img").iterdir()
    assert picture.name == "bench_cuda.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_case_of_a_gpu_is_named_once() -> None:
    cases = command._cases(command.CUDA_SUITES, False, "", "cuda")
    assert len({case.name for case in cases}) == len(cases)
    assert {case.dtype for case in cases} == {"float32", "bfloat16"}
    assert all(case.graph for case in cases)


def test_a_loss_that_fails_on_a_gpu_does_not_end_the_large_run(
    pretended: Pretended, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretended.lost = True
    with pytest.raises(BenchError, match="batch_chopra_loss failed: CUDA error"):
        large.measure_on_gpu("batch_chopra_loss", {}, 64, device="cpu")
    assert large.main(["--device", "cuda", "--rows", "64", "--out", str(tmp_path / "r.csv")]) == 1
    assert capsys.readouterr().out.count("failed") == len(large.LOSSES)


def test_limits_of_a_gpu(
    pretended: Pretended, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = gpu.limits("cpu", quick=True)
    assert found.keys() == {
        "copy", "matmul_fp32_tflops", "matmul_tf32_tflops", "matmul_bf16_tflops"
    }  # fmt: skip
    assert all(value > 0 for value in found.values())
    rows = limits.rows(found, "torch", 1, "cuda")
    assert [row["gbps"] is None for row in rows] == [False, True, True, True]
    assert torch.get_float32_matmul_precision() == "highest"
    pretended.lost = True
    assert gpu.limits("cpu", quick=True) == {}
    assert "matmul_tf32_tflops: CUDA error" in capsys.readouterr().out


def _failing(pretended: Pretended, when: Callable[[int], bool], error: Exception) -> harness.Peer:
    calls = []

    def step() -> torch.Tensor:
        calls.append(1)
        if when(len(calls)):
            raise error
        return torch.ones(3)

    return harness.Peer("eager", "failing", step, lambda: [step()])


@pytest.mark.parametrize("first", [1, 2, 3, 4, 9, 20])
def test_a_peer_that_runs_out_of_memory_is_left_out(
    pretended: Pretended, first: int, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 137 GiB\nmore")
    peers = [
        _peer("ours", 1.0), _failing(pretended, lambda n: n >= first, memory),
        _peer("eager", 1.0, "other"), _peer("eager", 1.01, "wrong"), _peer("compile", 1.0),
    ]  # fmt: skip
    rows = harness.measure(_case(*peers, graph=True), "default", 1, {}, TINY)
    assert [(r["mode"], r["peer"], r["variant"]) for r in rows] == [
        (mode, peer, "other" if peer == "eager" else "v")
        for mode in ("forward", "forward graph") for peer in ("ours", "eager", "compile")
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "CUDA out of memory. Tried to allocate 137 GiB" in said
    assert "eager (wrong): result 0 is wrong" in said
    with pytest.raises(BenchError, match="ours"):
        harness.measure(_case(_peer("ours", 1.01)), "default", 1, {}, TINY)


@pytest.mark.parametrize("ours", [False, True])
def test_a_step_that_waits_has_no_graph(
    pretended: Pretended, ours: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def step() -> torch.Tensor:
        if pretended.sync_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return torch.ones(3)

    waits = harness.Peer("ours" if ours else "eager", "w", step, lambda: [step()])
    peers = [waits, _peer("compile" if ours else "ours", 1.0)]
    rows = harness.measure(_case(*peers, graph=True), "default", 1, {}, TINY)
    graphs = [row["peer"] for row in rows if row["mode"] == "forward graph"]
    assert graphs == ([] if ours else ["ours"])
    assert "not captured: called a synchronizing" in capsys.readouterr().err
    assert pretended.sync_mode == "default"
    assert pretended.left == ["stream", "pool"]


def test_a_capture_that_fails_is_given_up(pretended: Pretended) -> None:
    def step() -> torch.Tensor:
        if pretended.capturing:
            raise RuntimeError()
        return torch.ones(3)

    with pytest.raises(BenchError, match="not captured: RuntimeError"):
        gpu.capture(harness.Peer("eager", "v", step, None))
    assert pretended.left == ["stream", "pool"]
    unchecked = gpu.capture(harness.Peer("floor", "v", lambda: torch.ones(1), None))
    assert unchecked.outputs is None
    unchecked.step()


def test_ties_may_fall_either_way_and_nothing_else(pretended: Pretended) -> None:
    exact = [torch.ones(1000, dtype=torch.float64)]
    task = harness.Task([], lambda: exact, stray=2e-3)
    output = torch.ones(1000)
    output[:2] = 0.5
    harness._compare("p", [output], exact, task)
    for bad, where in ((0.5, 2), (math.nan, 1)):
        output[where] = bad
        with pytest.raises(BenchError, match="wrong"):
            harness._compare("p", [output], exact, task)
        output[where] = 1.0


def test_a_lost_gpu_ends_the_worker_and_the_next_goes_on(
    pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object) -> Any:
        pretended.lost = True
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(harness, "measure", lose)
    said: list[str] = []
    threads, path = torch.get_num_threads(), tmp_path / "r.csv"
    with pytest.raises(SystemExit) as ended:
        harness.run_cases([_case()], "default", threads, path, progress=said.append)
    assert ended.value.code == harness.POISONED
    assert "FAILED: RuntimeError('CUDA error')" in said[0]

    jobs = _run_here(monkeypatch, [harness.POISONED, -11, 0])
    arguments = ["--device", "cuda", "--quick", "--out", str(path)]
    assert command.main(arguments) == 1, "what was lost is not hidden"
    assert [job["begun"] for job in jobs] == [[], ["case 1"], ["case 1", "case 2"]]
    assert {job["timeout"] for job in jobs} == {None}


def test_behind_the_time_limit_no_case_begins(
    pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    threads, path = torch.get_num_threads(), tmp_path / "r.csv"
    code = harness.run_cases(
        [_case(_peer("ours", 1.0))], "default", threads, path, progress=said.append,
        deadline=time.time() - 1,
    )  # fmt: skip
    assert code == 0
    assert said[0].endswith("add forward 3x1: not begun: the time limit is over")
    jobs = _run_here(monkeypatch, [0])
    assert command.main(["--device", "cuda", "--time-limit", "60", "--out", str(path)]) == 0
    assert 60 < jobs[0]["timeout"] <= 60 + command.GRACE

    def late(*_: object, **__: object) -> Any:
        raise subprocess.TimeoutExpired("worker", 1.0)

    monkeypatch.setattr(subprocess, "run", late)
    assert command.main(["--device", "cuda", "--time-limit", "60", "--out", str(path)]) == 1


def test_a_peer_that_cannot_be_prepared_is_left_out_on_a_gpu_only(
    pretended: Pretended, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(labels: torch.Tensor, **_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'moved'")

    peer = batch.peers.BatchPeer("other", "v", prepare, "op", {}, {}, False, False)
    assert batch._prepared(peer, torch.zeros(2)) is None
    assert "left out: other (v): No module named 'moved'" in capsys.readouterr().err
    monkeypatch.setattr(harness, "device", "cpu")
    with pytest.raises(ModuleNotFoundError):
        batch._prepared(peer, torch.zeros(2))


def test_the_driver_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results._driver.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="580.2\n"))
    assert results._driver() == "580.2"
    results._driver.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=""))
    assert results._driver() == "unknown"
    results._driver.cache_clear()
    monkeypatch.setattr(results, "_git", lambda *_: None)
    monkeypatch.setenv("SIAMCUDA_COMMIT", "0123456789abcdef")
    assert results.commit() == "0123456789ab"
