"""The signature recipe end to end on curves drawn here; how well it does on ink is not tested."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

for _extra in ("PIL", "accelerate", "matplotlib", "safetensors", "tensorboard", "tqdm"):
    pytest.importorskip(_extra)

from PIL import Image

from bench import recipes as bench
from siamcuda.train import recipes
from siamcuda.train.config import TrainConfig
from siamcuda.train.data import load_signatures
from siamcuda.train.encoders import EncoderConfig
from siamcuda.train.errors import InputError
from siamcuda.train.recipes import signature
from siamcuda.train.recipes._pretend import draw_signatures
from siamcuda.train.recipes.signature import Signature, SignatureSampler
from siamcuda.train.siamese import Siamese

WRITERS, EACH = 7, 4


@pytest.fixture(scope="session")
def ink(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ink")
    draw_signatures(folder, WRITERS, EACH)
    return folder


@pytest.fixture
def options(ink: Path, tmp_path: Path) -> Signature:
    return Signature(
        out=tmp_path / "run", data=ink, test_writers=2, validation_writers=2, pairs_per_batch=12,
        encoder=EncoderConfig("fast", embedding=8, options={"width": 4}), threads=1,
        train=TrainConfig(epochs=3, device="cpu"),
    )  # fmt: skip


def test_a_run_leaves_every_file(options: Signature, ink: Path) -> None:
    metrics = signature.run(options)
    assert {path.name for path in options.out.iterdir()} == {
        "config.json", "checkpoint.safetensors", "calibrator.json", "history.json", "metrics.json",
        "tensorboard", "training.png", "roc.png", "histogram.png", "errors.png",
    }  # fmt: skip
    assert json.loads((options.out / "metrics.json").read_text()) == metrics
    assert [metrics[f"writers_{part}"] for part in ("train", "validation", "test")] == [3, 2, 2]
    assert (metrics["skilled"]["genuine"], metrics["skilled"]["impostor"]) == (12, 32)
    assert (metrics["random"]["genuine"], metrics["random"]["impostor"]) == (12, 16)
    assert 0 <= metrics["skilled"]["eer"] <= 1
    assert metrics["random"]["eer"] < 0.3  # two writers' curves are far apart; chance is 0.5
    assert "16" in signature.table(metrics)
    assert "drawn by a program" not in signature.table(metrics)
    assert "drawn by a program" in signature.table({**metrics, "drawn": True})
    trained = Siamese.load(options.out)
    assert (trained.distance, trained.spec.inputs) == ("euclidean", signature.INK)
    paths = [ink / "writer-7/genuine/1.png", ink / "writer-7/forged/1.png"]
    assert trained.embed_images(paths).shape == (2, 8)
    assert signature.run(options) == metrics  # a finished run is kept
    with pytest.raises(InputError, match=r"other settings \(strangers\)"):
        signature.run(replace(options, strangers=0.5))


def test_stored_errors_are_those_at_the_validation_writers_threshold(options: Signature) -> None:
    metrics = signature.run(options)
    _, kept, unseen = signature._split(options, options.data)  # type: ignore[arg-type]
    trained = Siamese.load(options.out)
    limit = trained.threshold
    assert limit is not None
    before, after = (
        signature.compare_all(trained, signature.Part(part, part.in_memory()))
        for part in (kept, unseen)
    )
    assert before.report("skilled").eer_threshold == limit
    stored = metrics["at_stored_threshold"]
    assert stored["frr"] == pytest.approx(float((after.genuine > limit).double().mean()))
    for kind, distances in after.impostor.items():
        assert stored["far"][kind] == pytest.approx(float((distances <= limit).double().mean()))


def test_writers_are_in_one_part_alone(options: Signature, ink: Path) -> None:
    names = tuple(f"writer-{number}" for number in range(1, 8))
    known, kept, unseen = signature._split(options, ink)
    assert (known.writers, kept.writers, unseen.writers) == (names[:3], names[3:5], names[5:])
    known, kept, unseen = signature._split(replace(options, validate=True), ink)
    assert (known.writers, kept.writers, unseen.writers) == (names[:3], names[3:5], names[3:5])


def test_fingers_without_forgeries_have_random_pairs_alone(
    options: Signature, tmp_path: Path
) -> None:
    draw_signatures(tmp_path / "fingers", WRITERS, EACH, forged=False)
    metrics = signature.run(replace(options, data=tmp_path / "fingers"))
    assert "skilled" not in metrics
    assert metrics["random"]["impostor"] == 16
    assert "forgeries" not in signature.headline(metrics)
    assert "EER" in signature.table(metrics)


@pytest.mark.parametrize(("strangers", "of_two"), [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_batches_hold_the_pairs_that_are_asked_for(
    ink: Path, strangers: float, of_two: int
) -> None:
    signatures = load_signatures(ink, (32, 64))
    sampler = SignatureSampler(signatures, 17, strangers, seed=3)
    assert len(sampler) == len(sampler.epoch(0)) == round(len(signatures) / 34)
    writers = [name.removesuffix(" (forged)") for name in signatures.names]
    for rows in sampler.epoch(2):
        left, right = rows.chunk(2)
        same = [
            writers[a] == writers[b]
            for a, b in zip(
                signatures.labels[left].tolist(), signatures.labels[right].tolist(), strict=True
            )
        ]
        assert not signatures.forged[left].any()
        assert int(signatures.forged[right].sum()) == 8 - of_two
        assert len(same) - sum(same) == of_two
        assert int((signatures.labels[left] == signatures.labels[right]).sum()) == 9
        assert not (left == right).any()
    one, again, other = (torch.cat(sampler.epoch(epoch)) for epoch in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_all_pairs_are_of_the_kind_that_they_are_counted_as(ink: Path) -> None:
    """An encoder that gives (writer, forged) away tells every kind by its distance."""
    files = load_signatures(ink, (8, 16))

    class Known(Siamese):
        def embed(self, examples: Any, **_: Any) -> torch.Tensor:
            names = [examples.names[label] for label in examples.labels.tolist()]
            number = [10.0 * int(name.split()[0].removeprefix("writer-")) for name in names]
            forged = [float("forged" in name) for name in names]
            return torch.tensor([number, forged]).T

    trials = signature.compare_all(
        Known(None, torch.nn.Identity()),  # type: ignore[arg-type]
        signature.Part(files, files.in_memory()),
    )
    assert trials.genuine.tolist() == [0.0] * (WRITERS * 6)
    assert trials.impostor["skilled"].tolist() == [1.0] * (WRITERS * EACH * EACH)
    assert len(trials.impostor["random"]) == WRITERS * (WRITERS - 1) // 2 * EACH * EACH
    assert float(trials.impostor["random"].min()) == 10.0
    assert trials.hardest == "skilled"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, r"data: signatures are to be given.*full_org/original_WRITER_NUMBER.png"),
        ({"drawn": True}, "drawn: signatures are either drawn or given"),
        ({"strangers": 1.5}, r"strangers: must lie in \[0, 1\]"),
        ({"test_writers": 1}, "test_writers: must be at least 2"),
        ({"test_writers": 4}, "data: 7 writers are too few to test on 4 of them"),
        ({"data": Path("nowhere")}, "data: no such folder: nowhere"),
    ],
)
def test_what_cannot_work_leaves_no_folder(
    options: Signature, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        signature.run(replace(options, **change))
    assert not options.out.exists()


def test_writers_without_a_genuine_pair_are_named(options: Signature, tmp_path: Path) -> None:
    few = tmp_path / "few"
    draw_signatures(few, WRITERS, EACH)
    for writer in (6, 7):
        for number in range(2, EACH + 1):
            (few / f"writer-{writer}/genuine/{number}.png").unlink()
    with pytest.raises(InputError, match="writer-6, writer-7 has two genuine images"):
        signature.run(replace(options, data=few))
    (few / "writer-1/genuine/1.png").write_bytes(b"no image")
    shutil.rmtree(few / "writer-6")
    with pytest.raises(InputError, match=r"cannot read the image .*writer-1/genuine/1\.png"):
        signature.run(replace(options, data=few))
    assert not options.out.exists()


def test_pretend_signatures_are_alike_within_a_writer(ink: Path) -> None:
    def pixels(name: str) -> np.ndarray:
        with Image.open(ink / name) as image:
            return np.asarray(image).astype(float)

    first = pixels("writer-1/genuine/1.png")
    own = np.abs(first - pixels("writer-1/genuine/2.png")).mean()
    other = np.abs(first - pixels("writer-2/genuine/1.png")).mean()
    assert 0 < own < other


def test_recipes_on_given_data_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "KEPT", tmp_path)
    recipe = recipes.load("signature")
    assert recipe.given
    bench.keep("signature", recipe, fresh=False)
    assert "no data here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    only = SimpleNamespace(**{**vars(recipes), "summaries": lambda: {"signature": "What it is."}})
    monkeypatch.setattr(bench, "recipes", only)
    assert "| signatures, a folder that you give | no data here |" in bench.page()
