"""The chopra-faces recipe end to end on tiny made-up faces."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for _extra in ("PIL", "safetensors", "tqdm", "matplotlib"):
    pytest.importorskip(_extra)

from PIL import Image
from safetensors.torch import load_file, save

from siamcuda.train import trainer
from siamcuda.train.augment import Augmentation
from siamcuda.train.config import TrainConfig
from siamcuda.train.data import load_faces
from siamcuda.train.encoders import FACES, EncoderConfig, build_encoder
from siamcuda.train.errors import InputError
from siamcuda.train.recipes import chopra_faces
from siamcuda.train.recipes.chopra_faces import FARS, ChopraFaces, make_splits
from siamcuda.train.siamese import Siamese
from siamcuda.train.storage import load_tensors, load_weights

FILES = {
    "config.json", "checkpoint.safetensors", "calibrator.json", "history.json",
    "trials.safetensors", "training.png", "histogram.png", "roc.png", "surface.png",
    "metrics.json", "tensorboard",
}  # fmt: skip
TINY = TrainConfig(epochs=3, device="cpu")


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people x seven noisy pictures of a blob each."""
    folder = tmp_path_factory.mktemp("faces")
    random = np.random.default_rng(0)
    for person in range(1, 7):
        (folder / f"p{person}").mkdir()
        blob = random.random((28, 23)).repeat(2, 0).repeat(2, 1) * 200
        for number in range(1, 8):
            noisy = (blob + random.random(blob.shape) * 50).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"p{person}" / f"{number}.pgm")
    return folder


