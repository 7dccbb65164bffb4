"""Recipes on faces end to end on tiny made-up ones: who is tested, files, interruptions."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for _extra in ("PIL", "accelerate", "matplotlib", "safetensors", "tensorboard", "tqdm"):
    pytest.importorskip(_extra)

from PIL import Image

from siamcuda import reference, squared_l2
from siamcuda.report import plots
from siamcuda.train import recipes, trainer
from siamcuda.train.augment import Augmentation
from siamcuda.train.config import TrainConfig
from siamcuda.train.data import ImageArray
from siamcuda.train.encoders import DifferenceClassifier, EncoderConfig
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import ComparedPairs, HardPairs
from siamcuda.train.protocols import every_pair, pair_trials
from siamcuda.train.recipes import _faces, deepface_verify, facenet_triplet
from siamcuda.train.recipes.deepface_verify import DeepFaceVerify
from siamcuda.train.recipes.facenet_triplet import FaceNetTriplet
from siamcuda.train.siamese import Siamese
from siamcuda.train.storage import load_tensors

PEOPLE = ("p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10")
OF_A_RUN = {
    "config.json", "checkpoint.safetensors", "calibrator.json", "history.json", "metrics.json",
    "tensorboard", "training.png",
}  # fmt: skip
PICTURES = {"roc.png", "histogram.png", "errors.png"}


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten people x five noisy pictures of a blob each."""
    folder = tmp_path_factory.mktemp("faces")
    random = np.random.default_rng(0)
    for person in PEOPLE:
        (folder / person).mkdir()
        blob = random.random((7, 6)).repeat(8, 0).repeat(8, 1)[:, :46] * 180
        for number in range(1, 6):
            noisy = (blob + random.random(blob.shape) * 70).astype(np.uint8)
            Image.fromarray(noisy).save(folder / person / f"{number}.png")
    return folder


def made(kind: type[Any], faces: Path, out: Path) -> Any:
    """Options of seconds."""
    return kind(
        out=out, data=faces, test_people=3, validation_people=2, pictures_per_person=3,
        encoder=EncoderConfig("fast", embedding=8, options={"width": 4}),
        augment=Augmentation(flip=0.0, erase=0.0),
        train=TrainConfig(epochs=4, learning_rate=5e-3, device="cpu"),
    )  # fmt: skip


def check_way(way: dict[str, Any]) -> None:
    assert (way["genuine"], way["impostor"]) == (30, 75)
    assert 0 <= way["eer"] < 0.3  # blobs are easy; chance is 0.5
    assert 0.7 < way["auc"] <= 1
    assert 0 <= way["tar_at_far"]["0.01"] <= 1


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_deepface_compares_in_two_ways(faces: Path, tmp_path: Path) -> None:
    options = made(DeepFaceVerify, faces, tmp_path / "run")
    metrics = deepface_verify.run(options)
    assert files(options.out) == OF_A_RUN | PICTURES | {"head.safetensors"}
    assert json.loads((options.out / "metrics.json").read_text()) == metrics
    assert metrics["names_test"] == ["p8", "p9", "p10"]
    assert (metrics["people_train"], metrics["people_validation"]) == (5, 2)
    check_way(metrics["distance"])
    check_way(metrics["head"])
    assert (metrics["pixels"]["genuine"], metrics["pixels"]["impostor"]) == (30, 75)
    assert "pixels, nothing learned" in deepface_verify.table(metrics)
    low, high = metrics["distance"]["eer_interval"]
    assert 0 <= low <= metrics["distance"]["eer"] + 0.02
    assert low <= high <= 1
    assert "squared L2 distance" in deepface_verify.table(metrics)
    assert "75 impostor pairs of 3 people never seen" in deepface_verify.table(metrics)
    assert f"{100 * metrics['head']['eer']:.1f} % by the head" in deepface_verify.headline(metrics)
    assert deepface_verify.run(options) == metrics  # a finished run is kept

    trained = Siamese.load(options.out)
    assert (trained.distance, trained.far, trained.stored) == ("sqeuclidean", 0.01, (56, 46))
    tensors, _ = load_tensors(options.out / "head.safetensors")
    head = deepface_verify.make_head(8, 2.0)
    begun = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.load_state_dict(tensors)
    assert not torch.equal(head.layers[0].weight, begun["layers.0.weight"])  # it learned
    people = _faces.split_people(options)
    embeddings = trained.embed(people.unseen)
    trials = every_pair(
        embeddings, people.unseen.labels, lambda a, b: deepface_verify.score(head, a, b)
    )
    closer = (trials.genuine[:, None] < trials.impostor).double().mean()
    assert closer == pytest.approx(metrics["head"]["auc"], abs=1e-3)  # ties count a half there


