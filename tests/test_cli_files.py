"""The commands that work on files of embeddings: evaluate and search, end to end."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

for _extra in ("tyro", "matplotlib", "jinja2", "PIL"):
    pytest.importorskip(_extra)

from PIL import Image

import siamcuda
from siamcuda.cli import main
from siamcuda.verification import Calibrator, evaluate

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in a folder with embeddings of 24 rows and 6 identities; status, out, err."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    person = np.arange(24) % 6
    rows = generator.normal(size=(6, 5))[person] + 0.6 * generator.normal(size=(24, 5))
    np.save("e.npy", rows.astype(np.float32))
    np.save("l.npy", person)
    np.save("g.npy", rows[:9].astype(np.float32))
    np.save("gl.npy", person[:9])

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        return status, *capsys.readouterr()

    return call


def one_line(err: str) -> str:
    assert err.startswith("siamcuda: error: ")
    assert err.count("\n") == 1, err
    return err


# evaluate


def test_evaluate_prints_what_the_library_finds(run: Run) -> None:
    status, out, err = run("evaluate", "e.npy", "l.npy", "--far", "0.1", "0.01", "--metric=cosine")
    assert (status, err) == (0, "")
    report = evaluate(np.load("e.npy"), np.load("l.npy"), far=(0.1, 0.01), metric="cosine")
    lines = [line.split() for line in out.replace("\N{NO-BREAK SPACE}%", "%").splitlines()]
    assert "24 of 6 identities, 5 columns of float32, from e.npy" in out
    assert f"{report.genuine:,} of one identity" in out
    table = {line[0]: line for line in lines if line}
    for far, asked in ((0.1, "10%"), (0.01, "1%")):
        assert np.float32(table[asked][1]) == np.float32(report.threshold(far))
        assert table[asked][-1] == f"{100 * report.tar(far):.1f}%"
    assert sorted(p.name for p in Path().iterdir()) == ["e.npy", "g.npy", "gl.npy", "l.npy"]


def test_evaluate_writes_page_plots_and_calibrator(run: Run) -> None:
    folder = Path("faces")
    for row in range(24):
        path = folder / f"{row // 10}" / f"{row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), row).save(path)
    (folder / "notes.txt").write_text("no image")
    status, out, err = run(
        *("evaluate", "e.npy", "l.npy", "--images", "faces", "--bootstrap", "64"),
        *("--report", "out.html", "--png", "plots/new", "--calibrator", "c.json", "--hardest", "3"),
        *("--title", "<Faces>"),
    )
    assert (status, err) == (0, "")
    page = Path("out.html").read_text()
    assert "<h1>&lt;Faces&gt;</h1>" in page
    assert page.count("<img ") == 12
    assert "95 % interval" in page
    pngs = ["cmc", "det", "histogram", "open_set", "reliability", "roc", "similarity"]
    assert sorted(p.stem for p in Path("plots/new").iterdir()) == pngs
    report = evaluate(np.load("e.npy"), np.load("l.npy"))
    assert Calibrator.load("c.json") == Calibrator.fit(report)
    assert report.hardest_impostor is not None
    i, j = report.hardest_impostor.pairs[0]
    assert page.index(f"{i:02d}.png") < page.index(f"{j:02d}.png"), "rows are the sorted files"
    for name in ("page: out.html", "calibration: c.json", "roc.png"):
        assert name in out


def test_evaluate_takes_names_and_a_gallery(run: Run) -> None:
    """Labels of both sides are compared as text, whatever file they come from."""
    Path("names.txt").write_text("".join(f"{n}\n" for n in np.load("l.npy")))
    command = ("evaluate", "e.npy", "names.txt", "--gallery", "g.npy", "--gallery-labels")
    status, out, _ = run(*command, "gl.npy", "--report", "out.html")
    assert status == 0
    report = evaluate(
        np.load("e.npy"), np.load("l.npy"), gallery=np.load("g.npy"),
        gallery_labels=np.load("gl.npy"),
    )  # fmt: skip
    assert f"{report.genuine:,} of one identity" in out
    assert f'<data value="{report.eer}">' in Path("out.html").read_text()
    np.save("names.npy", np.load("gl.npy").astype("S"))
    again = run(*command, "names.npy")[1]
    assert again.split("page:")[0].split() == out.split("page:")[0].split()


def test_images_that_sort_two_ways_are_warned_of(run: Run) -> None:
    for row in range(24):
        Image.new("L", (4, 4)).save(f"{row}.png")
    status, _, err = run("evaluate", "e.npy", "l.npy", "--images", ".")
    assert status == 0
    assert err.startswith("siamcuda: warning: images: 19.png is taken to come before 2.png; give a")
    assert err.count("\n") == 1


def test_lists_of_images_and_labels_may_be_utf8_with_any_line_ends(run: Run) -> None:
    Image.new("L", (4, 4)).save("é.png")
    Path("list.txt").write_bytes("é.png\r\n".encode() * 24)
    Path("names.txt").write_bytes("\ufeff".encode() + "Ü\nß\n".encode() * 11 + "Ü\nß".encode())
    status, _, err = run(
        "evaluate", "e.npy", "names.txt", "--images", "list.txt", "--report", "out.html"
    )
    assert (status, err) == (0, "")
    assert "24 embeddings of 2 identities" in Path("out.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.npy", "l.npy"], "embeddings: none.npy: No such file or directory"),
        (["e.npy", "none.npy"], "labels: none.npy: No such file or directory"),
        ([".", "l.npy"], "embeddings: . is a folder"),
        (["g.npy", "l.npy"], "labels: l.npy: 24 labels for 9 rows"),
        (["short.npy", "l.npy"], "embeddings: short.npy: truncated: 24 rows of 5"),
        (["l.npy", "l.npy"], "embeddings: l.npy: float16, float32, float64 or uint8"),
        (["text.txt", "l.npy"], "embeddings: text.txt: not a .npy file"),
        (["objects.npy", "l.npy"], "embeddings: objects.npy: holds Python objects, which are nev"),
        (["e.npy", "objects.npy"], "labels: objects.npy: not a .npy file that can be read"),
        (["e.npy", "floats.npy"], "a row of integers or strings is expected, got shape (24,)"),
        (["e.npy", "text.txt"], "labels: text.txt: line 2 is empty"),
        (["e.npy", "latin.txt"], "labels: latin.txt: not a text file in UTF-8"),
        (["e.npy", "same.txt"], "labels: no impostor pair"),
        (["e.npy", "l.npy", "--far", "2"], "far must lie in [0, 1], got 2.0"),
        (["e.npy", "l.npy", "--bootstrap", "-1"], "bootstrap must be at least 0"),
        (["e.npy", "l.npy", "--prior", "1", "--calibrator", "c.json"], "prior must lie in (0, 1)"),
        (["e.npy", "l.npy", "--gallery", "g.npy"], "--gallery-labels must be given together"),
        (["e.npy", "l.npy", "--gallery-images", "x"], "gallery_images: needs --gallery"),
        (["e.npy", "l.npy", "--report", "no/out.html"], "report: cannot write to the folder no: N"),
        (["e.npy", "l.npy", "--report", "plain"], "report: plain is a folder"),
        (["e.npy", "l.npy", "--report", "e.npy"], "report: e.npy is one of the files to read"),
        (["e.npy", "l.npy", "--png", "e.npy"], "png: cannot write to the folder e.npy: Not a d"),
        (["e.npy", "l.npy", "--images", "none"], "images: none: No such file or directory"),
        (["e.npy", "l.npy", "--images", "plain"], "images: plain: 1 images for 24 rows"),
        (["e.npy", "l.npy", "--images", "absent.txt"], "absent.txt: row 1: no such image: gone"),
        (["e.npy", "same.txt", "--png", "plots"], "labels: no impostor pair"),
        (["nan.npy", "l.npy"], "embeddings: the distance of every pair is NaN"),
    ],
)  # fmt: skip
def test_evaluate_says_what_is_wrong_before_any_work(
    run: Run, arguments: list[str], says: str
) -> None:
    Path("short.npy").write_bytes(Path("e.npy").read_bytes()[:-9])
    np.save("objects.npy", np.array([[object()] * 5] * 24), allow_pickle=True)
    np.save("floats.npy", np.zeros(24))
    np.save("nan.npy", np.full((24, 5), np.nan, np.float32))
    Path("text.txt").write_text("a\n\nb")
    Path("latin.txt").write_bytes(b"\xe9\n" * 24)
    Path("same.txt").write_text("x\n" * 24)
    Path("plain").mkdir()
    Image.new("L", (4, 4)).save("plain/1.png")
    Path("absent.txt").write_text("plain/1.png\n" + "gone.png\n" * 23)
    before = sorted(Path().rglob("*"))
    status, out, err = run("evaluate", *arguments)
    assert (status, out) == (2, "")
    assert says in one_line(err)
    assert sorted(Path().rglob("*")) == before


def test_evaluate_that_is_interrupted_leaves_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from siamcuda.report import page

    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "render", interrupted)
    before = sorted(Path().iterdir())
    status, _, err = run("evaluate", "e.npy", "l.npy", "--report", "out.html")
    assert (status, err) == (130, "siamcuda: interrupted; nothing is left half written\n")
    assert sorted(Path().iterdir()) == before


def test_a_full_disk_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    before = sorted(Path().iterdir())
    status, _, err = run("evaluate", "e.npy", "l.npy", "--report", "out.html")
    assert (status, err) == (2, "siamcuda: error: report: No space left on device\n")
    assert run("search", "e.npy", "g.npy", "-o", "out.csv")[::2] == (
        2, "siamcuda: error: out: No space left on device\n",
    )  # fmt: skip
    assert sorted(Path().iterdir()) == before


def test_without_the_extra_of_the_page_the_table_is_there(tmp_path: Path) -> None:
    """A page needs matplotlib and jinja2, and says so before the work; the table needs neither."""
    np.save(tmp_path / "e.npy", np.eye(4, dtype=np.float32))
    np.save(tmp_path / "l.npy", np.arange(4) // 2)
    script = (
        "import sys\n"
        "for name in ('matplotlib', 'jinja2', 'PIL', 'tqdm', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from siamcuda.cli import main\n"
        "assert main(['evaluate', 'e.npy', 'l.npy']) == 0\n"
        "assert main(['search', 'e.npy', 'e.npy', '-k', '1']) == 0\n"
        "assert main(['evaluate', 'e.npy', 'l.npy', '--images', '.']) == 2\n"
        "sys.exit(main(['evaluate', 'e.npy', 'l.npy', '--report', 'out.html']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("Equal error rate") == 1
    assert "images needs pillow: pip install 'siamcuda[report]'" in done.stderr
    assert "siamcuda evaluate needs" in done.stderr.splitlines()[-1]
    assert "pip install 'siamcuda[report]'" in done.stderr.splitlines()[-1]


def test_tables_are_the_same_with_rich(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    plain = run("evaluate", "e.npy", "l.npy")[1]
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    rich = run("evaluate", "e.npy", "l.npy")[1]
    assert rich.split() == plain.split()
    monkeypatch.setitem(sys.modules, "rich.console", None)  # importing it fails from now on
    assert run("evaluate", "e.npy", "l.npy")[1] == plain


# search


def rows_of(text: str) -> list[list[str]]:
    head, *rows = csv.reader(text.splitlines())
    assert head == ["query", "rank", "id", "distance"]
    return rows


def test_search_writes_what_the_gallery_finds(run: Run) -> None:
    found = siamcuda.Gallery(np.load("g.npy"), metric="cosine").search(np.load("e.npy"), 3)
    command = ("search", "e.npy", "g.npy", "-k", "3", "--metric", "cosine")
    status, out, err = run(*command)
    assert (status, err) == (0, "")
    rows = rows_of(out)
    assert [int(r[2]) for r in rows] == found.ids.ravel().tolist()
    assert [np.float32(r[3]) for r in rows] == found.distances.ravel().tolist()
    assert [r[:2] for r in rows[:4]] == [["0", "1"], ["0", "2"], ["0", "3"], ["1", "1"]]
    assert run(*command, "-o", "out.csv") == (0, "out.csv: 72 entries\n", "")
    assert Path("out.csv").read_text() == out
    assert run(*command, "--out", "out.npz")[0] == 0
    with np.load("out.npz") as arrays:
        assert np.array_equal(arrays["ids"], found.ids)
        assert np.array_equal(arrays["distances"], found.distances)


def test_search_within_a_radius(run: Run) -> None:
    lims, distances, ids = siamcuda.Gallery(np.load("g.npy")).range_search(np.load("e.npy"), 2.5)
    assert 0 < len(ids) < 24 * 9
    rows = rows_of(run("search", "e.npy", "g.npy", "--radius", "2.5")[1])
    assert [int(r[2]) for r in rows] == ids.tolist()
    assert [int(r[0]) for r in rows] == np.repeat(np.arange(24), np.diff(lims)).tolist()
    run("search", "e.npy", "g.npy", "--radius", "2.5", "-o", "out.npz")
    with np.load("out.npz") as arrays:
        assert np.array_equal(arrays["lims"], lims)
        assert np.array_equal(arrays["distances"], distances)


def test_search_takes_the_metric_and_ids_of_a_saved_gallery(run: Run) -> None:
    gallery = siamcuda.Gallery(torch.from_numpy(np.load("g.npy")), torch.arange(9) + 70, "cosine")
    gallery.save("g.safetensors")
    found = gallery.search(torch.from_numpy(np.load("e.npy")), 20)
    rows = rows_of(run("search", "e.npy", "g.safetensors", "-k", "20")[1])
    assert [int(r[2]) for r in rows] == found.ids[:, :9].ravel().tolist(), "padding is no entry"
    status, _, err = run("search", "e.npy", "g.safetensors", "--metric", "euclidean")
    assert status == 2
    assert "gallery: g.safetensors was saved for metric 'cosine'" in one_line(err)


def test_search_over_packed_bits(run: Run) -> None:
    bits = np.random.default_rng(0).integers(0, 256, (5, 4), dtype=np.uint8)
    np.save("bits.npy", bits)
    rows = rows_of(run("search", "bits.npy", "bits.npy", "-k", "1", "--metric", "hamming")[1])
    assert rows == [[str(n), "1", str(n), "0"] for n in range(5)]


def test_rows_that_are_not_finite_are_refused_or_reported(run: Run) -> None:
    rows = np.load("g.npy")
    rows[4, 2] = np.nan
    np.save("nan.npy", rows)
    status, out, err = run("search", "e.npy", "nan.npy", "-o", "out.npz")
    assert (status, out, Path("out.npz").exists()) == (2, "", False)
    assert "nan.npy: row 4 holds NaN or an infinity" in one_line(err)
    status, out, err = run("search", "nan.npy", "nan.npy", "--nonfinite", "warn", "-k", "9")
    assert status == 0
    assert [r[2] for r in rows_of(out)][8] == "4"
    assert err == (
        "siamcuda: warning: nan.npy: 1 of 9 rows hold NaN or infinities; they come after all "
        "others\nsiamcuda: warning: nan.npy: 1 rows hold NaN or infinities; what is found for "
        "them means nothing\n"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.npy", "g.npy"], "queries: none.npy: No such file or directory"),
        (["e.npy", "none.npy"], "gallery: none.npy: No such file or directory"),
        (["e.npy", "none.safetensors"], "gallery: none.safetensors: No such file"),
        (["e.npy", "short.npy"], "gallery: short.npy: truncated"),
        (["e.npy", "junk.safetensors"], "gallery: junk.safetensors: not a safetensors file"),
        (["e.npy", "."], "gallery: . is a folder"),
        (["e.npy", "wide.npy"], "queries: have 5 columns, the gallery has 3"),
        (["e.npy", "g.npy", "-k", "0"], "k must be at least 1, got 0"),
        (["e.npy", "g.npy", "--radius", "nan"], "radius must not be NaN"),
        (["e.npy", "g.npy", "--metric", "hamming"], "packed bits in uint8 are expected"),
        (["e.npy", "g.npy", "-o", "out.txt"], "out: out.txt must end in .npz or .csv"),
        (["e.npy", "g.npy", "-o", "no/out.csv"], "out: cannot write to the folder no"),
        (["e.npy", "empty.npy"], "gallery: is empty"),
    ],
)
def test_search_says_what_is_wrong(run: Run, arguments: list[str], says: str) -> None:
    Path("short.npy").write_bytes(Path("g.npy").read_bytes()[:-9])
    Path("junk.safetensors").write_bytes(b"junk")
    np.save("wide.npy", np.zeros((3, 3), np.float32))
    np.save("empty.npy", np.zeros((0, 5), np.float32))
    before = sorted(Path().iterdir())
    status, out, err = run("search", *arguments)
    assert (status, out) == (2, "")
    assert says in one_line(err)
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("out", ["out.npz", "out.csv"])
def test_search_that_is_interrupted_leaves_the_old_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    Path(out).write_text("old")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("siamcuda._commands.search.np.savez", interrupted)
    monkeypatch.setattr("siamcuda._commands.search.csv.writer", interrupted)
    before = sorted(Path().iterdir())
    assert run("search", "e.npy", "g.npy", "-o", out)[0] == 130
    assert Path(out).read_text() == "old"
    assert sorted(Path().iterdir()) == before


def test_progress_follows_the_parts_of_a_streamed_gallery(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tqdm")
    from siamcuda import _stores
    from siamcuda._commands import runs

    monkeypatch.setattr(_stores, "_PART_BYTES", 40)  # two rows
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with runs.progress_bar(9, "gallery", "row") as step:
        step(4, 9)
    status, out, err = run("search", "e.npy", "g.npy", "-k", "1")
    assert status == 0
    assert "4.00/9.00" in err, "the bar that was stepped by hand"
    assert "9.00/9.00" in err
    assert len(rows_of(out)) == 24


def test_a_reader_that_has_enough_ends_the_search_quietly(run: Run) -> None:
    np.save("many.npy", np.zeros((4000, 5), np.float32))
    command = f"{sys.executable} -m siamcuda.cli search many.npy many.npy -k 20 | head -n 2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["query,rank,id,distance", "0,1,0,0.0"]
    assert done.stderr == ""
    command = f"{sys.executable} -m siamcuda.cli evaluate e.npy l.npy --report out.html | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert Path("out.html").exists()


def test_the_exact_numbers_are_in_json_and_page_alike(run: Run) -> None:
    """The calibrator that is written is the one that the page shows."""
    run("evaluate", "e.npy", "l.npy", "--report", "out.html", "--calibrator", "c.json",
        "--calibration", "isotonic", "--prior", "0.1")  # fmt: skip
    assert json.loads(Path("c.json").read_text())["method"] == "isotonic"
    report = evaluate(np.load("e.npy"), np.load("l.npy"))
    cllr = report.cllr(Calibrator.load("c.json"))
    page = Path("out.html").read_text()
    assert f'<data value="{cllr}">' in page
    assert "isotonic, by pool-adjacent-violators, prior 0.1" in page