@pytest.fixture
def options(faces: Path, tmp_path: Path) -> ChopraFaces:
    return ChopraFaces(
        out=tmp_path / "run", data=faces, test_people=2, encoder=EncoderConfig(embedding=8),
        pictures_per_person=2, train=TINY,
    )  # fmt: skip


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics without the time that they took."""
    return {key: value for key, value in metrics.items() if not key.startswith("seconds")}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_schema(metrics: dict[str, Any]) -> None:
    for protocol in ("pair", "enrolled"):
        figures = metrics[protocol]
        rates = [figures["eer"], figures["auc"], *(figures["frr_at_far"][far] for far in FARS)]
        assert all(math.isfinite(rate) and 0 <= rate <= 1 for rate in rates)
    assert metrics["loss"] == "siamcuda.chopra_loss(q=4, energy='l2')"
    assert (metrics["people_train"], metrics["people_test"]) == (4, 2)
    assert metrics["seconds"] > 0


def test_a_run_leaves_every_file_and_the_schema(options: ChopraFaces) -> None:
    metrics = chopra_faces.run(options)
    assert {path.name for path in options.out.iterdir()} == FILES
    assert json.loads((options.out / "metrics.json").read_text()) == metrics
    check_schema(metrics)
    assert metrics["splits"] == 1
    assert metrics["names_test"] == ["p5", "p6"]
    assert (metrics["pair"]["genuine"], metrics["pair"]["impostor"]) == (42, 49)
    assert (metrics["enrolled"]["genuine"], metrics["enrolled"]["impostor"]) == (4, 4)
    for picture in options.out.glob("*.png"):
        with Image.open(picture) as image:
            image.load()
            assert min(image.size) > 300
    siamese = Siamese.load(options.out)
    assert (siamese.far, siamese.stored, siamese.mirror) == (0.01, (56, 46), True)
    person = options.data / "p1" if options.data else Path()
    z = siamese.embed_images([person / "1.pgm", person / "2.pgm"])
    assert z.shape == (2, 8)
    [found] = siamese.compare(z[:1], z[1:])
    assert siamese.threshold is not None
    assert found.same == (found.distance <= siamese.threshold)
    assert found.similarity is not None
    assert 0 <= found.similarity <= 1
    assert "siamcuda, enrolled" in chopra_faces.table(metrics)


def test_two_runs_have_the_same_bits(options: ChopraFaces, tmp_path: Path) -> None:
    first = chopra_faces.run(options)
    second = chopra_faces.run(replace(options, out=tmp_path / "again"))
    assert numbers(first) == numbers(second)
    for name in ("checkpoint.safetensors", "trials.safetensors", "training.png", "roc.png"):
        assert (options.out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    other = replace(options, out=tmp_path / "other", train=replace(TINY, seed=1))
    chopra_faces.run(other)
    name = "checkpoint.safetensors"
    assert (options.out / name).read_bytes() != (other.out / name).read_bytes()


@pytest.mark.parametrize("encoder", ["small", "chopra2005"])
def test_an_interrupted_run_ends_with_the_same_bits(
    options: ChopraFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Any
) -> None:
    options = replace(options, encoder=EncoderConfig(encoder, embedding=8))
    whole = chopra_faces.run(replace(options, out=tmp_path / "whole"))
    interrupt_after(monkeypatch, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        chopra_faces.run(options)
    assert {path.name for path in options.out.iterdir()} == {
        "config.json",
        "tensorboard",
        "training_state.safetensors",
    }
    trained = interrupt_after(monkeypatch, epochs=99)
    assert numbers(chopra_faces.run(options)) == numbers(whole)
    assert len(trained) == 1
    name = "checkpoint.safetensors"
    assert (options.out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def interrupt_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> list[int]:
    """Press Ctrl-C before epoch ``epochs + 1``; the list returned fills with the epochs done."""
    done: list[int] = []

    def counting(run: Any, interrupted: Any) -> None:
        if len(done) == epochs:
            raise KeyboardInterrupt
        ORIGINAL_EPOCH(run, interrupted)
        done.append(len(run.position.history))

    monkeypatch.setattr(trainer._Run, "_epoch", counting)
    return done


ORIGINAL_EPOCH = trainer._Run._epoch


def test_several_splits_skip_what_is_finished(
    options: ChopraFaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(options, splits=3, train=replace(TINY, epochs=2))
    interrupt_after(monkeypatch, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        chopra_faces.run(options)
    finished = [path.parent.name for path in options.out.glob("split-*/metrics.json")]
    assert sorted(finished) == ["split-01", "split-02"]
    trained = interrupt_after(monkeypatch, epochs=99)
    metrics = chopra_faces.run(options)
    assert len(trained) == 2
    check_schema(metrics)
    assert metrics["splits"] == len(metrics["per_split"]) == 3
    eers = [split["enrolled"]["eer"] for split in metrics["per_split"]]
    assert metrics["enrolled"]["eer"] == pytest.approx(np.mean(eers))
    assert metrics["spread"]["enrolled"]["eer"] == pytest.approx(np.std(eers, ddof=1))
    assert len({tuple(split["names_test"]) for split in metrics["per_split"]}) > 1
    assert {"metrics.json", "roc.png", "histogram.png"} <= {p.name for p in options.out.iterdir()}
    assert "±" in chopra_faces.table(metrics)
    trained.clear()
    assert chopra_faces.run(options) == metrics
    assert not trained


def test_validation_never_looks_at_the_test_people(options: ChopraFaces, faces: Path) -> None:
    known = load_faces(faces)
    folds = make_splits(replace(options, splits=2, validate=True), known)
    assert sorted(name for fold in folds for name in fold.people_test) == ["p1", "p2", "p3", "p4"]
    for fold in folds:
        assert set(fold.people_train) | set(fold.people_test) == {"p1", "p2", "p3", "p4"}
        assert not set(fold.people_train) & set(fold.people_test)
    with pytest.raises(InputError, match="splits: 3 folds are too many for 4 people"):
        make_splits(replace(options, splits=3, validate=True), known)
    with pytest.raises(InputError, match="validate needs at least 2 folds"):
        chopra_faces.run(replace(options, validate=True))


def test_a_folder_with_other_settings_is_left_alone(options: ChopraFaces) -> None:
    chopra_faces.run(options)
    before = contents(options.out)
    other = replace(options, train=replace(TINY, epochs=2))
    with pytest.raises(InputError, match=r"out: .*other settings \(train\).*--fresh"):
        chopra_faces.run(other)
    assert contents(options.out) == before
    assert chopra_faces.run(replace(other, fresh=True))["epochs"] == 2


def test_a_broken_state_is_named_and_nothing_is_trained(
    options: ChopraFaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        chopra_faces.run(options)
    state = options.out / "training_state.safetensors"
    good = state.read_bytes()
    trained = interrupt_after(monkeypatch, epochs=99)
    tensors, metadata = load_tensors(state)
    less = {name: t for name, t in tensors.items() if name != "optimizer.3.exp_avg"}
    for broken in (
        good[: len(good) // 2],
        b"",
        b"\xff" * 64,
        save(tensors),
        save(tensors, {"run": "{"}),
        save(less, metadata),
    ):
        state.write_bytes(broken)
        with pytest.raises(InputError, match=r"checkpoint: .*training_state.*broken"):
            chopra_faces.run(options)
    assert not trained


def test_weights_that_do_not_fit_change_nothing(options: ChopraFaces) -> None:
    chopra_faces.run(options)
    path = options.out / "checkpoint.safetensors"
    encoder = build_encoder(EncoderConfig("small", 16), FACES, seed=0)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(InputError, match=r"head.weight is \(8, .*expected \(16, "):
        load_weights(encoder, load_file(path), path)
    with pytest.raises(InputError, match="does not fit the encoder"):
        load_weights(
            build_encoder(EncoderConfig("chopra2005", 8), FACES, seed=0), load_file(path), path
        )
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_an_unwritable_folder_is_found_before_any_work(
    options: ChopraFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = interrupt_after(monkeypatch, epochs=99)
    blocker = tmp_path / "file"
    blocker.write_text("here first")
    for out in (blocker, blocker / "below"):
        with pytest.raises(InputError, match="out: cannot write"):
            chopra_faces.run(replace(options, out=out))
    assert blocker.read_text() == "here first"
    assert not trained


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": math.nan}, "q: must be finite and > 0, got nan"),
        ({"q": 0.0}, "q: must be finite and > 0"),
        ({"learning_rate": -1.0}, "learning_rate: must be finite"),
        ({"epochs": 0}, "epochs: must be at least 1"),
        ({"hard": 1.5}, r"hard: must lie in \[0, 1\]"),
        ({"name": "resnet"}, "encoder: 'resnet' is none of"),
        ({"energy": "l3"}, "energy: 'l3'"),
        ({"augment": Augmentation(rotate=math.inf)}, "rotate: must be finite"),
        ({"augment": Augmentation(flip=2.0)}, "flip: must lie"),
    ],
)
def test_settings_that_cannot_work_leave_no_folder(
    options: ChopraFaces, change: dict[str, Any], message: str
) -> None:
    for place in ("train", "objective", "encoder"):
        if set(change) <= {field.name for field in fields(getattr(options, place))}:
            change = {place: replace(getattr(options, place), **change)}
    with pytest.raises(InputError, match=message):
        chopra_faces.run(replace(options, **change))
    assert not options.out.exists()


def test_too_few_people_or_pictures(options: ChopraFaces, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data: 6 people are too few to test on 5"):
        chopra_faces.run(replace(options, test_people=5))
    few = tmp_path / "few"
    for person in range(6):
        (few / f"p{person}").mkdir(parents=True)
        for number in range(5):
            Image.new("L", (46, 56), person * 9 + number).save(few / f"p{person}/{number}.png")
    with pytest.raises(InputError, match="more than 5 pictures, one has 5"):
        chopra_faces.run(replace(options, data=few))
    assert not options.out.exists()


def test_a_diverging_run_says_so(options: ChopraFaces) -> None:
    wild = TrainConfig(
        epochs=2, optimizer="sgd", learning_rate=1e30, momentum=0.0, warm_up=0.0, device="cpu"
    )
    with pytest.raises(InputError, match=r"the loss is nan in epoch [12]: lower learning_rate"):
        chopra_faces.run(replace(options, train=wild, people_per_batch=2))
    assert "metrics.json" not in {path.name for path in options.out.iterdir()}
