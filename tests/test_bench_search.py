"""The benchmark of search: peers agree, wrong ones are refused, files are removed.

Nothing here looks at how long anything took.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import siamcuda
from bench import faiss_setting, gallery, harness, plot, results, search_peers, stream, table
from bench.results import BenchError

FAISS_HERE = importlib.util.find_spec("faiss") is not None
CODES_HERE = "int8" in gallery.screens()
MODES = [
    "float32",
    pytest.param("int8", marks=pytest.mark.skipif(not CODES_HERE, reason="no AVX-512 VNNI")),
]


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The probe takes seconds; which setting wins doesn't matter here."""
    monkeypatch.setattr(faiss_setting, "probe", lambda: None)
    faiss_setting.load.cache_clear()
    yield
    faiss_setting.load.cache_clear()


def _families(task: harness.Task) -> set[str]:
    sound = harness.check(task)
    assert len(sound) == len(task.peers)
    return {peer.family for peer in sound}


def _with_faiss(*others: str) -> set[str]:
    return {"ours", *others} | ({"faiss"} if FAISS_HERE else set())


# --- the same results -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rows", "k"), [(3000, 5), (40, 40), (5000, 1)])
def test_peers_of_search_agree(mode: str, rows: int, k: int) -> None:
    task = gallery._search(mode, 20, rows, 24, k, slow=True)
    assert _families(task) == _with_faiss("torch", "scikit-learn", "torch.cdist")
    assert _families(gallery._search(mode, 20, rows, 24, k, slow=False)) == _with_faiss()


def test_blocks_larger_than_usual_and_parts_of_queries_agree() -> None:
    task = gallery._search("float32", 130, 20_000, 16, 3, slow=True)
    variants = {peer.variant for peer in harness.check(task)}
    assert variants >= {"blocks of 4096", "blocks of 16384", "all at once"}
    assert "100 queries at a time" in variants


@pytest.mark.parametrize("mode", MODES)
def test_peers_of_one_query_agree(mode: str) -> None:
    assert _families(gallery._search(mode, 1, 5000, 32, 10, slow=True)) == _with_faiss("torch")


@pytest.mark.parametrize("mode", MODES)
def test_peers_of_range_search_agree(mode: str) -> None:
    task = gallery._range(mode, 20, 6000, 24, slow=True)
    assert _families(task) == _with_faiss("torch", "scikit-learn")
    counts, *_ = task.expected()
    assert 10 < counts.double().mean() < 100


@pytest.mark.parametrize("bits", [64, 256])
def test_peers_of_hamming_agree(bits: int) -> None:
    assert _families(gallery._hamming(20, 5000, bits, 10)) == _with_faiss("torch")


@pytest.mark.parametrize("mode", MODES)
def test_what_was_built_finds_the_same(mode: str) -> None:
    assert _families(gallery._build(mode, 500, 16)) == _with_faiss()


def test_radius_lies_in_a_gap() -> None:
    q, x = gallery.inputs(50, 3000, 16)
    radius, nearest = gallery._radius(q, x)
    assert ((nearest - radius).abs() > 1e-5 * radius).all()
    assert (nearest < radius).sum() / 50 == pytest.approx(gallery.WITHIN, rel=0.1)


@pytest.mark.parametrize("wrong", ["distance", "position", "order"])
def test_a_wrong_neighbour_is_refused(wrong: str) -> None:
    task = gallery._search("float32", 10, 500, 8, 4, slow=False)
    q, x = gallery.inputs(10, 500, 8)

    def lie() -> tuple[Any, ...]:
        distances, positions = siamcuda.knn(q, x, 4)
        if wrong == "distance":
            distances[3, 2] *= 1.001
        elif wrong == "position":
            positions[3, 2] = (positions[3, 2] + 1) % 500
        else:
            distances[3], positions[3] = distances[3].flip(0), positions[3].flip(0)
        return distances, positions

    [liar] = gallery._peers(
        lie, iter(()), lambda r: [r[0], gallery.distances_at(q, x, r[1])]
    )  # fmt: skip
    with pytest.raises(BenchError, match="is wrong in"):
        harness.check(harness.Task([liar], task.expected, task.rtol, task.atol))


