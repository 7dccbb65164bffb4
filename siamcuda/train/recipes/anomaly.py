"""Defects of surfaces never seen: a patch far from the same place of a good surface has one.

The task is that of Bergmann, Fauser, Sattlegger and Steger (2019), *MVTec AD, a comprehensive
real-world dataset for unsupervised anomaly detection*: a system that has seen no defect of a kind
is to find it. Here a Siamese encoder learns that two photographs of one place of an intact surface
are alike, and that a patch with a defect planted in it is not; planting defects to learn from is
the idea of Li, Sohn, Yoon and Pfister (2021), *CutPaste: self-supervised learning for anomaly
detection and localization*. An inspected patch has the distance to the nearest of nine patches
around the same place of the good surface, two pixels apart.

The surfaces tested are real photographs (brick, grass, gravel); the rest is made up here. The
second photograph of a surface is the first one bent, lit, blurred and made noisy at random.
Defects are planted: none of these surfaces was photographed with one. What is tested was never
seen: other pictures are learned from (things, people, places), and other kinds of defects (moved
and turned pieces, clouds, noise) than the scratches, spots, dents, missing, foreign and blurred
pieces of the test. A defect that changes next to nothing is drawn again.

The figure is the AUC of patches with a defect against intact ones, by distance, over all surfaces
and for each kind. The stored threshold refuses 1 % of the intact patches of the surfaces' left
halves; the test is on the right halves, where false alarms are counted. Beside it, the same by
distances of grey levels (each patch with its mean and contrast taken away) and of histograms of
gradients. Settings were chosen with ``--validate``: three of the pictures that are learned from
are tested instead, with three more kinds of defects that are in neither set. These are no figures
of MVTec AD, whose pictures are not used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import siamcuda
from siamcuda import verification
from siamcuda._files import write_atomically
from siamcuda.report import grids, plots
from siamcuda.train.augment import Augmentation, ImageViews
from siamcuda.train.config import TrainConfig, check_least
from siamcuda.train.data import PHOTOGRAPHS, ImageArray, load_photographs, load_textures
from siamcuda.train.data.classes import digest_of
from siamcuda.train.encoders import EncoderConfig, EncoderSpec, InputSpec
from siamcuda.train.encoders.layers import standardise
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import Triplets
from siamcuda.train.recipes import Recipe
from siamcuda.train.recipes._defects import LEARNED, TESTED, VALIDATED, plant
from siamcuda.train.runs import RunFolder, RunOptions
from siamcuda.train.samplers import epoch_seed
from siamcuda.train.siamese import Siamese
from siamcuda.train.system import System

__all__ = ["RECIPE", "Anomaly", "PlaceSampler", "gradients", "photograph_again", "run", "table"]

#: Photographs that ``validate`` tests; without it they are learned from.
HELD_OUT = ("chelsea", "coins", "hubble_deep_field")
#: What is told of as a surface: patches with a smaller standard deviation show next to nothing.
LEAST_DEVIATION = 6.0
#: Rows and columns by which the nine patches of the good surface lie beside the inspected one.
BESIDE = (-2, 0, 2)
#: Little is added to second photographs, which differ by themselves.
VIEWS = Augmentation(
    rotate=1.5, shift=0.02, scale=0.02, shear=0.02, gamma=0.1, noise=0.01, erase=0.0, flip=0.0
)
_PAIRS = 6  # of each kind in the picture of pairs
_STEP = 5  # pixels between inspected patches in the picture of maps


@dataclass(frozen=True)
class Anomaly(RunOptions):
    """Compare patches of a surface with a good one: surfaces and defects never seen."""

    out: Path = Path("runs/anomaly")  # run folder; a run that was interrupted there goes on
    validate: bool = False  # never look at the tested surfaces and defects: others stand for them
    side: int = 32  # of a patch, in pixels
    stride: int = 20  # between places that are learned from
    photographs: int = 4  # of each place that is learned from, as many again with a defect
    inspected: int = 200  # places of each surface, each intact and once with each kind of defect
    false_alarms: float = 0.01  # share of intact patches that the stored threshold refuses
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig("fast"))
    places_per_batch: int = 32
    objective: Triplets = field(default_factory=Triplets)
    augment: Augmentation = VIEWS
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=20, learning_rate=2e-3, device="cpu")
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_least(self, side=16, stride=4, photographs=2, inspected=2, places_per_batch=2)
        if not 0 < self.false_alarms < 1:
            raise InputError(f"false_alarms: must lie in (0, 1), got {self.false_alarms}")
        self.spec.build(seed=0)  # an error comes before any folder
        super().check()

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder is and takes."""
        return EncoderSpec(self.encoder, InputSpec(1, self.side, self.side))

    @property
    def learned(self) -> dict[str, Any]:
        """What decides the weights, beside the patches and the trainer's own settings."""
        return {
            "recipe": "anomaly",
            "encoder": self.encoder.as_json(),
            "places_per_batch": self.places_per_batch,
            "objective": asdict(self.objective),
            "augment": asdict(self.augment),
        }