def test_the_stored_threshold_is_that_of_the_validation_people(faces: Path, tmp_path: Path) -> None:
    options = made(DeepFaceVerify, faces, tmp_path / "run")
    metrics = deepface_verify.run(options)
    people, trained = _faces.split_people(options), Siamese.load(options.out)
    assert trained.threshold is not None
    kept = every_pair(trained.embed(people.kept), people.kept.labels, squared_l2)
    assert (kept.impostor <= trained.threshold).double().mean() <= 0.01
    unseen = every_pair(trained.embed(people.unseen), people.unseen.labels, squared_l2)
    assert metrics["distance"]["at_validation_threshold"] == {
        "far": pytest.approx(float((unseen.impostor <= trained.threshold).double().mean())),
        "frr": pytest.approx(float((unseen.genuine > trained.threshold).double().mean())),
    }


def test_facenet_keeps_both_ways_to_mine(faces: Path, tmp_path: Path) -> None:
    options = made(FaceNetTriplet, faces, tmp_path / "run")
    metrics = facenet_triplet.run(options)
    assert files(options.out) == PICTURES | {
        "config.json", "metrics.json", "mining.png", "semihard", "all",
    }  # fmt: skip
    assert [part.name for part in recipes.parts(options.out)] == ["all", "semihard"]
    for part in ("semihard", "all"):
        assert files(options.out / part) == OF_A_RUN
        check_way(metrics[part])
        assert Siamese.load(options.out / part).distance == "sqeuclidean"
    assert metrics["epochs"] == 8
    assert "batch-all" in facenet_triplet.table(metrics)
    weights = [
        (options.out / part / "checkpoint.safetensors").read_bytes() for part in ("semihard", "all")
    ]
    assert weights[0] != weights[1]
    assert facenet_triplet.run(options) == metrics
    wider = replace(options, margin=0.4, train=replace(options.train, epochs=1), fresh=True)
    assert facenet_triplet.run(wider)["epochs"] == 2
    for part in (options.out, options.out / "all", options.out / "semihard"):
        assert json.loads((part / "config.json").read_text())["margin"] == 0.4