def test_a_result_too_few_within_a_radius_is_refused() -> None:
    task = gallery._range("float32", 20, 3000, 8, slow=False)
    ours = task.peers[0]
    assert ours.outputs is not None
    counts, *rest = ours.outputs()
    counts[0] -= 1
    liar = harness.Peer("ours", "liar", lambda: None, lambda: [counts, *rest])
    with pytest.raises(BenchError, match="result 0 is wrong"):
        harness.check(harness.Task([liar], task.expected, task.rtol, task.atol))


# --- the table of cases ---------------------------------------------------------------------------


@pytest.mark.skipif(not CODES_HERE, reason="no AVX-512 VNNI")
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (33, 64), (100, 127)])
def test_bytes_of_codes_are_those_that_screening_has(rows: int, columns: int) -> None:
    x = torch.randn(rows, columns)
    screen = torch.ops.siamcuda.gallery_screen(x, x.mean(0))
    assert sum(part.nbytes for part in screen) == gallery.code_bytes(rows, columns)


@pytest.mark.parametrize("quick", [False, True])
def test_every_case_of_search_is_named_once(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "_available", lambda: math.inf)
    names = [case.name for case in gallery.cases(quick)]
    assert len(set(names)) == len(names)
    kinds = ("search[1000 q", "search[1 q", "range_search", "hamming", "build")
    for kind in kinds if not quick else kinds[1:]:
        assert any(name.startswith(kind) for name in names), kind
    assert any(" int8 " in name for name in names) == CODES_HERE
    monkeypatch.setattr(gallery, "screens", lambda: ("float32",))
    assert not [case.name for case in gallery.cases(quick) if " int8 " in case.name]


def test_a_gallery_that_does_not_fit_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gallery, "_available", lambda: 2.0**30)
    rows = {case.rows for case in gallery.cases()}
    assert max(rows) == gallery.ROWS
    said = capsys.readouterr().err
    assert "search[1 query, k=10] float32 1000000x128: needs 3 GiB" in said


# --- faiss at its best ----------------------------------------------------------------------------


def test_search_goes_on_without_faiss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find, missing = importlib.util.find_spec, ("faiss", "sklearn")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    assert _families(gallery._search("float32", 5, 300, 8, 3, slow=True)) == {
        "ours", "torch", "torch.cdist"
    }  # fmt: skip
    said = capsys.readouterr().err
    assert "left out: faiss: faiss is not installed: pip install 'siamcuda[peers]'" in said
    assert "left out: scikit-learn: pip install scikit-learn" in said


def test_probe_takes_the_fastest_that_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()  # of the fixture: this is about the probe
    seconds = {None: 0.3, "Haswell": 0.1, "SkylakeX": math.inf}
    asked: list[str | None] = []

    def trial(coretype: str | None, *_: object) -> float:
        asked.append(coretype)
        return seconds[coretype]

    monkeypatch.setattr(faiss_setting, "trial", trial)
    assert faiss_setting.probe(turns=2) == "Haswell"
    assert asked == [None, "Haswell", "SkylakeX", "SkylakeX", "Haswell", None]
    assert "unset 300 ms, Haswell 100 ms, SkylakeX inf ms" in capsys.readouterr().out


def test_trial_sets_the_variable_and_survives_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faiss_setting.VARIABLE, "Given")
    show = "import os; print({'None': 1, 'Haswell': 2}[str(os.environ.get('OPENBLAS_CORETYPE'))])"
    monkeypatch.setattr(faiss_setting, "TRIAL", show)
    assert faiss_setting.trial(None, (1, 1, 1)) == 1
    assert faiss_setting.trial("Haswell", (1, 1, 1)) == 2
    monkeypatch.setattr(faiss_setting, "TRIAL", "import os, signal; os.kill(os.getpid(), 4)")
    assert faiss_setting.trial(None, (1, 1, 1)) == math.inf