class Pictures(NamedTuple):
    """Grey pictures (H, W) uint8 by name, and kinds of defects."""

    known: Mapping[str, Tensor]  # to learn from
    unseen: Mapping[str, Tensor]  # to test on
    kinds: tuple[str, ...]  # of defects of the test


class Learned(NamedTuple):
    """Patches of P places, n of each intact and n with a defect."""

    patches: ImageArray  # intact ones of a place are a class, one with a defect is one by itself
    intact: Tensor  # (P, n) int64, rows of ``patches``
    defective: Tensor  # (P, n)


class Inspection(NamedTuple):
    """Patches of N places of a surface, and the nine of the good surface around each."""

    reference: Tensor  # (N, 9, S, S) uint8
    inspected: Mapping[str, Tensor]  # "intact" or a kind of defect -> (N, S, S) uint8


class Surface(NamedTuple):
    """A surface twice photographed, and what is inspected of it."""

    good: Tensor  # (H, W) uint8
    again: Tensor  # (H, W) uint8
    quiet: Inspection  # of the left half, intact: the threshold is chosen here
    tested: Inspection  # of the right half


#: Patches (N, S, S) uint8 to rows whose distance is taken, (N, D) float32.
Embed = Callable[[Tensor], Tensor]


def run(options: Anomaly) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    pictures = load_pictures(options)
    config = options.config(
        **options.learned,
        side=options.side,
        stride=options.stride,
        photographs=options.photographs,
        inspected=options.inspected,
        false_alarms=options.false_alarms,
        kinds=list(pictures.kinds),
        known=_digest(pictures.known),
        unseen=_digest(pictures.unseen),
    )
    folder = RunFolder(options.out, ("parts.png", "map.png", "distances.png"))
    return folder.complete(options, config, lambda: _made(options, folder, pictures))


def load_pictures(options: Anomaly) -> Pictures:
    """Read the photographs and textures that scikit-image carries, all in grey."""
    photographs = {name: p[0] for name, p in load_photographs(PHOTOGRAPHS, channels=1).items()}
    if not options.validate:
        textures = {name: picture[0] for name, picture in load_textures().items()}
        pictures = Pictures(photographs, textures, tuple(TESTED))
    else:
        unseen = {name: photographs.pop(name) for name in HELD_OUT}
        pictures = Pictures(photographs, unseen, tuple(VALIDATED))
    side, edge = options.side, max(BESIDE)
    least = dict.fromkeys(pictures.known, (side, side))
    # Half of a surface must hold two lines of three patches: the piece that is mapped.
    least |= dict.fromkeys(pictures.unseen, (2 * (side + edge), 2 * (3 * side + 2 * edge)))
    for name, picture in {**pictures.known, **pictures.unseen}.items():
        height, width = least[name]
        if picture.shape[0] < height or picture.shape[1] < width:
            raise InputError(
                f"side: patches of {side} pixels need {height}x{width} (height x width) of {name}, "
                f"which has {picture.shape[0]}x{picture.shape[1]}"
            )
    return pictures


