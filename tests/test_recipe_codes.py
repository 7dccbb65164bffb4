"""The recipes hadsell-mnist and hdml-codes on data made here, and what they draw."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

for _extra in ("PIL", "accelerate", "matplotlib", "safetensors", "tensorboard", "tqdm"):
    pytest.importorskip(_extra)

from PIL import Image
from training import write_digits

import siamcuda
from siamcuda import Gallery, verification
from siamcuda.report import grids, plots
from siamcuda.train import trainer
from siamcuda.train.config import TrainConfig
from siamcuda.train.data import load_mnist
from siamcuda.train.encoders import EncoderConfig
from siamcuda.train.errors import InputError
from siamcuda.train.recipes import hadsell_mnist, hdml_codes
from siamcuda.train.recipes._digits import vote
from siamcuda.train.siamese import Siamese

FEW = {"options": {"width": 4}, "normalize": False}


@pytest.fixture(scope="session")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of noisy bars, as MNIST's four files."""
    return write_digits(tmp_path_factory.mktemp("bars"))


@pytest.fixture
def plane(bars: Path, tmp_path: Path) -> hadsell_mnist.HadsellMnist:
    return hadsell_mnist.HadsellMnist(
        out=tmp_path / "run", data=bars, digits_per_class=5, neighbours=5, threads=1,
        encoder=EncoderConfig("fast", embedding=2, **FEW),
        train=TrainConfig(epochs=4, learning_rate=5e-3, device="cpu"),
    )  # fmt: skip


@pytest.fixture
def codes(bars: Path, tmp_path: Path) -> hdml_codes.HdmlCodes:
    return hdml_codes.HdmlCodes(
        out=tmp_path / "run", data=bars, bits=(8, 12), digits_per_class=5, neighbours=3, threads=1,
        encoder=EncoderConfig("fast", embedding=8, **FEW),
        train=TrainConfig(epochs=3, device="cpu"),
    )  # fmt: skip


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image.size