@pytest.mark.skipif(not FAISS_HERE, reason="faiss is not installed")
def test_trial_runs_faiss() -> None:
    assert 0 < faiss_setting.trial(None, (4, 100, 8)) < math.inf


@pytest.mark.parametrize("given", [None, "Given"])
def test_setting_is_there_only_while_faiss_is_loaded(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = faiss_setting.VARIABLE
    monkeypatch.delenv(variable, raising=False)
    if given is not None:
        monkeypatch.setenv(variable, given)
    seen: dict[str, str | None] = {}

    def load(name: str) -> Any:
        seen[name] = os.environ.get(variable)
        return SimpleNamespace(__version__="9")

    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", load)
    monkeypatch.setattr(faiss_setting, "probe", lambda: "SkylakeX")
    assert faiss_setting.load().title == "9, OPENBLAS_CORETYPE SkylakeX"
    assert seen == {"numpy": given, "sklearn.neighbors": given, "faiss": "SkylakeX"}
    assert os.environ.get(variable) == given


# --- larger than memory ---------------------------------------------------------------------------


def test_a_streamed_gallery_is_measured_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "r.csv", tmp_path / "deep" / "data"
    arguments = ["--gib", "0.002", "--columns", "32", "--queries", "300", "--threads", "1"]
    assert stream.main([*arguments, "--folder", str(folder), "--out", str(out)]) == 0
    assert list(folder.iterdir()) == []
    rows = results.read(out)
    count = int(0.002 * 2**30) // 128
    assert {(row["suite"], row["rows"], row["columns"]) for row in rows} == {
        ("stream", str(count), "32")
    }
    assert [row["mode"] for row in rows] == [mode for mode in gallery.screens() for _ in range(2)]
    assert all(float(row["peak_mib"]) > 10 and float(row["gbps"]) > 0 for row in rows)
    assert [bool(row["of_limit"]) for row in rows] == [True, False] * len(gallery.screens())
    lines = table.SECTIONS["search_stream"](rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "GB/s, peak" in capsys.readouterr().out


def test_a_disk_without_space_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = SimpleNamespace(free=10 * 2**30)
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(stream, "write", lambda *_: pytest.fail("nothing may be written"))
    assert stream.main(["--folder", str(tmp_path), "--out", str(tmp_path / "r.csv")]) == 2
    assert "10.0 GiB are free, 10.0 for the file and 1 to spare" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (
            lambda *_: ([1.0, 1.0], 1.0, torch.ones(8, 10, dtype=torch.float64)),
            2,
            "other distances than a search",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 2, "No space left"),
    ],
)
def test_whatever_happens_the_file_is_gone(
    failure: Any, status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def search(path: Path, *rest: Any) -> Any:
        assert path.stat().st_size > 100_000
        if isinstance(failure, BaseException):
            raise failure
        return failure()

    monkeypatch.setattr(stream, "search", search)
    folder, out = tmp_path / "data", tmp_path / "r.csv"
    arguments = ["--gib", "0.0005", "--columns", "32", "--folder", str(folder), "--out", str(out)]
    assert stream.main(arguments) == status
    assert message in capsys.readouterr().err
    assert list(folder.iterdir()) == []
    assert not out.exists()


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"the search failed: .*none.npy"):
        stream.search(tmp_path / "g.npy", tmp_path / "none.npy", 1, 1, "float32")