def test_facenet_goes_on_with_the_part_that_was_interrupted(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = made(FaceNetTriplet, faces, tmp_path / "run")
    facenet_triplet.run(replace(options, out=tmp_path / "whole"))
    epoch, left = trainer._Run._epoch, [6]

    def counting(run: Any, interrupted: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        epoch(run, interrupted)

    monkeypatch.setattr(trainer._Run, "_epoch", counting)
    with pytest.raises(KeyboardInterrupt):
        facenet_triplet.run(options)
    assert "metrics.json" in files(options.out / "semihard")
    assert "metrics.json" not in files(options.out / "all") | files(options.out)
    with pytest.raises(InputError, match=r"other settings \(margin\)"):
        facenet_triplet.run(replace(options, margin=0.3))
    left[0] = 2  # what is left of the second part
    facenet_triplet.run(options)
    for part in ("semihard", "all"):
        name = f"{part}/checkpoint.safetensors"
        assert (options.out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_every_person_is_in_one_part_alone(faces: Path) -> None:
    options = made(FaceNetTriplet, faces, Path())
    seen = []
    for fold in range(3):
        people = _faces.split_people(replace(options, fold=fold))
        assert people.unseen.names == ("p8", "p9", "p10")
        assert set(people.known.names) | set(people.kept.names) == set(PEOPLE[:7])
        assert not set(people.known.names) & set(people.kept.names)
        seen += people.kept.names
    assert seen == ["p6", "p7", "p4", "p5", "p2", "p3"]
    people = _faces.split_people(replace(options, validate=True, fold=1))
    assert people.unseen.names == people.kept.names == ("p4", "p5")
    assert not set(people.known.names) & {"p8", "p9", "p10"}
    with pytest.raises(InputError, match=r"10 people are too few .*fold 3"):
        _faces.split_people(replace(options, fold=3))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (DeepFaceVerify, {"test_people": 1}, "test_people: must be at least 2"),
        (DeepFaceVerify, {"test_people": 8}, "data: 10 people are too few to test on 8"),
        (DeepFaceVerify, {"objective": HardPairs(margin=math.nan)}, "margin: must be finite"),
        (FaceNetTriplet, {"margin": -1.0}, "margin: must be finite and >= 0"),
        (FaceNetTriplet, {"encoder": EncoderConfig("vgg")}, "encoder: 'vgg' is none of"),
        (FaceNetTriplet, {"validation_people": 1}, "validation_people: must be at least 2"),
    ],
)
def test_settings_that_cannot_work_leave_no_folder(
    kind: Any, change: dict[str, Any], message: str, faces: Path, tmp_path: Path
) -> None:
    run = {DeepFaceVerify: deepface_verify.run, FaceNetTriplet: facenet_triplet.run}[kind]
    options = made(kind, faces, tmp_path / "run")
    with pytest.raises(InputError, match=message):
        run(replace(options, **change))
    lonely = tmp_path / "lonely"
    for number in range(8):
        (lonely / f"p{number}").mkdir(parents=True)
        Image.new("L", (46, 56), number).save(lonely / f"p{number}/1.png")
    with pytest.raises(InputError, match="data: each person needs 2 pictures or more, one has 1"):
        run(replace(options, data=lonely))
    assert not options.out.exists()


def test_pixels_are_compared_whatever_the_light(faces: Path) -> None:
    """A darker, flatter copy of a picture has the same standardised pixels."""
    people = _faces.split_people(made(FaceNetTriplet, faces, Path()))
    images = people.unseen.images[[0, 5, 10]]
    both = ImageArray(
        torch.cat([images, images // 2 + 40]), torch.arange(3).repeat(2), people.unseen.names
    )
    report = _faces.compare_pixels(both)
    assert (report.eer, report.auc) == (0.0, 1.0)


def test_a_head_begins_as_the_l1_distance() -> None:
    x1, x2 = torch.randn(7, 5), torch.randn(7, 5)
    found = deepface_verify.score(deepface_verify.make_head(5, 0.0), x1, x2)
    torch.testing.assert_close(found, (x1 - x2).abs().sum(1) / math.sqrt(5))


def test_a_head_begins_undecided_at_half_the_margin() -> None:
    generator = torch.Generator().manual_seed(0)
    apart = torch.nn.functional.normalize(torch.randn(2000, 128, generator=generator), dim=1)
    found = deepface_verify.score(deepface_verify.make_head(128, 3.0), 1.5 * apart, 0 * apart)
    assert float(found.mean()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("joint", [False, True])
def test_a_head_reaches_the_encoder_where_it_is_asked_to(joint: bool) -> None:
    torch.manual_seed(0)
    labels = torch.arange(4).repeat_interleave(3)
    points = torch.randn(12, 6)
    head, pairs = DifferenceClassifier(6), HardPairs(loss="contrastive", hard=1.0)

    def gradient(objective: Any) -> torch.Tensor:
        x = points.clone().requires_grad_()
        objective(x, labels, torch.Generator(), True).loss.backward()
        assert x.grad is not None
        return x.grad

    alone, both = gradient(pairs), gradient(ComparedPairs(head, pairs, joint))
    assert torch.equal(alone, both) != joint
    assert bool((head.layers[0].weight.grad != 0).any())


def test_every_pair_is_compared_once() -> None:
    x, labels = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 1, 2])
    trials = every_pair(x, labels, squared_l2)
    assert (len(trials.genuine), len(trials.impostor)) == (4, 11)
    torch.testing.assert_close(trials.genuine.sqrt(), pair_trials(x, labels).genuine)


def test_the_surface_falls_towards_the_side_of_the_condition() -> None:
    """What its picture says of the line: the loss is smaller on the side of the arrows."""
    q, margin = 3.0, 0.3

    def loss(genuine: torch.Tensor, impostor: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros(len(genuine), 1)
        return sum(
            reference.chopra_loss(
                energy[:, None], zero, torch.full((len(zero),), y), q=q, reduction="none"
            )
            for y, energy in enumerate((genuine, impostor))
        )

    on = torch.linspace(0.1, q - margin - 0.1, 50)
    better = loss(on - 0.01, on + margin + 0.01)
    assert bool((better < loss(on, on + margin)).all())
    picture = plots.loss_surface(q)
    assert picture == plots.loss_surface(q)
    assert picture != plots.loss_surface(q, margin=1.0)
    assert len(picture) < 250_000


def test_by_epoch_draws_what_it_is_given() -> None:
    panels = {"loss": {"one": [3.0, 2.0], "two": [4.0]}, "eer": {"one": [0.5, math.nan], "two": []}}
    assert plots.by_epoch(panels, "Two") == plots.by_epoch(panels, "Two")
    assert plots.by_epoch(panels, "Two") != plots.by_epoch({"loss": panels["loss"]}, "Two")
