"""The commands on a trained run: embed, compare, search, evaluate, export, end to end."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for _extra in ("tyro", "PIL", "safetensors", "tqdm", "matplotlib", "jinja2"):
    pytest.importorskip(_extra)

from PIL import Image

import siamcuda
from siamcuda.cli import main
from siamcuda.train.encoders import EncoderConfig, EncoderSpec, InputSpec, Tokenizer
from siamcuda.train.siamese import Distance, Siamese

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the faces of six people, and a run of a few epochs on four of them."""
    folder = tmp_path_factory.mktemp("trained")
    random = np.random.default_rng(0)
    for person in range(1, 7):
        (folder / f"faces/p{person}").mkdir(parents=True)
        blob = random.random((28, 23)).repeat(2, 0).repeat(2, 1) * 200
        for number in range(1, 8):
            noisy = (blob + random.random(blob.shape) * 50).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"faces/p{person}/{number}.png")
    settings = ("--encoder.embedding=8", "--pictures-per-person=2", "--train.epochs=2")
    places = ("--out", str(folder / "run"), "--data", str(folder / "faces"))
    assert main(["train", "chopra-faces", "--test-people", "2", *places, *settings]) == 0
    return folder


@pytest.fixture
def run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:  # fmt: skip
    """A command in an empty folder but for links to ``run`` and ``faces``; status, out, err."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "faces"):
        Path(name).symlink_to(trained / name)
    capsys.readouterr()

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        return status, *capsys.readouterr()

    return call


def untrained(
    folder: str, distance: Distance = "euclidean", text: bool = False, **settings: Any
) -> Siamese:
    """A run of another kind, as its recipe would leave it, but for the training."""
    bits = 16 if distance == "hamming" else None
    if text:
        spec = EncoderSpec(EncoderConfig("text", 8), Tokenizer(buckets=64))
    else:
        spec = EncoderSpec(EncoderConfig("fast", 8, None, bits, {"width": 4}), InputSpec(1, 28, 28))
    siamese = Siamese(spec, spec.build(seed=0).eval(), distance, **settings)
    Path(folder).mkdir()
    siamese.save(Path(folder))
    return siamese


def refused(found: tuple[int, str, str], says: str) -> None:
    """Check that nothing but one line was said."""
    status, out, err = found
    assert (status, out) == (2, ""), err
    assert err.startswith("siamcuda: error: ")
    assert err.count("\n") == 1, err
    assert says in err


def listed() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


# any of them

BROKEN = [
    (["none"], "run: no such folder: none"),
    (["faces"], "run: nothing was trained in faces yet: it has no checkpoint.safetensors"),
    (["begun"], "run: nothing was trained in begun yet"),
    (["splits"], "run: splits has 1 trained parts: give one (splits/split-01)"),
    (["junk"], "checkpoint: junk/checkpoint.safetensors is missing or broken"),
    (["short"], "checkpoint: short/checkpoint.safetensors is missing or broken"),
    (["foreign"], "checkpoint: foreign/checkpoint.safetensors holds no system of siamcuda"),
    (["calibrator"], "calibrator: "),
    (["pairs"], "run: the encoder of pairs scores pairs and has no embeddings"),
]


@pytest.mark.parametrize(("folder", "says"), BROKEN)
@pytest.mark.parametrize(
    "rest",
    [
        ["embed", "faces", "-o", "out.npy"],
        ["compare", "faces/p1/1.png", "faces/p1/2.png"],
        ["search", "faces/p1", "faces", "-o", "out.csv"],
        ["evaluate", "faces", "--report", "out.html"],
        ["export", "-o", "out.pt2"],
    ],
    ids=lambda rest: rest[0],
)
def test_a_run_that_cannot_be_used_is_named(
    run: Run, folder: list[str], says: str, rest: list[str]
) -> None:
    good = Path("run/checkpoint.safetensors").read_bytes()
    contents = {
        "begun/config.json": b"{}",
        "splits/split-01/config.json": b"{}",
        "splits/split-01/checkpoint.safetensors": good,
        "junk/checkpoint.safetensors": np.random.default_rng(0).bytes(3000),
        "short/checkpoint.safetensors": good[: len(good) // 2],
        "calibrator/checkpoint.safetensors": good,
        "calibrator/calibrator.json": b"{",
    }
    for name, content in contents.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    Path("foreign").mkdir()
    siamcuda.Gallery(torch.eye(3)).save("foreign/checkpoint.safetensors")
    Path("pairs").mkdir()
    spec = EncoderSpec(EncoderConfig("two-channel", 8), InputSpec(1, 64, 64))
    Siamese(spec, spec.build(seed=0).eval()).save(Path("pairs"))
    before = listed()
    refused(run(rest[0], *folder, *rest[1:]), says)
    assert listed() == before


def test_a_checkpoint_of_random_bytes_is_named(run: Run) -> None:
    good = Path("run/checkpoint.safetensors").read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    random = np.random.default_rng(0)
    Path("damaged").mkdir()
    for places in (header, len(good)):
        for _ in range(20):
            broken = bytearray(good)
            for place in random.integers(0, places, 3):
                broken[place] ^= 1 << random.integers(0, 8)
            Path("damaged/checkpoint.safetensors").write_bytes(broken)
            refused(run("compare", "damaged", "faces/p1/1.png", "faces/p1/2.png"), "")


@pytest.mark.parametrize("command", ["embed", "compare", "search", "evaluate", "export"])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    for arguments, status in (["--help"], 0), (["--bach", "3"], 2):
        with pytest.raises(SystemExit) as stop:
            run(command, *arguments)
        assert stop.value.code == status


def test_a_reader_that_has_enough_ends_it_quietly(run: Run) -> None:
    command = f"{sys.executable} -m siamcuda.cli search run faces faces -k 42 | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("query,rank,id,distance,similarity\n", "")


# compare


def test_compare_says_what_the_library_finds(run: Run) -> None:
    siamese = Siamese.load(Path("run"))
    a, b = Path("faces/p5/1.png"), Path("faces/p6/2.png")
    z = siamese.embed_images([a, b])
    [found] = siamese.compare(z[:1], z[1:])
    status, out, err = run("compare", "run", str(a), str(b), "--json")
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert facts == {
        **found._asdict(), "metric": "euclidean", "threshold": siamese.threshold, "far": 0.01,
    }  # fmt: skip
    status, out, err = run("compare", "run", str(a), str(b))
    assert (status, err) == (0, "")
    assert f"distance    {found.distance:.6g} (euclidean)\n" in out
    assert f"similarity  {found.similarity:.4f}\n" in out
    assert f"same        {'yes' if found.same else 'no'}: threshold " in out
    same = run("compare", "run", str(a), str(a))[1]
    assert "distance    0 (euclidean)" in same
    assert "same        yes" in same
    assert "chosen for a FAR of 1 %" in same


def test_compare_without_threshold_or_calibrator(run: Run) -> None:
    untrained("bare", "l1")
    out = run("compare", "bare", "faces/p1/1.png", "faces/p1/2.png")[1]
    assert "(l1)" in out
    assert "similarity  not known: the run has no calibrator" in out
    assert "same        not known: the run has no threshold" in out
    facts = json.loads(run("compare", "bare", "faces/p1/1.png", "faces/p1/2.png", "--json")[1])
    assert (facts["similarity"], facts["same"]) == (None, None)


def test_compare_takes_sentences(run: Run) -> None:
    untrained("words", "cosine", text=True, threshold=0.5)
    status, out, _ = run("compare", "words", "two red fish", "two red fish")
    assert status == 0
    assert "same        yes: threshold 0.5\n" in out
    refused(run("compare", "words", "two red fish", " "), "b: the sentence is empty")


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (["none.png", "faces/p1/1.png"], "a: no such image: none.png"),
        (["faces/p1/1.png", "faces"], "b: faces is a folder, an image file is expected"),
        (["faces/p1/1.png", "text.png"], "cannot read the image text.png: not an image"),
        (["faces/p1/1.png", "empty.png"], "cannot read the image empty.png: the file is empty"),
    ],
)
def test_compare_names_the_image(run: Run, pair: list[str], says: str) -> None:
    Path("text.png").write_text("no image")
    Path("empty.png").touch()
    refused(run("compare", "run", *pair), says)


# embed


def test_embed_writes_what_the_library_embeds(run: Run) -> None:
    Path("list.txt").write_text("faces/p6/7.png\nfaces/p6/1.png\n")
    command = ("embed", "run", "faces/p2/3.png", "faces/p1", "list.txt", "-o", "z.npy")
    status, out, err = run(*command, "--names", "names.txt", "--batch", "4")
    assert (status, out, err) == (0, "z.npy: 10 rows of 8 float32\n", "")
    names = Path("names.txt").read_text().splitlines()
    people = [f"faces/p1/{number}.png" for number in range(1, 8)]
    assert names == ["faces/p2/3.png", *people, "faces/p6/7.png", "faces/p6/1.png"]
    z = np.load("z.npy")
    assert (z.shape, z.dtype) == ((10, 8), np.float32)
    expected = Siamese.load(Path("run")).embed_images([Path(name) for name in names])
    np.testing.assert_allclose(z, expected, atol=1e-5)
    assert run("embed", "run", "faces", "-o", "g.safetensors")[0] == 0
    gallery = siamcuda.Gallery.load("g.safetensors")
    assert (gallery.metric, len(gallery)) == ("euclidean", 42)


def test_embed_packs_codes_and_takes_sentences(run: Run) -> None:
    siamese = untrained("codes", "hamming")
    assert run("embed", "codes", "faces/p1", "-o", "z.npy")[1] == "z.npy: 7 rows of 2 uint8\n"
    paths = sorted(Path("faces/p1").iterdir())
    assert np.array_equal(np.load("z.npy"), siamese.embed_images(paths))
    siamese = untrained("words", "cosine", text=True)
    Path("t.txt").write_text("two red fish\none blue fish\n")
    assert run("embed", "words", "t.txt", "-o", "z.npy", "--names", "n.txt", "--batch", "1")[0] == 0
    expected = siamese.embed_texts(["two red fish", "one blue fish"])
    np.testing.assert_allclose(np.load("z.npy"), expected, atol=1e-6)
    assert Path("n.txt").read_text() == Path("t.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.png"], "inputs: no such image: none.png"),
        (["none"], "inputs: none: No such file or directory"),
        (["bare"], "inputs: bare holds no image (.bmp, "),
        (["bad.png", "faces"], "cannot read the image bad.png: not an image"),
        (["faces", "list.txt"], "inputs: no such image: gone.png"),
        ([], "inputs: name what to embed"),
        (["faces", "--batch", "0"], "batch: must be at least 1, got 0"),
        (["faces", "-o", "z.txt"], "out: z.txt must end in .npy or .safetensors"),
        (["faces", "-o", "no/z.npy"], "out: cannot write to the folder no"),
        (["faces", "-o", "folder.npy"], "out: folder.npy is a folder, a file is expected"),
        (["list.npy", "-o", "list.npy"], "out: list.npy is one of the files to read"),
        (["faces", "--names", "z.npy"], "names: z.npy is the file of the embeddings"),
        (["faces", "--names", "faces/p1/1.png"], "names: faces/p1/1.png is one of the files to re"),
    ],
)
def test_embed_says_what_is_wrong_and_writes_nothing(
    run: Run, arguments: list[str], says: str
) -> None:
    Path("bare").mkdir()
    Path("folder.npy").mkdir()
    Path("bad.png").write_text("no image")
    Path("list.txt").write_text("gone.png\n")
    Path("list.npy").write_text("faces/p1/1.png\n")
    before = listed()
    out = [] if "-o" in arguments else ["-o", "z.npy"]
    refused(run("embed", "run", *arguments, *out), says)
    assert listed() == before


def test_embed_that_is_interrupted_leaves_the_old_file(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    Path("z.npy").write_text("old")
    before = listed()
    monkeypatch.setattr(np, "save", interrupted)
    assert run("embed", "run", "faces/p1", "-o", "z.npy")[0] == 130
    assert Path("z.npy").read_text() == "old"
    monkeypatch.setattr(Siamese, "encode", interrupted)
    status, _, err = run("embed", "run", "faces/p1", "-o", "z.npy")
    assert (status, err) == (130, "siamcuda: interrupted; nothing is left half written\n")
    assert listed() == before


# search


def rows_of(text: str) -> list[list[str]]:
    head, *rows = csv.reader(text.splitlines())
    assert head == ["query", "rank", "id", "distance", "similarity"]
    return rows


def test_search_finds_images_in_a_folder(run: Run) -> None:
    siamese = Siamese.load(Path("run"))
    status, out, err = run("search", "run", "faces/p5/2.png", "faces", "-k", "5")
    assert (status, err) == (0, "")
    rows = rows_of(out)
    assert [r[:3] for r in rows[:1]] == [["faces/p5/2.png", "1", "faces/p5/2.png"]]
    z = siamese.embed_images([Path(r[2]) for r in rows])
    for row, found in zip(rows, siamese.compare(z[:1].expand_as(z), z), strict=True):
        assert float(row[3]) == pytest.approx(found.distance, abs=1e-5)
        assert float(row[4]) == pytest.approx(found.similarity, abs=1e-4)
    assert run("search", "run", "faces/p5", "faces", "-k", "2", "-o", "out.npz")[0] == 0
    with np.load("out.npz") as arrays:
        assert arrays["queries"].tolist() == [f"faces/p5/{number}.png" for number in range(1, 8)]
        found = arrays["entries"][arrays["ids"]][:, 0].tolist()
        assert found == arrays["queries"].tolist()
        assert arrays["similarities"].shape == (7, 2)
    within = rows_of(run("search", "run", "faces/p5/2.png", "faces", "--radius", "1e-3")[1])
    assert [r[2] for r in within] == ["faces/p5/2.png"]


def test_search_takes_what_embed_wrote(run: Run) -> None:
    folder = run("search", "run", "faces/p5", "faces", "-k", "3")[1]
    for name in ("g.npy", "g.safetensors"):
        run("embed", "run", "faces", "-o", name, "--names", "n.txt")
        status, out, _ = run("search", "run", "faces/p5", name, "--names", "n.txt", "-k", "3")
        assert status == 0
        assert [r[:3] for r in rows_of(out)] == [r[:3] for r in rows_of(folder)]
        numbered = rows_of(run("search", "run", "faces/p5", name, "-k", "1")[1])
        assert [int(r[2]) for r in numbered] == list(range(28, 35))


def test_search_by_codes_and_by_sentences(run: Run) -> None:
    untrained("codes", "hamming")
    rows = run("search", "codes", "faces/p1/1.png", "faces/p1", "-k", "1")[1].splitlines()
    assert rows[1] == "faces/p1/1.png,1,faces/p1/1.png,0"
    untrained("words", "cosine", text=True)
    Path("q.txt").write_text("one blue fish\n")
    Path("t.txt").write_text("two red fish\none blue fish\nmany birds\n")
    rows = run("search", "words", "q.txt", "t.txt", "-k", "2")[1].splitlines()
    assert rows[1].startswith("one blue fish,1,one blue fish,")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "faces"], "places: run is a run: a query and a gallery are to follow it"),
        (["run"], "places: QUERIES GALLERY or RUN QUERY GALLERY is expected, got 1"),
        (["run", "none.png", "faces"], "query: no such image: none.png"),
        (["run", "faces/p1/1.png", "bare"], "gallery: bare holds no image"),
        (["run", "faces/p1/1.png", "none.npy"], "gallery: none.npy: No such file"),
        (["run", "faces/p1/1.png", "wide.npy"], "gallery: wide.npy has 3 columns, the run's embe"),
        (["run", "faces/p1/1.png", "cos.safetensors"], "was saved for metric 'cosine'"),
        (["run", "faces/p1/1.png", "faces", "--metric", "cosine"], "metric: run compares by eucl"),
        (["run", "faces/p1/1.png", "faces", "--names", "n"], "names: faces has names of its own"),
        (["run", "faces/p1/1.png", "z.npy", "--names", "n.txt"], "n.txt: 1 labels for 4 rows"),
        (["z.npy", "z.npy", "--names", "n.txt"], "names: needs a run"),
        (["run", "bad.png", "faces"], "cannot read the image bad.png"),
        (["l1", "faces/p1/1.png", "faces"], "run: it compares by L1 distance, which exact search"),
        (["run", "faces/p1/1.png", "z.npy", "-o", "z.npy"], "out: z.npy must end in"),
    ],
)
def test_search_on_a_run_says_what_is_wrong(run: Run, arguments: list[str], says: str) -> None:
    untrained("l1", "l1")
    Path("bare").mkdir()
    np.save("wide.npy", np.zeros((4, 3), np.float32))
    np.save("z.npy", np.zeros((4, 8), np.float32))
    siamcuda.Gallery(torch.eye(8), metric="cosine").save("cos.safetensors")
    Path("n.txt").write_text("one\n")
    Path("bad.png").write_text("no image")
    before = listed()
    refused(run("search", *arguments), says)
    assert listed() == before


# evaluate


def test_evaluate_embeds_and_reports(run: Run) -> None:
    siamese = Siamese.load(Path("run"))
    status, out, err = run("evaluate", "run", "faces", "--far", "0.1", "--report", "out.html")
    assert (status, err) == (0, "")
    assert "42 of 6 identities, 8 columns of float32, from faces by run" in out
    assert "Euclidean distance" in out
    paths = [Path(f"faces/p{n // 7 + 1}/{n % 7 + 1}.png") for n in range(42)]
    report = siamcuda.verification.evaluate(
        siamese.embed_images(paths), torch.arange(42) // 7, metric="euclidean"
    )
    assert siamese.threshold is not None
    far, frr = report.rates(siamese.threshold)
    assert f"{siamese.threshold:.6g}: FAR {100 * far:.3g} %, FRR {100 * frr:.3g} %" in out
    page = Path("out.html").read_text()
    assert "Verification of faces by run" in page
    assert page.count("<img ") > 10


def test_evaluate_a_run_of_codes(run: Run) -> None:
    siamese = untrained("codes", "hamming", threshold=3.0)
    status, out, _ = run("evaluate", "codes", "faces")
    assert status == 0
    z = siamese.embed_images(sorted(Path("faces").rglob("*.png")))
    i, j = torch.triu_indices(42, 42, 1)
    impostor = i // 7 != j // 7
    far = (siamcuda.hamming(z[i], z[j])[impostor] <= 3).double().mean()
    assert f"3: FAR {100 * far:.3g} %" in out


def test_evaluate_prints_what_the_recipe_measured(run: Run) -> None:
    status, out, err = run("evaluate", "run")
    assert (status, err) == (0, "")
    assert "Chopra et al. 2005" in out
    refused(run("evaluate", "run", "--report", "out.html"), "report: needs images")
    shutil.copytree("run", "copy")
    Path("copy/metrics.json").write_text("{}")
    refused(run("evaluate", "copy"), "run: copy/metrics.json lacks ")
    Path("copy/metrics.json").write_text("{")
    refused(run("evaluate", "copy"), "cannot read copy/metrics.json")
    Path("copy/metrics.json").unlink()
    refused(run("evaluate", "copy"), "run: no training was finished in copy")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "none"], "data: no such folder: none"),
        (["run", "bare"], "data: bare has no sub-folders; one sub-folder an identity"),
        (["run", "alone"], "images: alone has the identity p1 alone; two are needed"),
        (["run", "broken"], "cannot read the image broken/b/1.png: not an image"),
        (["run", "strangers"], "labels: no genuine pair"),
        (["run", "faces", "--metric", "cosine"], "metric: run compares by euclidean"),
        (["run", "faces", "--images", "faces"], "images: is for files of embeddings"),
        (["run", "faces", "--report", "faces/p1/1.png"], "report: faces/p1/1.png is one of the"),
        (["run", "faces", "--report", "bare"], "report: bare is a folder, a file is expected"),
        (["l1", "faces"], "run: it compares by L1 distance, which evaluate does not have"),
        (["words", "faces"], "run: it takes texts; embed them, and evaluate files"),
        ([], "places: EMBEDDINGS LABELS or RUN [IMAGES] is expected, got 0"),
    ],
)
def test_evaluate_on_a_run_says_what_is_wrong(run: Run, arguments: list[str], says: str) -> None:
    untrained("l1", "l1")
    untrained("words", "cosine", text=True)
    for name in ("bare", "alone/p1", "broken/a", "broken/b", "strangers/a", "strangers/b"):
        Path(name).mkdir(parents=True)
    for name in ("alone/p1", "broken/a", "strangers/a", "strangers/b"):
        shutil.copy("faces/p1/1.png", name)
    Path("broken/b/1.png").write_text("no image")
    before = listed()
    refused(run("evaluate", *arguments), says)
    assert listed() == before


# export


def test_export_embeds_as_the_run_does(run: Run) -> None:
    siamese = Siamese.load(Path("run"))
    status, out, err = run("export", "run", "-o", "encoder.pt2")
    assert (status, err) == (0, "")
    size = Path("encoder.pt2").stat().st_size
    assert out.startswith(f"encoder.pt2: {size:,} bytes\nlargest difference from the encoder: ")
    assert "its mirror image's, as in the run" in out
    module = torch.export.load("encoder.pt2").module()
    inputs = siamese.views(siamese.images([Path("faces/p1/1.png"), Path("faces/p2/1.png")]).load(
        torch.arange(2)
    ))  # fmt: skip
    torch.testing.assert_close(module(inputs), siamese.encode(inputs).clone())


def test_export_to_onnx(run: Run) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    untrained("codes", "hamming")
    status, out, _ = run("export", "codes", "-o", "encoder.onnx")
    assert status == 0
    assert "it gives +1 or -1 a bit" in out
    assert Path("encoder.onnx").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "-o", "encoder.pt"], "out: encoder.pt must end in .pt2 or .onnx"),
        (["run", "-o", "no/encoder.pt2"], "out: cannot write to the folder no"),
        (["run", "-o", "folder.pt2"], "out: folder.pt2 is a folder, a file is expected"),
        (["none", "-o", "encoder.pt2"], "run: no such folder: none"),
    ],
)
def test_export_says_what_is_wrong(run: Run, arguments: list[str], says: str) -> None:
    Path("folder.pt2").mkdir()
    before = listed()
    refused(run("export", *arguments), says)
    assert listed() == before


def test_a_device_that_is_not_there_is_refused(run: Run) -> None:
    refused(run("embed", "run", "faces/p1", "-o", "z.npy", "--device", "gpu"), "device: 'gpu'")
    refused(run("evaluate", "run", "faces", "--device", "meta"), "device: 'meta': cpu, cuda")
    if not torch.cuda.is_available():
        command = ("search", "run", "faces/p1/1.png", "faces", "--device", "cuda")
        refused(run(*command), "device: 'cuda': torch finds no GPU")
    assert not Path("z.npy").exists()


@pytest.mark.parametrize("command", ["embed", "search", "evaluate"])
def test_help_says_what_device_is(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert re.search(r"--device STR where (the|a run's) encoder runs: cpu, cuda", words)