def test_terminated_while_it_writes_it_leaves_nothing(tmp_path: Path) -> None:
    free = stream.shutil.disk_usage(tmp_path).free
    if free < 4 * 2**30:
        pytest.skip(f"only {free / 2**30:.1f} GiB are free")
    folder = tmp_path / "data"
    command = [sys.executable, "-m", "bench.stream", "--gib", "2", "--folder", str(folder)]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "r.csv")],
        cwd=results.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while not list(folder.glob("*/gallery.npy")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "interrupted; its file is gone" in said
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--k", "0"], ["--gib", "0"], ["--threads", "0"]])
def test_stream_refuses_what_it_cannot_do(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        stream.main(arguments)
    assert "must " in capsys.readouterr().err


# --- tables and pictures --------------------------------------------------------------------------


def _rows() -> list[dict[str, Any]]:
    """What the full suite writes, with times made up."""
    machine = {"cpu": "a CPU", "cores": 2, "simd": "avx512", "torch": "2", "python": "3",
               "numpy": "2", "compiler": "12", "kernel": "Linux 6", "thp": "madvise"}  # fmt: skip
    base = machine | {"date": "2026-01-02T03:04:05Z", "commit": "c", "build": "b", "quick": 0}
    limit = {"fma_gflops": 500.0, "read": 40.0, "copy_stream": 60.0, "write_stream": 40.0}
    found = []
    for threads in (1, 2):
        for case in gallery.cases():
            families = ["ours", "faiss"]
            if case.mode != "int8" and case.op != "build":
                families += ["torch", "scikit-learn", "torch.cdist"]
            scale = (0.5 if case.mode == "int8" else 1.0) / threads
            scale *= 1e-9 * case.rows * case.columns
            timings = [
                harness.Timing(
                    harness.Peer(family, "v", lambda: None, None, reads=i and 4 * case.reads),
                    1, [scale * (i + 1)] * 3,
                )
                for i, family in enumerate(families)
            ]  # fmt: skip
            rows = harness._rows(case, timings, {}, "warm", threads, limit, harness.QUICK)
            found += [base | row for row in rows]
    return found


def test_tables_and_pictures_of_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "_available", lambda: math.inf)
    monkeypatch.setattr(gallery, "screens", lambda: gallery.MODES)
    path, document = tmp_path / "r.csv", tmp_path / "page.md"
    results.append(path, _rows())
    document.write_text(
        "".join(f"{table.BEGIN.format(n)}x{table.END.format(n)}\n" for n in table.SECTIONS)
    )
    none = ["--cuda-csv", str(tmp_path / "none.csv")]
    assert table.main(["--csv", str(path), *none, "--docs", str(document)]) == 0
    text = document.read_text()
    for line in (
        "| search[1000 queries, k=10] 100000x128 | float32 | 1 | 12.8 ms | faiss (v) | 25.6 ms | "
        "2.00x | >= 1.3x | met |",
        "| search[1000 queries, k=10] 100000x512 | float32 | 2 | siamcuda | 4000 | 500 | 800 % | "
        ">= 85 % | met |",
        "| search[1 query, k=10] 1000000x128 | int8 | 2 | siamcuda | 32 ms | 130 | 4.3 | 16.0 | "
        "40.0 | 11 % | >= 90 % | missed |",
        "| hamming[1000 queries, k=10] 100000x256 | bits | 1 | 25.6 ms | faiss (v) | 51.2 ms | "
        "2.00x | >= 1x | met |",
        "| build 100000x128 | int8 | 2 | 3.2 ms | faiss (v) | 6.4 ms | 2.00x |  |  |",
        "| search[1000 queries, k=10] 1000000x128 | float32 | 2 | 64 ms | torch.cdist (v) |",
        "![Search beside faiss](img/bench_search.png)",
    ):
        assert line in text, line
    assert table.terminal(results.latest(results.read(path))).count("limit (FMA peak)") == 2 * 6
    assert plot.main(["--csv", str(path), *none, "--out", str(tmp_path / "img")]) == 0
    names = sorted(picture.name for picture in (tmp_path / "img").iterdir())
    assert names == ["bench_search.png", "bench_search_scaling.png"]
    for name in names:
        assert (tmp_path / "img" / name).read_bytes().startswith(b"\x89PNG")


def test_search_peers_ask_for_as_many_threads_as_torch_has() -> None:
    found = search_peers.faiss()
    if found is None:
        pytest.skip("faiss is not installed")
    assert found.module.omp_get_max_threads() == torch.get_num_threads()