def _digest(pictures: Mapping[str, Tensor]) -> str:
    described = [[name, *picture.shape] for name, picture in pictures.items()]
    return digest_of(described, (p.contiguous().view(-1).numpy() for p in pictures.values()))


# --- patches --------------------------------------------------------------------------------------


def photograph_again(picture: Tensor, generator: torch.Generator) -> Tensor:
    """A second photograph of a surface: bent by up to 2.5 pixels, lit, blurred, made noisy.

    (H, W) uint8 -> (H, W) uint8.
    """
    height, width = picture.shape

    def smooth(channels: int, apart: int) -> Tensor:
        """Random numbers in [-1, 1], joined smoothly: (channels, H, W)."""
        knots = torch.rand(
            1, channels, height // apart + 2, width // apart + 2, generator=generator
        )
        return functional.interpolate(
            2 * knots - 1, (height, width), mode="bilinear", align_corners=True
        )[0]

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    level = picture[None, None].float() / 255
    plain = functional.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], False)
    bend = smooth(2, 48).permute(1, 2, 0) * 2.5 * 2 / torch.tensor([width, height])
    level = functional.grid_sample(
        level, plain + bend, padding_mode="reflection", align_corners=False
    )
    around = functional.avg_pool2d(functional.pad(level, [1] * 4, mode="replicate"), 3, stride=1)
    level = torch.lerp(level, around, between(0.0, 0.6))[0, 0]
    level = level.clamp(min=1e-4) ** math.exp(between(-0.15, 0.15)) * (1 + 0.15 * smooth(1, 128)[0])
    noise = torch.randn(height, width, generator=generator) * between(0.004, 0.02)
    return ((level + noise) * 255).round().clamp(0, 255).to(torch.uint8)


def _cut(picture: Tensor, top: int, left: int, side: int) -> Tensor:
    return picture[top : top + side, left : left + side]