def test_hadsell_mnist_leaves_every_file(plane: hadsell_mnist.HadsellMnist) -> None:
    metrics = hadsell_mnist.run(plane)
    assert files(plane.out) == {
        "config.json", "checkpoint.safetensors", "calibrator.json", "history.json", "metrics.json",
        "tensorboard", "training.png", "embedding.png",
    }  # fmt: skip
    assert json.loads((plane.out / "metrics.json").read_text()) == metrics
    assert metrics["error"] == metrics["wrong"] / 40
    assert metrics["error"] < 0.4  # bars are easy; chance is 0.75
    assert f"{100 * metrics['error']:.2f} % of 40 digits wrong" in hadsell_mnist.table(metrics)
    assert f"{100 * metrics['error']:.2f} %" in hadsell_mnist.headline(metrics)
    assert hadsell_mnist.run(plane) == metrics  # a finished run is kept
    # the figure is that of what is saved: voted again here, by a search of another kind
    trained = Siamese.load(plane.out)
    known, unseen = load_mnist(plane.data)
    near = torch.cdist(trained.embed(unseen), trained.embed(known)).topk(5, largest=False).indices
    votes = torch.nn.functional.one_hot(known.labels[near], 4).sum(1)
    assert int((votes.max(1).values == votes.gather(1, unseen.labels[:, None])[:, 0]).sum()) >= (
        40 - metrics["wrong"]
    )
    for picture in hadsell_mnist.RECIPE.pictures:
        size((plane.out / picture).read_bytes())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": EncoderConfig("fast", embedding=3)}, "2 numbers"),
        ({"encoder": EncoderConfig("fast", embedding=2, bits=8)}, "no bits"),
        ({"digits_per_class": 1}, "digits_per_class: must be at least 2"),
        ({"neighbours": 0}, "neighbours: must lie in 1 to 120, got 0"),
        ({"neighbours": 121}, "neighbours: must lie in 1 to 120, got 121"),
        ({"data": Path("nowhere")}, "train-images-idx3-ubyte"),
    ],
)
def test_hadsell_mnist_refuses_before_any_folder(
    plane: hadsell_mnist.HadsellMnist, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        hadsell_mnist.run(replace(plane, **changes))  # type: ignore[arg-type]
    assert not plane.out.exists()


def test_hdml_codes_leaves_every_file(codes: hdml_codes.HdmlCodes) -> None:
    metrics = hdml_codes.run(codes)
    assert files(codes.out) == {
        "config.json", "metrics.json", "retrieval.png", "radius.png", "bits-8", "bits-12",
    }  # fmt: skip
    assert json.loads((codes.out / "metrics.json").read_text()) == metrics
    known, unseen = load_mnist(codes.data)
    for bits, part in metrics["codes"].items():
        folder = codes.out / f"bits-{bits}"
        assert files(folder) == {
            "config.json", "checkpoint.safetensors", "calibrator.json", "history.json",
            "metrics.json", "tensorboard", "training.png", "retrieval.png", "gallery.safetensors",
        }  # fmt: skip
        assert part["error"] == part["wrong"] / 40
        assert part["error"] < 0.4  # chance is 0.75
        assert 1 <= part["different_codes"] <= 120
        assert len(part["precision"]) == len(part["recall"]) == int(bits) + 1
        # the saved encoder makes the codes that were searched, and finds what was counted
        trained = Siamese.load(folder)
        assert trained.distance == "hamming"
        gallery = Gallery.load(folder / "gallery.safetensors")
        packed = trained.embed(known)
        assert packed.dtype == torch.uint8
        assert packed.shape == (120, -(-int(bits) // 8))
        assert (gallery.search(packed, 1).distances == 0).all()
        found = known.labels[gallery.search(trained.embed(unseen), 3).ids]
        assert int((vote(found, 4) != unseen.labels).sum()) == part["wrong"]
        assert f"{100 * part['error']:.2f}" in hdml_codes.table(metrics)
        alone = json.loads((folder / "metrics.json").read_text())
        assert alone["codes"] == {bits: part}
        assert f"{bits} bits" in hdml_codes.table(alone)  # siamcuda evaluate RUN/bits-8
    longest = codes.out / "bits-12" / "retrieval.png"
    assert (codes.out / "retrieval.png").read_bytes() == longest.read_bytes()
    assert "by 8 / 12 bits" in hdml_codes.headline(metrics)
    assert hdml_codes.run(codes) == metrics  # a finished run is kept


def test_hdml_codes_keeps_the_length_that_is_done(
    codes: hdml_codes.HdmlCodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the second length: the first one stays, the second goes on where it was."""
    hdml_codes.run(replace(codes, out=tmp_path / "whole"))
    step, left = trainer._Run._step, [25]  # 18 steps of the first length

    def counting(run, chosen, stored):  # type: ignore[no-untyped-def]
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGTERM)
        return step(run, chosen, stored)

    monkeypatch.setattr(trainer._Run, "_step", counting)
    with pytest.raises(KeyboardInterrupt):
        hdml_codes.run(codes)
    assert not (codes.out / "metrics.json").exists()
    done = (codes.out / "bits-8" / "metrics.json").read_bytes()
    assert (codes.out / "bits-12" / "training_state.safetensors").exists()
    with pytest.raises(InputError, match="other settings"):
        hdml_codes.run(replace(codes, neighbours=4))
    hdml_codes.run(codes)
    assert (codes.out / "bits-8" / "metrics.json").read_bytes() == done
    for bits in codes.bits:
        name = f"bits-{bits}/checkpoint.safetensors"
        assert (codes.out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": ()}, "bits: one or several"),
        ({"bits": (8, 8)}, "bits: one or several"),
        ({"bits": (0,)}, "bits: an integer of at least 1"),
        ({"encoder": EncoderConfig("fast", bits=8)}, "encoder.bits"),
        ({"neighbours": 121}, "neighbours: must lie in 1 to 120"),
        ({"digits_per_class": 1}, "digits_per_class: must be at least 2"),
        ({"data": Path("nowhere")}, "train-images-idx3-ubyte"),
    ],
)
def test_hdml_codes_refuses_before_any_folder(
    codes: hdml_codes.HdmlCodes, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        hdml_codes.run(replace(codes, **changes))  # type: ignore[arg-type]
    assert not codes.out.exists()


def test_a_vote_is_the_majority_and_the_nearest_of_several_decides() -> None:
    neighbours = torch.tensor([[2, 0, 0], [2, 0, 1], [1, 2, 2], [0, 0, 0]])
    assert vote(neighbours, 3).tolist() == [0, 2, 2, 0]
    even = torch.tensor([[3, 1, 1, 3], [1, 3, 3, 1], [0, 1, 3, 3]])
    assert vote(even, 4).tolist() == [3, 1, 3]
    assert vote(torch.tensor([[1], [0]]), 2).tolist() == [1, 0]


def test_a_vote_agrees_with_one_by_hand() -> None:
    neighbours = torch.randint(0, 5, (300, 7), generator=torch.Generator().manual_seed(0))
    for line, chosen in zip(neighbours.tolist(), vote(neighbours, 5).tolist(), strict=True):
        best = max(line.count(one) for one in line)
        assert chosen == next(one for one in line if line.count(one) == best)


def test_precision_and_recall_within_a_radius_are_counts() -> None:
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(0, 2, (40, 6), generator=generator)
    bits[:, 1:4] = bits[:, :1]  # four bits as one: small radii and large ones are met
    labels = torch.randint(0, 3, (40,), generator=generator)
    report = verification.evaluate(bits.float(), labels, thresholds=range(7), identification=False)
    precision, recall = hdml_codes.within_radius(report, 6)
    i, j = torch.triu_indices(40, 40, offset=1)
    packed = siamcuda.pack_bits(bits)
    distance, same = siamcuda.hamming(packed[i], packed[j]), labels[i] == labels[j]
    for radius in range(7):
        within = distance <= radius
        assert recall[radius] == pytest.approx(float(same[within].sum() / same.sum()))
        assert precision[radius] == pytest.approx(float(same[within].double().mean()))
    assert recall[-1] == 1


def test_nothing_within_a_radius_has_no_precision() -> None:
    rows = torch.tensor([[0.0, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1]])  # all 2 apart
    report = verification.evaluate(
        rows, torch.tensor([0, 0, 1, 1]), thresholds=range(4), identification=False
    )
    precision, recall = hdml_codes.within_radius(report, 3)
    assert precision == [None, None, pytest.approx(1 / 3), pytest.approx(1 / 3)]
    assert recall == [0, 0, 1, 1]


def _colours(png: bytes) -> set[tuple[int, int, int]]:
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return {tuple(one) for one in np.unique(pixels, axis=0).tolist()}


GREEN, RED = (0x1B, 0x7F, 0x5C), (0xC8, 0x55, 0x3D)


def test_a_retrieval_grid_frames_what_is_right_and_what_is_wrong() -> None:
    random = np.random.default_rng(0)
    grey = [random.integers(0, 256, (28, 20), dtype=np.uint8) for _ in range(3)]
    colour = [random.integers(0, 256, (9, 12, 3), dtype=np.uint8) for _ in range(3)]

    def draw(right: list[list[bool]], **options: object) -> bytes:
        return grids.retrieval_grid(
            [grey[0], colour[0]], [grey[:2], colour], right, "Found", **options  # type: ignore[arg-type]
        )  # fmt: skip

    mixed = draw([[True, False], [False, True, True]])
    assert mixed == draw([[True, False], [False, True, True]])  # the same bytes each time
    assert mixed != draw([[True, True], [False, True, True]])
    named = draw(
        [[True, False], [False, True, True]], names=["a", "b"],
        captions=[["1", "2"], ["3", "4", "5"]], inverted=True,
    )  # fmt: skip
    assert size(named)[1] > size(mixed)[1]  # room for the words
    assert {GREEN, RED} <= _colours(mixed)
    with pytest.raises(ValueError, match="zip"):
        draw([[True], [False, True, True]])


def test_a_map_draws_the_image_nearest_to_the_middle_of_each_cell() -> None:
    points = np.array([[0.1, 0.1], [0.6, 0.5], [1.2, 0.5], [5.5, 7.4], [5.5, 7.7]])
    assert grids._nearest_to_cells(points) == [1, 2, 3]
    labels, images = np.array([0, 0, 1, 1, 1]), np.zeros((5, 4, 4), np.uint8)
    drawn = grids.embedding_map(points, labels, ("a", "b", "c"), images, "Map")
    assert drawn == grids.embedding_map(points, labels, ("a", "b", "c"), images, "Map")
    same_place = grids.embedding_map(np.zeros((5, 2)), labels, ("a", "b"), images, "Map")
    assert size(same_place) == size(drawn)


def test_radius_curves_leave_out_what_is_not_known() -> None:
    draw: Callable[..., bytes] = plots.radius_curves
    known = draw({"2 bits": ([None, 0.5, 0.5], [0.0, 0.5, 1.0])}, "Codes")
    assert size(known) == size(draw({"2 bits": ([0.5, 0.5, 0.5], [0.0, 0.5, 1.0])}, "Codes"))
