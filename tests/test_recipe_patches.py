"""Patches and fragments: their parts by hand, and both recipes end to end on made-up pictures."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

for _extra in ("PIL", "accelerate", "matplotlib", "safetensors", "tensorboard", "tqdm"):
    pytest.importorskip(_extra)

from PIL import Image

from siamcuda import reference, verification
from siamcuda.train.augment import Augmentation, ImageViews
from siamcuda.train.config import TrainConfig
from siamcuda.train.data import StereoPair, WindowPairs
from siamcuda.train.encoders import Branches, EncoderConfig
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import CrossTriplets, LabelledPairs
from siamcuda.train.recipes import _puzzle, fragments
from siamcuda.train.recipes import two_channel_patches as patches
from siamcuda.train.samplers import ShuffledSampler
from siamcuda.train.siamese import Siamese


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def landscape(height: int, width: int, channels: int = 1, seed: int = 0) -> Tensor:
    """Soft spots of every size: a picture in which no two places are alike."""
    total = torch.zeros(1, channels, height, width)
    for scale in (2, 5, 12, 30):
        spots = torch.randn(1, channels, height // scale + 2, width // scale + 2,
                            generator=generator(seed + scale))  # fmt: skip
        total += torch.nn.functional.interpolate(spots, (height, width), mode="bicubic") * scale
    return ((total[0] / total.std() * 55) + 128).clamp(0, 255).byte()


# --- what both are made of ------------------------------------------------------------------------


def test_shuffled_batches_show_everything_once() -> None:
    sampler = ShuffledSampler(23, 6, seed=3)
    epochs = [sampler.epoch(e) for e in (0, 0, 1)]
    for batches in epochs:
        assert [len(rows) for rows in batches] == [6, 6, 6, 5]
        assert sorted(torch.cat(batches).tolist()) == list(range(23))
    assert torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[2]))
    assert len(sampler) == 4


def test_ranks_share_shuffled_batches() -> None:
    whole = ShuffledSampler(23, 6, seed=3).epoch(2)
    shares = [ShuffledSampler(23, 6, 3, rank, 4).epoch(2) for rank in range(4)]
    for batch, *of_ranks in zip(whole, *shares, strict=True):
        assert min(map(len, of_ranks)) >= 1
        assert sorted(torch.cat(of_ranks).tolist()) == sorted(batch.tolist())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((0, 4, 0), "there is none"), ((5, 0, 0), "batch: must be"), ((9, 4, 0, 0, 4), "3 rows")],
)
def test_batches_that_cannot_be(arguments: tuple[int, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ShuffledSampler(*arguments)


def test_windows_are_where_they_are_said_to_be() -> None:
    pictures = [landscape(30, 40, 3), landscape(25, 50, 3, seed=1)]
    places = torch.tensor([[[0, 3, 4], [1, 9, 30]], [[1, 0, 0], [1, 0, 0]]])
    pairs = WindowPairs(pictures, places, torch.tensor([1, 0]), ("same", "other"), (16, 20))
    loaded = pairs.load(torch.tensor([1, 0, 0]))
    assert loaded.shape == (3, 2, 3, 16, 20)
    assert torch.equal(loaded[1, 0], pictures[0][:, 3:19, 4:24])
    assert torch.equal(loaded[2, 1], pictures[1][:, 9:25, 30:50])
    assert torch.equal(loaded[0, 0], loaded[0, 1])
    other = replace(pairs, places=places.flip(0), labels=torch.tensor([0, 1]))
    assert len({pairs.digest(), other.digest(), replace(pairs, size=(16, 19)).digest()}) == 3
    for place in ([2, 0, 0], [0, 15, 0], [0, 0, 21], [0, -1, 0]):
        wrong = torch.tensor([[[0, 0, 0], place]])
        with pytest.raises(InputError, match=r"pair 0: .* leaves no window of 16 x 20"):
            WindowPairs(pictures, wrong, torch.tensor([0]), ("same", "other"), (16, 20))


def test_pairs_with_a_verdict_and_across_two_sides() -> None:
    outputs = torch.randn(6, 2, 5, generator=generator(), requires_grad=True)
    x1, x2 = outputs.unbind(1)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    found = LabelledPairs(margin=3.0)(outputs, y, generator(), True)
    expected = reference.contrastive_loss(x1, x2, y, margin=3.0)
    torch.testing.assert_close(found.loss, expected)
    assert float(found.figures["genuine"]) == pytest.approx(
        float((x1 - x2).detach()[y == 0].norm(dim=1).mean())
    )

    distance = torch.cdist(x1, x2).square()
    own = distance.diagonal()
    others = ~torch.eye(6, dtype=torch.bool)
    forth = (own[:, None] - distance + 0.5)[others].clamp(min=0).mean()
    back = (own[None] - distance + 0.5)[others].clamp(min=0).mean()
    for losses in ("fused", "reference"):
        objective = CrossTriplets(margin=0.5, reduction="mean", losses=losses)  # type: ignore[arg-type]
        told = objective(outputs, y, generator(), True)
        torch.testing.assert_close(told.loss, (forth + back) / 2)


def test_branches_are_one_encoder() -> None:
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    pairs = torch.rand(4, 2, 3, 2, 2, generator=generator())
    both = Branches(encoder)(pairs)
    for side in (0, 1):
        torch.testing.assert_close(both[:, side], encoder(pairs[:, side]))


def test_a_part_of_a_picture_is_its_middle() -> None:
    images = torch.randint(256, (2, 1, 20, 30), generator=generator()).byte()
    plain = ImageViews((10, 15), part=0.5)(images, None)
    torch.testing.assert_close(plain, images[:, :, 5:15, :].float()[..., 7:23][..., :15] / 255,
                               atol=1, rtol=0)  # fmt: skip
    exact = ImageViews((10, 10), part=0.5)(images[..., :20], None)
    torch.testing.assert_close(exact, images[..., 5:15, 5:15].float() / 255, atol=1e-4, rtol=0)
    still = Augmentation(0, 0, 0, 0, 0, 0, 0, 0)
    drawn = ImageViews((10, 10), still, 0.5)(images[..., :20], generator())
    torch.testing.assert_close(drawn, exact.clamp(min=1e-4))


# --- two-channel-patches --------------------------------------------------------------------------


def test_contrast_of_every_patch() -> None:
    picture = landscape(20, 24)
    found = patches.contrasts(picture, 7)
    assert found.shape == (14, 18)
    for y, x in ((0, 0), (13, 17), (5, 9)):
        patch = picture[0, y : y + 7, x : x + 7].double()
        assert float(found[y, x]) == pytest.approx(float(patch.std(correction=0)))


def test_pairs_are_matches_near_and_far() -> None:
    fine = torch.ones(150, 200, dtype=torch.bool)
    fine[:, 100:] = False
    matched = torch.nonzero(fine).repeat(1, 2)
    corners, y = patches.draw_pairs(fine, matched, generator(), 400)
    assert corners.shape == (400, 2, 2)
    assert y.tolist() == [0] * 200 + [1] * 200
    off = (corners[:, 0] - corners[:, 1]).abs().amax(1)
    assert int(off[:200].max()) == 0
    assert (int(off[200:300].min()), int(off[200:300].max())) >= (16, 40)
    assert int(off[200:300].max()) <= 48
    assert int(off[300:].min()) >= 64
    assert int(corners[..., 1].max()) < 100  # no patch where it isn't fine
    with pytest.raises(InputError, match="no two places 64 to"):
        patches.draw_pairs(fine[:50, :50], torch.zeros(1, 4, dtype=torch.int64), generator(), 8)
    with pytest.raises(InputError, match="no place of a picture has a match"):
        patches.draw_pairs(fine, matched[:0], generator(), 8)


def test_matches_of_a_stereo_pair_show_the_same() -> None:
    """A near wall of columns 60 to 90, 12 columns off, before a far one that is 4 off."""
    near, far = landscape(40, 200, 3, seed=7), landscape(40, 200, 3, seed=9)
    disparity = torch.full((40, 160), 4.0)
    disparity[:, 60:90] = 12.0
    disparity[:, 150:] = torch.nan
    column = torch.arange(160)
    left, right = far[:, :, column].clone(), far[:, :, column + 4].clone()
    left[:, :, 60:90], right[:, :, 48:78] = near[:, :, 60:90], near[:, :, 60:90]
    fine, matched = patches.matches(StereoPair(left, right, disparity), patch=8)
    assert fine.shape == (33, 153)
    y1, x1, y2, x2 = matched.T
    assert torch.equal(y1, y2)
    middle = x1 + 4
    assert set((x1 - x2).tolist()) == {4, 12}
    assert torch.equal((x1 - x2 == 12), (middle >= 60) & (middle < 90))
    hidden = (middle >= 53) & (middle < 60)  # columns 48 to 55 of the right are the near wall's
    assert not bool(hidden.any())
    assert int(middle.max()) < 150
    assert torch.equal(left[:, y1 + 4, middle], right[:, y2 + 4, x2 + 4])


def test_rates_at_recall() -> None:
    genuine = torch.arange(100.0)
    impostor = torch.tensor([10.0, 94.0, 94.5, 200.0, 1.0, 300.0, 300.0, 300.0])
    labels = torch.cat([torch.zeros(100), torch.ones(8)]).long()
    report = verification.from_distances(genuine, impostor)
    found = patches.rates(torch.cat([genuine, impostor]), labels, report)
    assert found == {"all": 3 / 8, "near": 2 / 4, "far": 1 / 4, "auc": report.auc}
    rows = patches.hardest(torch.cat([genuine, impostor]), labels, 2)
    assert rows.tolist() == [99, 98, 104, 100]


def test_pairs_are_shown_in_both_orders() -> None:
    stored = torch.arange(200).reshape(100, 2, 1, 1, 1)
    shown = patches.in_any_order(lambda x, _: x)(stored, generator())
    turned = shown[:, 0] > shown[:, 1]
    assert torch.equal(shown.sort(1).values, stored)
    assert 30 < int(turned.sum()) < 70


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures made here in place of the package's."""

    def pictures(validate: bool, channels: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        known = {f"known {k}": landscape(170, 190, channels, seed=100 * k) for k in (1, 2)}
        return known, {"unseen": landscape(170, 200, channels, seed=900)}

    def photographs(names: tuple[str, ...]) -> dict[str, Tensor]:
        return {" or ".join(names): landscape(170, 200, 3, seed=900)}

    def stereo() -> StereoPair:
        scene = landscape(170, 240, 3, seed=1000)
        return StereoPair(scene[:, :, :200], scene[:, :, 10:210], torch.full((170, 200), 10.0))

    monkeypatch.setattr(patches, "read_photographs", pictures)
    monkeypatch.setattr(fragments, "load_photographs", photographs)
    for module in (patches, fragments):
        monkeypatch.setattr(module, "load_stereo", stereo)


FILES = {
    "config.json", "checkpoint.safetensors", "history.json", "metrics.json", "tensorboard",
    "training.png",
}  # fmt: skip


def look(folder: Path) -> None:
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            image.load()


@pytest.mark.usefixtures("made_up")
def test_two_channel_patches_end_to_end(tmp_path: Path) -> None:
    options = patches.TwoChannelPatches(
        out=tmp_path / "run", threads=1, pairs=256, test_pairs=64, batch=32,
        encoder=EncoderConfig("two-channel", options={"width": 12}),
        siamese_encoder=EncoderConfig("patch", embedding=16, options={"width": 12}),
        train=TrainConfig(epochs=3, learning_rate=3e-3, device="cpu"),
    )  # fmt: skip
    metrics = patches.run(options)
    assert {path.name for path in options.out.iterdir()} == FILES | {
        "siamese", "roc.png", "mistakes.png"
    }  # fmt: skip
    plain = options.out / "siamese"
    assert {path.name for path in plain.iterdir()} == FILES | {"calibrator.json"}
    look(options.out)
    assert json.loads((options.out / "metrics.json").read_text()) == metrics
    assert list(metrics["fpr95"]) == ["stereo", "unseen"]
    stereo = metrics["fpr95"]["stereo"]
    assert stereo["pixels"]["all"] == 0  # its right picture is its left one
    for kind in ("two_channel", "siamese"):
        assert stereo[kind]["auc"] > 0.7  # 0.5 is chance
    assert "stereo" in patches.table(metrics)
    assert "FPR95" in patches.headline(metrics)
    assert Siamese.load(plain).encode(torch.rand(2, 1, 64, 64)).shape == (2, 16)
    assert Siamese.load(options.out).spec.encoder.name == "two-channel"
    assert patches.run(options) == metrics  # a finished run is kept
    with pytest.raises(InputError, match="other settings"):
        patches.run(replace(options, batch=16))
    validated = patches.run(replace(options, out=tmp_path / "validated", validate=True))
    assert list(validated["fpr95"]) == ["unseen"]


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pairs": 3}, "pairs: must be at least 4"),
        ({"batch": 1}, "batch: must be at least 2"),
        ({"encoder": EncoderConfig("fast")}, "encoder: two-channel is expected"),
        ({"siamese_encoder": EncoderConfig("nothing")}, "encoder: 'nothing' is none of"),
        ({"siamese_objective": LabelledPairs(margin=-1.0)}, "margin: must be"),
    ],
)
def test_patches_that_cannot_be_learned(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    options = patches.TwoChannelPatches(out=tmp_path / "run", **changes)
    with pytest.raises(InputError, match=says):
        patches.run(options)
    assert not options.out.exists()


def test_pictures_that_are_too_small() -> None:
    with pytest.raises(InputError, match="small: at least 104 x 104 pixels"):
        patches.photograph_pairs({"small": landscape(103, 200)}, 8, 0)
    with pytest.raises(InputError, match="too few for tiles of 32"):
        _puzzle.cut(landscape(40, 80, 3), 32, 2)


# --- fragments ------------------------------------------------------------------------------------


def test_tiles_lose_their_edges() -> None:
    picture = landscape(70, 103, 3)
    tiles = _puzzle.cut(picture, 20, 3)
    assert (tiles.rows, tiles.columns, tiles.relations) == (3, 5, 22)
    assert tiles.pixels.shape == (15, 3, 14, 14)
    top, left = 5 + 1 * 20 + 3, 1 + 2 * 20 + 3  # tile 7: row 1, column 2
    assert torch.equal(tiles.pixels[7], picture[:, top : top + 14, left : left + 14])


def test_both_sides_of_a_seam_look_outwards() -> None:
    """A tile and its mirror image have equal strips where they touch, above each other too."""
    tile = landscape(12, 12, 3)
    pixels = torch.stack([tile, tile.flip(-1), tile.flip(-2)])
    found = fragments.edges(pixels, 5)
    assert found["right"].shape == (3, 3, 12, 5)
    assert torch.equal(found["right"][0], found["left"][1])
    assert torch.equal(found["bottom"][0], found["top"][2])
    assert torch.equal(found["right"][0], tile[..., -5:])


def test_an_edge_is_its_colours_and_what_contrast_allows() -> None:
    net = fragments.Fragments().spec.build(0)
    strips = torch.rand(4, 3, 28, 8, generator=generator())
    found = net(strips).detach().unflatten(1, (-1, 28))
    torch.testing.assert_close(found[:, :3], strips[..., -1], atol=0.05, rtol=0)
    assert float(found[:, 3:].abs().max()) < 0.05
    # Half the contrast, another brightness: half of all, but for the brightness.
    dimmed = net(0.5 * strips + 0.2).detach().unflatten(1, (-1, 28))
    found[:, :3] = found[:, :3] + 0.4
    torch.testing.assert_close(dimmed, 0.5 * found, atol=1e-5, rtol=1e-3)


def test_what_faces_an_edge_has_half_its_signs_turned() -> None:
    x = torch.arange(8.0).reshape(2, 4)
    assert fragments.facing(x).tolist() == [[0, 1, -2, -3], [4, 5, -6, -7]]
    model = fragments.Seams(torch.nn.Flatten())
    both = model(torch.stack([x, x], 1)[:, :, None, None])
    assert torch.equal(both[:, 0], x)
    assert torch.equal(both[:, 1], fragments.facing(x))


def test_inner_seams_leave_the_gap_between() -> None:
    tiles = torch.stack([landscape(14, 14, 3, seed=k) for k in range(20)])
    cut = fragments.InnerSeams(strip=3, gap=4)
    plain = cut(tiles, None)
    assert plain.shape == (20, 2, 3, 14, 3)
    pixels = tiles.float() / 255
    assert torch.equal(plain[:, 0], pixels[..., :3])
    assert torch.equal(plain[:, 1], pixels[..., 7:10].flip(-1))
    drawn = cut(tiles, generator(1))
    assert abs(float(drawn.mean())) < 1e-6
    assert float(drawn.std()) == pytest.approx(0.3)
    # A tile that is its own mirror image about every column: both sides see the same light.
    flat = torch.arange(14).reshape(1, 1, 14, 1).expand(2, 3, -1, 14).byte() * 9
    for seed in range(4):
        both = cut(flat, generator(seed))
        assert torch.equal(both[:, 0], both[:, 1])


def test_tiles_stand_upright_and_lie_on_their_side() -> None:
    tiles = {k: _puzzle.cut(landscape(40, 20 * n, 3, n), 20, 2) for k, n in (("a", 2), ("b", 3))}
    examples = fragments.insides(tiles)
    assert examples.names == ("a", "a, on its side", "b", "b, on its side")
    assert torch.bincount(examples.labels).tolist() == [4, 4, 6, 6]
    assert torch.equal(examples.of(["b, on its side"]).images, tiles["b"].pixels.mT)


def test_costs_find_neighbours_where_nothing_is_lost() -> None:
    """A slope of colours: the tile that goes on is the one that fits."""
    y, x = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    picture = torch.stack([3 * x, 4 * y, (x + y) // 2]).byte()
    tiles = _puzzle.cut(picture, 10, 0)
    for costs in (_puzzle.colour_costs(tiles.pixels), _puzzle.gradient_costs(tiles.pixels)):
        assert _puzzle.found_first(costs, tiles.rows, tiles.columns) == 1
        grid = _puzzle.assemble(costs, tiles.rows, tiles.columns)
        assert _puzzle.restored(grid) == (1, 1)
    turned = _puzzle.Costs(costs.below, costs.right)
    assert _puzzle.found_first(turned, tiles.rows, tiles.columns) < 0.2


def test_gradient_costs_are_the_formula() -> None:
    pixels = landscape(30, 20, 3).unflatten(1, (3, 10)).unflatten(3, (2, 10))
    pixels = pixels.permute(1, 3, 0, 2, 4).flatten(0, 1)
    right = _puzzle.gradient_costs(pixels).right
    small = np.concatenate(
        [np.zeros((1, 3)), np.eye(3), -np.eye(3), np.ones((1, 3)), -np.ones((1, 3))]
    )

    def one_way(inside: Any, edge: Any, other: Any) -> float:
        steps = (edge - inside).T
        mean = steps.mean(0)
        spread = ((steps - mean).T @ (steps - mean) + small.T @ small) / (10 + 9 - 1)
        off = (other - edge).T - mean
        return float(np.einsum("pi,ij,pj->", off, np.linalg.inv(spread), off))

    a, b = pixels[1].double().numpy(), pixels[4].double().numpy()
    expected = one_way(a[..., -2], a[..., -1], b[..., 0]) + one_way(
        b[..., 1], b[..., 0], a[..., -1]
    )
    assert float(right[1, 4]) == pytest.approx(expected)


def test_a_picture_is_put_back_in_spite_of_false_friends() -> None:
    """Costs of 0 for true neighbours, but for some that prefer a stranger."""
    rows, columns = 4, 5
    random = torch.rand(2, 20, 20, generator=generator()) + 1
    place = torch.arange(20).reshape(rows, columns)
    for layer, first, second in ((0, place[:, :-1], place[:, 1:]), (1, place[:-1], place[1:])):
        random[layer, first.flatten(), second.flatten()] = 0.1
    random[0, 6, 19] = 0.05  # better than its own neighbour 7, and it would overlap others
    costs = _puzzle.Costs(random[0], random[1])
    assert _puzzle.found_first(costs, rows, columns) == 60 / 62  # but for that of 6, and of 19
    assert _puzzle.restored(_puzzle.assemble(costs, rows, columns)) == (1, 1)


def test_any_costs_fill_the_frame() -> None:
    for seed, (rows, columns) in enumerate([(2, 2), (3, 7), (6, 2)]):
        count = rows * columns
        random = torch.rand(2, count, count, generator=generator(seed))
        grid = _puzzle.assemble(_puzzle.Costs(random[0], random[1]), rows, columns)
        assert grid.shape == (rows, columns)
        assert sorted(grid.flatten().tolist()) == list(range(count))


def test_wrong_seams_are_seen() -> None:
    grid = np.array([[0, 1, 3], [2, 4, 5]])  # 2 | 3 of the true order would be no neighbours
    across, down = _puzzle.right_seams(grid)
    assert across.tolist() == [[True, False], [False, True]]
    assert down.tolist() == [[False, True, False]]
    assert _puzzle.restored(grid) == (3 / 7, 4 / 6)
    wrapped = np.array([[5, 0, 1], [2, 3, 4]])
    assert _puzzle.right_seams(wrapped)[0].tolist() == [[False, True], [False, True]]
    tiles = _puzzle.Tiles(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), 2, 3)
    drawn = fragments.mosaic(tiles, grid)
    assert drawn.shape == (20, 32, 3)
    assert drawn[4, 10].tolist() == [255] * 3
    assert drawn[4, 22].tolist() == list(fragments.WRONG)
    assert bool((fragments.mosaic(tiles, grid, marked=False)[4, 22] == 255).all())


@pytest.mark.usefixtures("made_up")
def test_fragments_end_to_end(tmp_path: Path) -> None:
    options = fragments.Fragments(
        out=tmp_path / "run", threads=1, batch=16, maps=6,
        encoder=EncoderConfig(fragments.Fragments().encoder.name, options={"width": 8}),
        train=TrainConfig(epochs=5, learning_rate=1e-3, device="cpu"),
    )  # fmt: skip
    metrics = fragments.run(options)
    assert {path.name for path in options.out.iterdir()} == FILES | {"restored.png"}
    look(options.out)
    assert metrics["tiles"] == {"motorcycle": 30, "chelsea.png or coffee.png": 30}
    for kinds in metrics["pictures"].values():
        for found in kinds.values():
            assert 0 <= found["assembled"]["neighbours"] <= 1
        assert kinds["siamese"]["neighbours"] > 0.15  # 1 of 29 by chance
    assert "motorcycle, 30" in fragments.table(metrics)
    assert "% of the neighbours found first" in fragments.headline(metrics)
    trained = Siamese.load(options.out)
    assert trained.encode(torch.rand(2, 3, 28, 8)).shape == (2, 168)
    assert fragments.run(options) == metrics
    with pytest.raises(InputError, match="other settings"):
        fragments.run(replace(options, batch=8))
    validated = fragments.run(replace(options, out=tmp_path / "validated", validate=True))
    assert list(validated["pictures"]) == ["camera.png or rocket.jpg"]


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"maps": 2}, "embedding: a multiple of 28"),
        ({"lost": 16}, "strip: two of 8 pixels and a gap of 32 do not fit a tile of 0"),
        ({"strip": 13}, "strip: two of 13 pixels and a gap of 4 do not fit a tile of 28"),
        ({"batch": 1}, "batch: must be at least 2"),
        ({"pitch": 200}, "too few for tiles of 200"),
        ({"objective": CrossTriplets(margin=-1.0)}, "margin: must be"),
    ],
)
def test_fragments_that_cannot_be(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    options = fragments.Fragments(out=tmp_path / "run", **changes)
    with pytest.raises(InputError, match=says):
        fragments.run(options)
    assert not options.out.exists()