def _whole(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def _somewhere(pictures: Sequence[Tensor], side: int, generator: torch.Generator) -> Tensor:
    """A random patch of a random picture."""
    picture = pictures[_whole(len(pictures), generator)]
    top, left = (_whole(extent - side + 1, generator) for extent in picture.shape)
    return _cut(picture, top, left, side)


def learned_patches(options: Anomaly, pictures: Sequence[Tensor]) -> Learned:
    """Cut patches of the same places of several photographs, and plant defects in as many."""
    side, count = options.side, options.photographs
    generator = torch.Generator().manual_seed(options.train.seed)
    intact, defective = [], []
    for picture in pictures:
        views = [photograph_again(picture, generator) for _ in range(2 * count)]
        for top in range(0, picture.shape[0] - side + 1, options.stride):
            for left in range(0, picture.shape[1] - side + 1, options.stride):
                patches = [_cut(view, top, left, side) for view in views]
                if float(_cut(picture, top, left, side).float().std()) < LEAST_DEVIATION:
                    continue
                planted = []
                for patch in patches[count:]:
                    kind = list(LEARNED)[_whole(len(LEARNED), generator)]
                    other = _somewhere(pictures, side, generator)
                    planted.append(plant(kind, patch, other, generator))
                shown = [patch for patch in planted if patch is not None]
                if len(shown) == count:
                    intact.append(torch.stack(patches[:count]))
                    defective.append(torch.stack(shown))
    if len(intact) < 2:
        raise InputError(f"stride: {options.stride} leaves {len(intact)} places to learn from")
    patches_of = torch.cat([torch.stack(intact), torch.stack(defective)]).flatten(0, 1)
    places = len(intact)
    labels = torch.cat([
        torch.arange(places).repeat_interleave(count), places + torch.arange(places * count),
    ])  # fmt: skip
    names = tuple(map(str, range(places * (count + 1))))
    rows = torch.arange(2 * places * count).view(2, places, count)
    return Learned(ImageArray(patches_of, labels, names), rows[0], rows[1])


class PlaceSampler:
    """Batches of P places, every intact patch of each and every one with a defect.

    Args:
        intact: (C, n) int64, rows of the patches of each place.
        defective: (C, n) int64.
        places: P; where there are fewer, all of them.
        seed: of all epochs.
    """

    def __init__(self, intact: Tensor, defective: Tensor, places: int, seed: int) -> None:
        self.rows = torch.cat([intact, defective], 1)
        self.places, self.seed = min(places, len(self.rows)), seed

    def __len__(self) -> int:
        """Batches of an epoch; the last places, too few for a batch, take no part in it."""
        return len(self.rows) // self.places

    def epoch(self, epoch: int) -> list[Tensor]:
        """Rows of each batch, (P*2n,) int64."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        order = torch.randperm(len(self.rows), generator=generator)
        chosen = order[: len(self) * self.places].split(self.places)
        return [self.rows[places].flatten() for places in chosen]


def inspect(
    good: Tensor, again: Tensor, columns: range, side: int, count: int, kinds: Sequence[str],
    others: Sequence[Tensor], generator: torch.Generator,
) -> Inspection:  # fmt: skip
    """Cut patches of random places of a surface, intact ones and some with a defect.

    Args:
        good: (H, W) uint8, how the surface should be.
        again: (H, W) uint8, a second photograph of it, which is inspected.
        columns: what is looked at lies in these, references too.
        side: of a patch.
        count: of places.
        kinds: of defects; each is planted once at each place.
        others: pictures that foreign pieces are of.
        generator: of places and defects.

    Raises:
        InputError: the surface shows next to nothing there.
    """
    edge = max(BESIDE)
    reference: list[Tensor] = []
    found: dict[str, list[Tensor]] = {kind: [] for kind in ("intact", *kinds)}
    for _ in range(100 * count):
        if len(reference) == count:
            break
        top = edge + _whole(good.shape[0] - side - 2 * edge + 1, generator)
        left = columns.start + edge + _whole(len(columns) - side - 2 * edge + 1, generator)
        patch = _cut(again, top, left, side)
        if float(_cut(good, top, left, side).float().std()) < LEAST_DEVIATION:
            continue
        other = _somewhere(others, side, generator) if others else patch
        planted = {kind: plant(kind, patch, other, generator) for kind in kinds}
        shown = {kind: one for kind, one in planted.items() if one is not None}
        if len(shown) == len(kinds):
            reference.append(_around(good, top, left, side))
            for kind, one in {"intact": patch, **shown}.items():
                found[kind].append(one)
    if len(reference) < count:
        raise InputError(f"data: a surface has no {count} places on which something is to be seen")
    return Inspection(torch.stack(reference), {k: torch.stack(v) for k, v in found.items()})


def _around(good: Tensor, top: int, left: int, side: int) -> Tensor:
    """The patches of the good surface at a place and beside it: (9, S, S)."""
    return torch.stack([_cut(good, top + y, left + x, side) for y in BESIDE for x in BESIDE])


def surface(options: Anomaly, pictures: Pictures, name: str) -> Surface:
    """Photograph a surface again, and cut what is inspected of it."""
    number = 1 + list(pictures.unseen).index(name)
    generator = torch.Generator().manual_seed(options.train.seed + (number << 32))
    good = pictures.unseen[name]
    again = photograph_again(good, generator)
    others = [picture for other, picture in pictures.unseen.items() if other != name]
    width = good.shape[1]
    halves = ((range(width // 2), ()), (range(width // 2, width), pictures.kinds))
    quiet, tested = (
        inspect(good, again, columns, options.side, options.inspected, kinds, others, generator)
        for columns, kinds in halves
    )
    return Surface(good, again, quiet, tested)


# --- distances ------------------------------------------------------------------------------------


def nearest(embed: Embed, inspection: Inspection) -> dict[str, Tensor]:
    """Distance of each inspected patch to the nearest of its nine: (N,) float32 each, by kind."""
    count, beside = inspection.reference.shape[:2]
    reference = embed(inspection.reference.flatten(0, 1)).view(count, beside, -1)
    return {
        kind: siamcuda.squared_cdist(embed(patches).unsqueeze(1), reference).amin((1, 2)).sqrt()
        for kind, patches in inspection.inspected.items()
    }


def refusing(distances: Tensor, share: float) -> float:
    """The least of these distances (N,) that no more than ``share`` of them surpass."""
    beyond = math.floor(share * len(distances))
    return float(distances.sort().values[len(distances) - 1 - beyond])


def grey_levels(patches: Tensor) -> Tensor:
    """Pixels, each patch with mean 0 and deviation 1: (N, S, S) uint8 -> (N, S*S)."""
    return standardise(patches[:, None].float()).flatten(1)


def gradients(patches: Tensor) -> Tensor:
    """Histograms of gradients, 4x4 cells of 8 directions without sign, as HOG has them.

    (N, S, S) uint8 -> (N, 128), each patch's of length 1.
    """
    level = patches.float()
    down = level[:, 2:, 1:-1] - level[:, :-2, 1:-1]
    right = level[:, 1:-1, 2:] - level[:, 1:-1, :-2]
    direction = torch.atan2(down, right) % math.pi * (8 / math.pi)
    bins = functional.one_hot(direction.long().clamp(max=7), 8).permute(0, 3, 1, 2)
    steep = (down.square() + right.square()).sqrt()[:, None]
    cells = functional.adaptive_avg_pool2d(bins * steep, 4)
    return functional.normalize(cells.flatten(1))


def _figures(
    embed: Embed, surfaces: Mapping[str, Surface], false_alarms: float
) -> tuple[dict[str, Any], float, dict[str, dict[str, Tensor]]]:
    """What a way of comparing patches finds, its threshold, and distances by surface and kind."""
    quiet = torch.cat([nearest(embed, one.quiet)["intact"] for one in surfaces.values()])
    threshold = refusing(quiet, false_alarms)
    distances = {name: nearest(embed, one.tested) for name, one in surfaces.items()}
    kinds = [kind for kind in next(iter(distances.values())) if kind != "intact"]
    intact = torch.cat([one["intact"] for one in distances.values()])
    of_kind = {kind: torch.cat([one[kind] for one in distances.values()]) for kind in kinds}
    of_surface = {name: torch.cat([one[kind] for kind in kinds]) for name, one in distances.items()}
    defective = torch.cat(list(of_kind.values()))

    def refused(values: Tensor) -> float:
        return float((values > threshold).double().mean())

    return {
        "auc": _auc(intact, defective),
        "auc_by_kind": {kind: _auc(intact, values) for kind, values in of_kind.items()},
        "auc_by_surface": {
            name: _auc(distances[name]["intact"], values) for name, values in of_surface.items()
        },
        "threshold": threshold,
        "false_alarms": refused(intact),
        "found": refused(defective),
        "found_by_kind": {kind: refused(values) for kind, values in of_kind.items()},
    }, threshold, distances  # fmt: skip


def _auc(intact: Tensor, defective: Tensor) -> float:
    return verification.from_distances(intact, defective).auc


def _made(options: Anomaly, folder: RunFolder, pictures: Pictures) -> dict[str, Any]:
    config, spec, began = options.train, options.spec, time.perf_counter()
    surfaces = {name: surface(options, pictures, name) for name in pictures.unseen}
    known = learned_patches(options, list(pictures.known.values()))
    prepared = round(time.perf_counter() - began, 1)
    encoder = spec.build(config.seed)
    system = System(
        model=encoder,
        objective=options.objective,
        examples=known.patches,
        sampler=PlaceSampler(known.intact, known.defective, options.places_per_batch, config.seed),
        transform=ImageViews((options.side, options.side), options.augment),
    )
    title = f"{len(known.intact):,} places, {options.photographs} patches of each intact"
    trained_for = folder.fit(system, config, options.learned, title)
    started = time.perf_counter()
    trained = Siamese(spec, encoder)

    def embed(patches: Tensor) -> Tensor:
        return torch.cat([trained.encode(trained.views(part)) for part in patches.split(512)])

    figures, threshold, distances = _figures(embed, surfaces, options.false_alarms)
    plain = {"grey levels": grey_levels, "gradients": gradients}
    beside = {name: _figures(f, surfaces, options.false_alarms)[0] for name, f in plain.items()}
    replace(trained, threshold=threshold).save(folder.path)
    _draw(folder.path, options, pictures, surfaces, distances, threshold, embed)
    return {
        **figures,
        "beside": beside,
        "surfaces": list(surfaces),
        "places_train": len(known.intact),
        "patches_train": len(known.patches),
        "patches_test": sum(len(one) for by in distances.values() for one in by.values()),
        "false_alarms_asked": options.false_alarms,
        **trained_for,
        "seconds_preparing": prepared,
        "seconds_testing": round(time.perf_counter() - started, 1),
    }


# --- pictures -------------------------------------------------------------------------------------


def _draw(
    folder: Path, options: Anomaly, pictures: Pictures, surfaces: Mapping[str, Surface],
    distances: Mapping[str, Mapping[str, Tensor]], threshold: float, embed: Embed,
) -> None:  # fmt: skip
    """Write pairs of patches, maps of surfaces, and the histogram of distances."""
    left, right, captions = [], [], []
    centre = len(BESIDE) ** 2 // 2
    for kind in ("intact", *pictures.kinds):
        for number in range(_PAIRS):  # the first places of each surface in turn: none was chosen
            name = list(surfaces)[number % len(surfaces)]
            place = number // len(surfaces)
            tested = surfaces[name].tested
            distance = float(distances[name][kind][place])
            left.append(tested.reference[place, centre].numpy())
            right.append(tested.inspected[kind][place].numpy())
            captions.append(
                f"{kind}\n{distance:.2f} {'defect' if distance > threshold else 'fine'}"
            )
    title = f"The good surface and the inspected one; a distance above {threshold:.2f} is a defect"
    parts = grids.image_pairs(
        left, right, captions, title, len(captions), columns=_PAIRS, inverted=False
    )
    write_atomically(folder / "parts.png", parts)

    intact, defective = (
        torch.cat([
            values for one in distances.values() for kind, values in one.items()
            if (kind == "intact") == fine
        ])
        for fine in (True, False)
    )  # fmt: skip
    histogram = plots.distance_histogram(
        {"patches of surfaces never seen": (intact.numpy(), defective.numpy())},
        {"patches of surfaces never seen": {options.false_alarms: threshold}},
        "Distance to the good surface", kinds=("intact", "defective"), rate="false alarms",
    )  # fmt: skip
    write_atomically(folder / "distances.png", histogram)

    rows = [
        _mapped(options, pictures, name, one, number, embed)
        for number, (name, one) in enumerate(surfaces.items())
    ]
    write_atomically(
        folder / "map.png",
        grids.distance_maps(rows, threshold, "Planted defects (boxes) and what is found"),
    )


def _mapped(
    options: Anomaly, pictures: Pictures, name: str, one: Surface, number: int, embed: Embed
) -> grids.DistanceMap:
    """Plant one defect of each kind in a piece of a surface, and inspect all of the piece."""
    side, edge = options.side, max(BESIDE)
    generator = torch.Generator().manual_seed(options.train.seed + number)
    height, width = one.good.shape
    # Two lines of three places, in the right half, which gave no threshold.
    across, down = 3, 2
    cell = min((width - width // 2 - 2 * edge) // across, (height - 2 * edge) // down, 2 * side)
    top, left = edge, width - edge - across * cell
    good = one.good[: down * cell + 2 * edge, left - edge : left + across * cell + edge]
    changed = one.again.clone()
    others = [picture for other, picture in pictures.unseen.items() if other != name]
    boxes = []
    for place, kind in enumerate(pictures.kinds):
        y = top + place // across * cell + (cell - side) // 2
        x = left + place % across * cell + (cell - side) // 2
        planted = plant(
            kind, _cut(one.again, y, x, side), _somewhere(others, side, generator), generator
        )
        if planted is not None:
            changed[y : y + side, x : x + side] = planted
            boxes.append((y - top, x - left, side, kind))
    inspected = changed[top : top + down * cell, left : left + across * cell]
    tops, lefts = (range(0, extent - side + 1, _STEP) for extent in inspected.shape)
    reference = torch.stack([_around(good, edge + y, edge + x, side) for y in tops for x in lefts])
    patches = torch.stack([_cut(inspected, y, x, side) for y in tops for x in lefts])
    found = nearest(embed, Inspection(reference, {"all": patches}))["all"]
    return grids.DistanceMap(
        name, inspected.numpy(), found.view(len(tops), len(lefts)).numpy(), (side, _STEP), boxes
    )


def table(metrics: dict[str, Any]) -> str:
    """The figures, one column a way of comparing."""
    ways = {"siamcuda": metrics, **metrics["beside"]}
    lines = [f"{'AUC':<24}" + "".join(f"{name:>14}" for name in ways)]

    def line(name: str, values: Sequence[str]) -> None:
        lines.append(f"{name:<24}" + "".join(f"{value:>14}" for value in values))

    line("all", [f"{one['auc']:.3f}" for one in ways.values()])
    for by in ("auc_by_kind", "auc_by_surface"):
        for name in metrics[by]:
            line(f"  {name}", [f"{one[by][name]:.3f}" for one in ways.values()])
    line("found, %", [f"{100 * one['found']:.1f}" for one in ways.values()])
    line("false alarms, %", [f"{100 * one['false_alarms']:.1f}" for one in ways.values()])
    lines.append(
        f"({metrics['patches_test']:,} patches of {', '.join(metrics['surfaces'])}; "
        f"{metrics['patches_train']:,} patches of other pictures learned from; each threshold for "
        f"{100 * metrics['false_alarms_asked']:g} % false alarms on other intact patches; "
        f"{metrics['seconds_training']:.0f} s of training on {metrics['threads']} threads)"
    )
    return "\n".join(lines)


def headline(metrics: dict[str, Any]) -> str:
    """The figures that count, and those of the best plain way."""
    plain = metrics["beside"]["gradients"]
    return (
        f"AUC {metrics['auc']:.3f}, {100 * metrics['found']:.0f} % found at "
        f"{100 * metrics['false_alarms']:.1f} % false alarms (histograms of gradients: "
        f"{plain['auc']:.3f}, {100 * plain['found']:.0f} %, {100 * plain['false_alarms']:.1f} %)"
    )


RECIPE = Recipe(
    options=Anomaly,
    run=run,
    table=table,
    headline=headline,
    data="3 photographed textures never seen, defects planted",
    pictures={
        "map.png": "Surfaces with planted defects, and the distance of each place",
        "parts.png": "Inspected patches beside the good surface, with distance and verdict",
        "distances.png": "Distances of intact patches and of those with a defect",
    },
    quick=Anomaly(
        stride=96, inspected=20, encoder=EncoderConfig("fast", options={"width": 8}),
        train=TrainConfig(epochs=2, device="cpu"),
    ),
)  # fmt: skip
