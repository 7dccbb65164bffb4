"""Recipes end to end on data made here: files, figures, interruptions; not how good they are."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

for _extra in ("PIL", "accelerate", "matplotlib", "safetensors", "tensorboard", "tqdm"):
    pytest.importorskip(_extra)

from PIL import Image
from training import write_digits

from siamcuda.train import trainer
from siamcuda.train.config import TrainConfig
from siamcuda.train.encoders import EncoderConfig, EncoderSpec
from siamcuda.train.errors import InputError
from siamcuda.train.recipes import _digits, mnist_012, mnist_full
from siamcuda.train.siamese import Siamese


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of noisy bars, as MNIST's four files."""
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def options(digits: Path, tmp_path: Path) -> mnist_full.MnistFull:
    return mnist_full.MnistFull(
        out=tmp_path / "run", data=digits, classes_per_batch=4, digits_per_class=5, threads=1,
        encoder=EncoderConfig("fast", embedding=8, options={"width": 4}),
        train=TrainConfig(epochs=3, device="cpu"),
    )  # fmt: skip


def test_mnist_full_leaves_every_file(options: mnist_full.MnistFull, digits: Path) -> None:
    metrics = mnist_full.run(options)
    assert {path.name for path in options.out.iterdir()} == {
        "config.json", "checkpoint.safetensors", "calibrator.json", "history.json", "metrics.json",
        "tensorboard", "training.png", "histogram.png", "errors.png",
    }  # fmt: skip
    assert json.loads((options.out / "metrics.json").read_text()) == metrics
    assert (metrics["digits_train"], metrics["digits_test"]) == (120, 40)
    assert metrics["error"] == metrics["wrong"] / 40
    assert metrics["error"] < 0.5  # bars are easy; chance is 0.75
    assert f"{100 * metrics['error']:.2f} % of 40 digits wrong" in mnist_full.table(metrics)
    for picture in options.out.glob("*.png"):
        with Image.open(picture) as image:
            image.load()
    trained = Siamese.load(options.out)
    assert (trained.distance, trained.far) == ("euclidean", mnist_full.STORED_FAR)
    assert mnist_full.run(options) == metrics  # a finished run is kept


def test_mnist_full_goes_on_from_where_it_was(
    options: mnist_full.MnistFull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist_full.run(replace(options, out=tmp_path / "whole"))
    step, left = trainer._Run._step, [8]

    def counting(run, chosen, stored):  # type: ignore[no-untyped-def]
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGTERM)
        return step(run, chosen, stored)

    monkeypatch.setattr(trainer._Run, "_step", counting)
    with pytest.raises(KeyboardInterrupt):
        mnist_full.run(options)
    assert "metrics.json" not in {path.name for path in options.out.iterdir()}
    with pytest.raises(InputError, match="other settings"):
        mnist_full.run(replace(options, digits_per_class=6))
    mnist_full.run(options)
    name = "checkpoint.safetensors"
    assert (options.out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_torchrun_trains_one_run_by_two_processes(digits: Path, tmp_path: Path) -> None:
    options = (
        "--data", str(digits), "--threads", "1", "--train.epochs", "2",
        "--classes-per-batch", "4", "--digits-per-class", "6", "--encoder.embedding", "8",
    )  # fmt: skip
    program = ("-m", "siamcuda.cli", "train", "mnist-full", *options)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    outs = [tmp_path / "one", tmp_path / "two"]
    for out, before in zip(outs, [(), launcher], strict=True):
        done = subprocess.run(
            [sys.executable, *before, *program, "--out", str(out)],
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("nearest neighbour: ") == 1
    one, two = (json.loads((out / "history.json").read_text())["epochs"] for out in outs)
    assert [epoch["rows"] for epoch in one] == [epoch["rows"] for epoch in two] == [120, 120]
    assert two[-1]["loss"] < two[0]["loss"]  # not one's: batch norm sees the rows of a rank
    names = [{path.name for path in out.iterdir()} for out in outs]
    assert names[0] == names[1]
    assert "metrics.json" in names[0]


def test_validation_is_on_digits_that_were_not_learned(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_digits, "HELD_OUT", 20)
    known, unseen = _digits.split_digits(_digits.DigitOptions(data=digits, validate=True))
    whole = _digits.split_digits(_digits.DigitOptions(data=digits))[0]
    assert (len(known), len(unseen)) == (100, 20)
    assert torch.equal(torch.cat([known.images, unseen.images]), whole.images)


def test_mnist_012_compares_with_references(digits: Path, tmp_path: Path) -> None:
    options = mnist_012.Mnist012(
        out=tmp_path / "run", data=digits, pairs_per_batch=24, references=5, threads=1,
        encoder=EncoderConfig("fast", embedding=8, options={"width": 4}),
        train=TrainConfig(epochs=4, device="cpu", learning_rate=5e-3),
    )  # fmt: skip
    metrics = mnist_012.run(options)
    assert {path.name for path in options.out.iterdir()} == {
        "config.json", "checkpoint.safetensors", "calibrator.json", "head.safetensors",
        "history.json", "metrics.json", "tensorboard", "training.png", "errors.png",
    }  # fmt: skip
    assert (metrics["digits_train"], metrics["digits_test"]) == (90, 30)  # no threes
    assert metrics["accuracy"] == 1 - metrics["wrong"] / 30
    assert metrics["accuracy"] > 0.5
    assert "of 30 digits" in mnist_012.table(metrics)
    assert mnist_012.run(options) == metrics
    with pytest.raises(InputError, match="references: must be at least 1"):
        mnist_012.run(replace(options, references=0))


def test_the_mean_of_a_class_decides_and_its_own_reference_is_named() -> None:
    """One reference of class 1 is nearest to the query, but the others of class 1 are far."""

    class Head(torch.nn.Module):
        def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
            distance = (x1 - x2).abs().sum(-1)
            return torch.stack([2 - distance, distance - 2], -1)

    references = torch.tensor([[1.5], [1.0], [0.1], [9.0], [9.0]])
    found, nearest = mnist_012.recognise(
        Head(), torch.zeros(2, 1) + torch.tensor([[0.0], [9.0]]), references,
        torch.tensor([0, 0, 1, 1, 1]),
    )  # fmt: skip
    assert found.tolist() == [0, 1]
    assert nearest.tolist() == [1, 3]


def test_mnist_full_names_what_is_missing(options: mnist_full.MnistFull, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train-images-idx3-ubyte"):
        mnist_full.run(replace(options, data=tmp_path))
    with pytest.raises(InputError, match="classes_per_batch: must be at least 2"):
        mnist_full.run(replace(options, classes_per_batch=1))
    assert not options.out.exists()


def test_what_was_trained_comes_home(
    options: mnist_full.MnistFull, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipes call their modules with examples of the CPU; a training may run elsewhere."""
    moved: list[torch.nn.Module] = []
    cpu = torch.nn.Module.cpu

    def noting(module: torch.nn.Module) -> torch.nn.Module:
        moved.append(module)
        return cpu(module)

    monkeypatch.setattr(torch.nn.Module, "cpu", noting)
    built: list[torch.nn.Module] = []
    build = EncoderSpec.build

    def keeping(spec: EncoderSpec, seed: int) -> torch.nn.Module:
        built.append(build(spec, seed))
        return built[-1]

    monkeypatch.setattr(EncoderSpec, "build", keeping)
    mnist_full.run(options)
    assert any(one is other for one in moved for other in built)
