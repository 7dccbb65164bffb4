"""The recipe anomaly on small made-up surfaces, and the defects that it plants."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

for _extra in ("PIL", "accelerate", "matplotlib", "safetensors", "tensorboard", "tqdm"):
    pytest.importorskip(_extra)

from PIL import Image
from torch import Tensor
from torch.nn import functional

from siamcuda.report import grids
from siamcuda.train.config import TrainConfig
from siamcuda.train.encoders import EncoderConfig
from siamcuda.train.errors import InputError
from siamcuda.train.recipes import _defects, anomaly
from siamcuda.train.recipes.anomaly import Anomaly, Inspection, Pictures, PlaceSampler
from siamcuda.train.siamese import Siamese

SIDE = 16


def made_up(seed: int, height: int = 64, width: int = 128) -> Tensor:
    """A smooth random surface, (H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    knots = torch.rand(1, 1, height // 6, width // 6, generator=generator) * 255
    return functional.interpolate(knots, (height, width), mode="bilinear")[0, 0].to(torch.uint8)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Anomaly:
    surfaces = {f"surface {i}": made_up(i) for i in range(2)}
    pictures = Pictures({"a": made_up(8), "b": made_up(9)}, surfaces, tuple(_defects.TESTED))
    monkeypatch.setattr(anomaly, "load_pictures", lambda options: pictures)
    return Anomaly(
        out=tmp_path / "run", side=SIDE, stride=12, photographs=2, inspected=12, threads=1,
        false_alarms=0.1, places_per_batch=16,
        encoder=EncoderConfig("fast", embedding=16, options={"width": 8}),
        train=TrainConfig(epochs=6, device="cpu"),
    )  # fmt: skip


def test_a_run_leaves_every_file_and_is_kept(options: Anomaly) -> None:
    metrics = anomaly.run(options)
    assert {path.name for path in options.out.iterdir()} == {
        "config.json", "checkpoint.safetensors", "history.json", "metrics.json", "tensorboard",
        "training.png", "parts.png", "map.png", "distances.png",
    }  # fmt: skip
    assert json.loads((options.out / "metrics.json").read_text()) == metrics
    assert set(metrics["auc_by_kind"]) == set(_defects.TESTED)
    assert metrics["patches_test"] == 2 * 12 * (1 + len(_defects.TESTED))
    assert 0.6 < metrics["auc"] <= 1
    for one in (metrics, *metrics["beside"].values()):
        assert 0 <= one["false_alarms"] <= 0.5
        assert one["found"] > one["false_alarms"]
    assert f"AUC {metrics['auc']:.3f}" in anomaly.headline(metrics)
    assert "scratch" in anomaly.table(metrics)
    trained = Siamese.load(options.out)
    assert trained.threshold == metrics["threshold"]
    for picture in options.out.glob("*.png"):
        with Image.open(picture) as image:
            image.load()
    assert anomaly.run(options) == metrics


def test_what_cannot_work_is_said_before_any_folder(options: Anomaly) -> None:
    for message, settings in {
        "side: must be at least 16": {"side": 8},
        "photographs: must be at least 2": {"photographs": 1},
        "false_alarms: must lie in": {"false_alarms": 1.0},
        "is none of": {"encoder": EncoderConfig("fats")},
    }.items():
        with pytest.raises(InputError, match=message):
            anomaly.run(replace(options, **settings))
    assert not options.out.exists()


def test_nothing_tested_is_learned_from() -> None:
    pytest.importorskip("skimage")
    pictures = anomaly.load_pictures(Anomaly())
    validated = anomaly.load_pictures(Anomaly(validate=True))
    assert {*pictures.unseen} == {"brick", "grass", "gravel"}
    assert not {*pictures.known} & {*pictures.unseen}
    assert {*validated.known, *validated.unseen} == {*pictures.known}
    assert not {*validated.known} & {*validated.unseen}
    kinds = [{*_defects.LEARNED}, {*pictures.kinds}, {*validated.kinds}]
    assert sum(map(len, kinds)) == len(set.union(*kinds)) == len(_defects.KINDS)
    with pytest.raises(InputError, match=r"side: patches of 99 pixels need 202x602 .* of "):
        anomaly.load_pictures(Anomaly(side=99))


@pytest.mark.parametrize("kind", _defects.KINDS)
def test_a_planted_defect_shows_and_is_local(kind: str) -> None:
    patch, other = made_up(1, 48, 48)[:32, :32], made_up(2, 48, 48)[:32, :32]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        changed = _defects.plant(kind, patch, other, generator)
        assert changed is not None
        assert changed.dtype == torch.uint8
        assert _defects.shows(patch, changed)
        assert (changed == patch).float().mean() > 0.2  # the surface is still there
    flat = torch.full((32, 32), 90, dtype=torch.uint8)
    if kind in ("moved", "turned", "mosaic", "inverted", "dent", "missing", "blurred"):
        assert _defects.plant(kind, flat, flat, generator) is None  # nothing to see


def test_a_second_photograph_is_like_the_first() -> None:
    first = made_up(3, 96, 128)
    again = anomaly.photograph_again(first, torch.Generator().manual_seed(5))
    assert (again.shape, again.dtype) == (first.shape, torch.uint8)
    assert torch.equal(again, anomaly.photograph_again(first, torch.Generator().manual_seed(5)))
    assert not torch.equal(again, first)
    both = torch.stack([first.flatten().float(), again.flatten().float()])
    assert torch.corrcoef(both)[0, 1] > 0.8


def test_batches_hold_every_patch_of_their_places() -> None:
    rows = torch.arange(40).view(2, 10, 2)
    sampler = PlaceSampler(rows[0], rows[1], 4, seed=1)
    batches = sampler.epoch(3)
    assert len(batches) == len(sampler) == 2
    places = [batch.view(4, 4)[:, 0] // 2 for batch in batches]
    assert len(torch.cat(places).unique()) == 8
    for batch, chosen in zip(batches, places, strict=True):
        expected = torch.cat([rows[0][chosen], rows[1][chosen]], 1).flatten()
        assert torch.equal(batch, expected)
    assert torch.equal(torch.cat(sampler.epoch(3)), torch.cat(batches))
    assert not torch.equal(torch.cat(sampler.epoch(4)), torch.cat(batches))


def test_inspected_patches_are_of_their_columns() -> None:
    """The surface is its column's number, so a patch tells where it was cut."""
    good = torch.arange(128, dtype=torch.uint8).expand(64, 128)
    lines = torch.arange(64)[:, None] % 2 * 60
    good = (good + lines).to(torch.uint8)  # enough to be seen
    generator = torch.Generator().manual_seed(0)
    part = anomaly.inspect(good, good, range(64, 128), SIDE, 30, ("spots",), [good], generator)
    assert part.reference.shape == (30, 9, SIDE, SIDE)
    assert set(part.inspected) == {"intact", "spots"}
    even = torch.minimum(part.reference[:, :, 0], part.reference[:, :, 1])
    assert 64 <= int(even.min()) < 72
    assert 120 < int(even.max()) <= 127
    assert torch.equal(part.reference[:, 4], part.inspected["intact"])
    flat = torch.full((64, 128), 50, dtype=torch.uint8)
    with pytest.raises(InputError, match="no 3 places"):
        anomaly.inspect(flat, flat, range(64), SIDE, 3, (), [], generator)


def test_the_nearest_of_nine_counts() -> None:
    reference = torch.zeros(2, 9, 1, 1, dtype=torch.uint8)
    reference[0, :, 0, 0] = torch.arange(10, 100, 10)
    reference[1, :, 0, 0] = 200
    patches = torch.tensor([43, 197], dtype=torch.uint8).view(2, 1, 1)
    found = anomaly.nearest(lambda p: p.flatten(1).float(), Inspection(reference, {"x": patches}))
    assert found["x"].tolist() == [3.0, 3.0]


def test_the_threshold_refuses_no_more_than_asked() -> None:
    distances = torch.arange(100.0).flip(0)
    assert anomaly.refusing(distances, 0.01) == 98.0
    assert anomaly.refusing(distances, 0.001) == 99.0
    assert anomaly.refusing(distances, 0.5) == 49.0


def test_gradients_know_direction_and_not_light() -> None:
    stripes = torch.arange(32) // 4 % 2 * 100
    patch = stripes.expand(32, 32).to(torch.uint8)
    across, down, light = anomaly.gradients(torch.stack([patch, patch.T, patch + 50]))
    assert torch.allclose(across, light)
    assert float(across @ down) < 0.01
    assert float(across.norm()) == pytest.approx(1)


def test_maps_are_drawn_the_same_each_time() -> None:
    image = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)
    distances = np.linspace(0, 1, 4 * 8).reshape(4, 8)
    one = grids.DistanceMap("wood", image, distances, (16, 6), [(4, 5, 16, "knot")])
    first = grids.distance_maps([one, one], 0.5, "Title")
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert grids.distance_maps([one, one], 0.5, "Title") == first
    assert grids.distance_maps([one, one], 0.6, "Title") != first
