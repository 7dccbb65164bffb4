"""Whether two patches show the same place: the two-channel network beside a plain Siamese one.

S. Zagoruyko and N. Komodakis (2015), "Learning to Compare Image Patches via Convolutional Neural
Networks": a network that sees both patches as channels of one image tells matches better than one
that encodes each by itself, at the price of a forward pass a pair. Both are trained here on the
same pairs, the first with the hinge on its score, the second with the contrastive loss on the
distance of its embeddings.

The figure is the false positive rate at 95 % recall (FPR95; M. Brown, G. Hua, S. Winder 2011):
the share of pairs of two places that are taken for one, at the threshold that accepts 95 % of the
true matches. Half of the test pairs are matches; of the others half are near, 16 to 48 pixels off
in each of two directions at most and in at least one, so that the patches overlap, and half lie
anywhere in the same picture, 64 pixels off or more. The field's own sets have far ones alone.

It is tested on a stereo pair, patches of which match by its measured disparity (occluded places
are left out), and on two photographs whose patches are warped and relit by chance, as those that
were learned from are: affine maps, gamma, noise. All photographs are of scikit-image; nothing of
the stereo pair or of the tested photographs is learned from. The paper trains on half a million
matches of three photo-tourism scenes, which no package carries, so its figures are of other data
and none is printed beside these. Only places with some contrast count: the standard deviation of
a patch's grey is at least 10 of 255. The score of the two-channel network is the mean of both
orders. "pixels" is the distance of the patches themselves, mean and contrast taken away: the best
that normalised correlation does. Settings are to be chosen with ``--validate``: two of the
photographs that are learned from are tested on instead, and the stereo pair isn't looked at.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import siamcuda
from siamcuda import verification
from siamcuda._files import write_atomically
from siamcuda.report import grids, plots
from siamcuda.train.augment import Augmentation, ImageViews
from siamcuda.train.config import TrainConfig, check_least
from siamcuda.train.data import StereoPair, WindowPairs, load_stereo
from siamcuda.train.encoders import Branches, EncoderConfig, EncoderSpec, InputSpec
from siamcuda.train.encoders.layers import standardise
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import LabelledPairs, PairScores
from siamcuda.train.recipes import Recipe
from siamcuda.train.recipes._photographs import read_photographs
from siamcuda.train.runs import RunFolder, RunOptions
from siamcuda.train.samplers import ShuffledSampler
from siamcuda.train.siamese import Siamese
from siamcuda.train.system import System, Transform
from siamcuda.verification import VerificationReport

__all__ = ["RECIPE", "TwoChannelPatches", "draw_pairs", "matches", "run", "table"]

#: Height and width of a patch, and of the window around it that random views may show a part of.
PATCH, WINDOW = 64, 104
#: Least standard deviation of a patch's grey, of 255.
CONTRAST = 10.0
#: Rows or columns by which the patches of a near pair are off, and of a far one at least.
NEAR, FAR = (16, 48), 64
RECALL = 0.95
PATCHES = InputSpec(1, PATCH, PATCH)
VERDICTS = ("similar", "dissimilar")
#: Pairs in the picture of mistakes.
SHOWN = 20
#: False accept rate of two patches at the threshold that is kept with the plain Siamese encoder.
#: It, and the calibrator, come from the tested pairs, which the reported figures are of too.
STORED_FAR = 0.01
#: What is compared, as the figures call them.
NETWORKS = {"two_channel": "two-channel", "siamese": "plain Siamese", "pixels": "pixels"}
#: A camera that moved a little, another exposure.
VIEWS = Augmentation(
    rotate=12.0, shift=0.02, scale=0.12, shear=0.12, gamma=0.4, noise=0.03, erase=0.0, flip=0.0
)


@dataclass(frozen=True)
class TwoChannelPatches(RunOptions):
    """Patches of one place or of two: a two-channel network and a plain Siamese one."""

    out: Path = Path("runs/two-channel-patches")  # run folder; an interrupted run there goes on
    validate: bool = False  # never look at the test pictures: keep some of the others for that
    pairs: int = 16_000  # to learn from; their views are new in every epoch
    test_pairs: int = 4000  # of each tested picture
    batch: int = 128  # pairs
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig("two-channel"))
    objective: PairScores = field(default_factory=lambda: PairScores("hinge"))
    siamese_encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig("patch"))
    siamese_objective: LabelledPairs = field(default_factory=LabelledPairs)
    augment: Augmentation = VIEWS
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=3, learning_rate=1e-3, device="cpu")
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_least(self, pairs=4, test_pairs=4, batch=2)
        if self.encoder.name != "two-channel":
            raise InputError(f"encoder: two-channel is expected, got {self.encoder.name!r}")
        for config in (self.encoder, self.siamese_encoder):
            EncoderSpec(config, PATCHES).build(seed=0)  # an error comes before any folder
        super().check()

    @property
    def views(self) -> ImageViews:
        """Windows to patches."""
        return ImageViews((PATCH, PATCH), self.augment, PATCH / WINDOW)


# --- pairs ----------------------------------------------------------------------------------------


def contrasts(picture: Tensor, patch: int = PATCH) -> Tensor:
    """Standard deviation of each patch: (1, H, W) uint8 -> (H - patch + 1, W - patch + 1)."""

    def means(values: Tensor) -> Tensor:
        columns = functional.avg_pool2d(values, (1, patch), 1)
        return functional.avg_pool2d(columns, (patch, 1), 1)[0]

    grey = picture.double() - 128  # squares of less: their differences keep more digits
    return (means(grey.square()) - means(grey).square()).clamp(min=0).sqrt()


def draw_pairs(
    fine: Tensor, matched: Tensor, generator: torch.Generator, count: int
) -> tuple[Tensor, Tensor]:
    """Draw pairs of places: half match, a quarter is near, a quarter far.

    Args:
        fine: (H, W) bool, where the second patch may have its corner.
        matched: (M, 4) int64, corners of patches that match: row and column of the first, row and
            column of the second, which is fine.
        generator: source of it all.
        count: N pairs.

    Returns:
        corners (N, 2, 2) int64 and y (N,) int64, 0 for a match; first the matches, then near
        pairs, then far ones.

    Raises:
        InputError: no two places match, or none is near or far enough.
    """
    if not len(matched):
        raise InputError("data: no place of a picture has a match with enough contrast")
    near = count // 4
    far = count // 4
    chosen = torch.randint(len(matched), (count - near - far,), generator=generator)
    found = [matched[chosen]]
    size = torch.tensor(fine.shape)
    for wanted, least, most in ((near, NEAR[0], NEAR[1]), (far, FAR, int(size.max()))):
        kept = matched[:0]
        for _ in range(200):
            if len(kept) >= wanted:
                break
            drawn = matched[torch.randint(len(matched), (4 * wanted,), generator=generator)]
            off = torch.randint(-most, most + 1, (len(drawn), 2), generator=generator)
            place = drawn[:, 2:] + off
            good = (off.abs().amax(1) >= least) & ((place >= 0) & (place < size)).all(1)
            drawn, place = drawn[good], place[good]
            good = fine[place[:, 0], place[:, 1]]
            kept = torch.cat([kept, torch.cat([drawn[good, :2], place[good]], 1)])
        if len(kept) < wanted:
            raise InputError(f"data: a picture has no two places {least} to {most} pixels apart")
        found.append(kept[:wanted])
    corners = torch.cat(found).unflatten(1, (2, 2))
    return corners, (torch.arange(count) >= count - near - far).long()


def matches(stereo: StereoPair, patch: int = PATCH) -> tuple[Tensor, Tensor]:
    """Corners of patches of a stereo pair whose middles show the same: see draw_pairs.

    Returns:
        fine (H - patch + 1, W - patch + 1) bool of the right picture, and matched (M, 4) int64.
    """
    disparity = stereo.disparity.nan_to_num(nan=-1.0).round().long()  # (H, W)
    row, column = torch.nonzero(disparity >= 0, as_tuple=True)
    shift = disparity[row, column]
    seen = column - shift
    inside = seen >= 0
    row, column, shift, seen = (t[inside] for t in (row, column, shift, seen))
    # Of places that fall on one column of the right picture the nearest hides the others.
    nearest = torch.zeros_like(disparity).flatten()
    index = row * disparity.shape[1] + seen
    nearest.scatter_reduce_(0, index, shift, "amax")
    visible = shift >= nearest[index] - 1
    half = patch // 2
    corners = torch.stack([row - half, column - half, row - half, seen - half], 1)[visible]
    fine = [contrasts(grey(picture), patch) >= CONTRAST for picture in (stereo.left, stereo.right)]
    size = torch.tensor(fine[0].shape).repeat(2)
    corners = corners[((corners >= 0) & (corners < size)).all(1)]
    good = fine[0][corners[:, 0], corners[:, 1]] & fine[1][corners[:, 2], corners[:, 3]]
    return fine[1], corners[good]


def grey(picture: Tensor) -> Tensor:
    """(3, H, W) uint8 -> (1, H, W) uint8, the luma of ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    return (picture.float() * weights[:, None, None]).sum(0, keepdim=True).round().byte()


def photograph_pairs(pictures: Mapping[str, Tensor], count: int, seed: int) -> WindowPairs:
    """Pairs of windows of photographs, as many of each, the matches at one place."""
    generator = torch.Generator().manual_seed(seed)
    border = (WINDOW - PATCH) // 2
    corners, labels = [], []
    shares = torch.tensor_split(torch.arange(count), len(pictures))
    for number, ((name, picture), share) in enumerate(zip(pictures.items(), shares, strict=True)):
        inner = picture[:, border:-border, border:-border]
        if min(inner.shape[1:]) < PATCH:
            raise InputError(f"data: {name}: at least {WINDOW} x {WINDOW} pixels are needed")
        fine = contrasts(inner) >= CONTRAST
        places = torch.nonzero(fine)
        drawn, y = draw_pairs(fine, places.repeat(1, 2), generator, len(share))
        corners.append(functional.pad(drawn, (1, 0), value=number))
        labels.append(y)
    return WindowPairs(
        list(pictures.values()), torch.cat(corners), torch.cat(labels), VERDICTS, (WINDOW, WINDOW)
    )


def stereo_pairs(stereo: StereoPair, count: int, seed: int) -> WindowPairs:
    """Pairs of a patch of the left picture and one of the right."""
    generator = torch.Generator().manual_seed(seed)
    fine, matched = matches(stereo)
    corners, labels = draw_pairs(fine, matched, generator, count)
    which = torch.tensor([[0], [1]]).expand(count, 2, 1)
    pictures = [grey(stereo.left), grey(stereo.right)]
    return WindowPairs(pictures, torch.cat([which, corners], 2), labels, VERDICTS, (PATCH, PATCH))


# --- training and testing -------------------------------------------------------------------------


def run(options: TwoChannelPatches) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    known, unseen = read_photographs(options.validate, channels=1)
    seed = options.train.seed
    learned = photograph_pairs(known, options.pairs, seed)
    tests = {
        name: photograph_pairs({name: picture}, options.test_pairs, seed + 1)
        for name, picture in unseen.items()
    }
    if not options.validate:
        tests = {"stereo": stereo_pairs(load_stereo(), options.test_pairs, seed + 1), **tests}
    own = {
        "recipe": "two-channel-patches",
        "batch": options.batch,
        "augment": asdict(options.augment),
    }
    config = options.config(
        **own,
        encoder=options.encoder.as_json(),
        objective=asdict(options.objective),
        siamese_encoder=options.siamese_encoder.as_json(),
        siamese_objective=asdict(options.siamese_objective),
        learned=learned.digest(),
        tests={name: pairs.digest() for name, pairs in tests.items()},
    )
    folder = RunFolder(options.out, ("roc.png", "mistakes.png"))
    return folder.complete(
        options, config,
        lambda: _made(options, folder, config, own, learned, tests),
    )  # fmt: skip


def _made(
    options: TwoChannelPatches, folder: RunFolder, config: dict[str, Any], own: dict[str, Any],
    learned: WindowPairs, tests: Mapping[str, WindowPairs],
) -> dict[str, Any]:  # fmt: skip
    plain = RunFolder(folder.path / "siamese", ("roc.png",))
    plain.claim(config, options.fresh)
    seed = options.train.seed
    pair_spec = EncoderSpec(options.encoder, PATCHES)
    patch_spec = EncoderSpec(options.siamese_encoder, PATCHES)
    network, encoder = pair_spec.build(seed), patch_spec.build(seed)

    def system(model: nn.Module, objective: Any) -> System:
        sampler = ShuffledSampler(len(learned), options.batch, seed)
        return System(model, objective, learned, sampler, in_any_order(options.views))

    both = folder.fit(
        system(network, options.objective), options.train,
        {**own, "encoder": options.encoder.as_json(), "objective": asdict(options.objective)},
        f"Two-channel network on {len(learned):,} pairs of patches", bar="two-channel",
    )  # fmt: skip
    single = plain.fit(
        system(Branches(encoder), options.siamese_objective), options.train,
        {
            **own, "encoder": options.siamese_encoder.as_json(),
            "objective": asdict(options.siamese_objective),
        },
        f"Plain Siamese network on {len(learned):,} pairs of patches", bar="plain Siamese",
    )  # fmt: skip
    started = time.perf_counter()
    distances = {
        name: compared(network, encoder, pairs, options.views, seed)
        for name, pairs in tests.items()
    }
    reports = {
        name: {
            kind: verification.from_distances(d[pairs.labels == 0], d[pairs.labels == 1])
            for kind, d in distances[name].items()
        }
        for name, pairs in tests.items()
    }
    Siamese(pair_spec, network).save(folder.path)
    trained = Siamese(patch_spec, encoder, stored=(PATCH, PATCH), fit="crop")
    first = next(iter(tests))
    trained.calibrated(reports[first]["siamese"], STORED_FAR).save(plain.path)
    figures = {
        name: {
            kind: rates(d, tests[name].labels, reports[name][kind]) for kind, d in of_kind.items()
        }
        for name, of_kind in distances.items()
    }
    _draw(folder.path, tests[first], distances[first], reports[first], first)
    plain.finish({**single, "figures": {n: f["siamese"] for n, f in figures.items()}})
    return {
        "fpr95": figures,
        "pairs_train": len(learned),
        "pairs_test": options.test_pairs,
        **both,
        "seconds_training": round(both["seconds_training"] + single["seconds_training"], 1),
        "seconds_training_two_channel": both["seconds_training"],
        "seconds_testing": round(time.perf_counter() - started, 1),
    }


def in_any_order(views: Transform) -> Transform:
    """Views of pairs (B, 2, ...) of which about half are the other way round."""

    def transform(stored: Tensor, generator: torch.Generator | None) -> Tensor:
        patches = views(stored, generator)
        turned = torch.rand(len(patches), generator=generator) < 0.5
        return torch.where(turned[:, None, None, None, None], patches.flip(1), patches)

    return transform


@torch.inference_mode()
def compared(
    network: nn.Module, encoder: nn.Module, pairs: WindowPairs, views: ImageViews, seed: int
) -> dict[str, Tensor]:
    """Distances of test pairs by each of NETWORKS, (N,) each.

    Windows larger than a patch become random views, of a seed of their own; windows of its size
    are patches as they are.
    """
    generator = torch.Generator().manual_seed((1 << 50) + seed)
    found: dict[str, list[Tensor]] = {kind: [] for kind in NETWORKS}
    for rows in torch.arange(len(pairs)).split(256):
        stored = pairs.load(rows)
        plain = pairs.size == (PATCH, PATCH)
        patches = stored.float() / 255 if plain else views(stored, generator)
        found["two_channel"].append(-(network(patches) + network(patches.flip(1))) / 2)
        halves = [encoder(half) for half in patches.unbind(1)]
        found["siamese"].append(siamcuda.squared_l2(*halves).sqrt())
        pixels = [standardise(half).flatten(1) for half in patches.unbind(1)]
        found["pixels"].append(siamcuda.squared_l2(*pixels).sqrt())
    return {kind: torch.cat(parts) for kind, parts in found.items()}


def rates(distances: Tensor, labels: Tensor, report: VerificationReport) -> dict[str, float]:
    """False positive rates at RECALL: of all pairs of two places, of the near, of the far ones.

    Pairs are in the order of draw_pairs.
    """
    curve = report.roc()
    first = int((curve.rate >= RECALL).argmax())
    threshold = float(curve.threshold[first])
    near, far = (distances[labels == 1] <= threshold).double().tensor_split(2)
    return {
        "all": float(curve.far[first]),
        "near": float(near.mean()),
        "far": float(far.mean()),
        "auc": report.auc,
    }


def _draw(
    folder: Path, pairs: WindowPairs, distances: Mapping[str, Tensor],
    reports: Mapping[str, VerificationReport], source: str,
) -> None:  # fmt: skip
    curves = plots.roc(
        {NETWORKS[kind]: [report] for kind, report in reports.items()}, {},
        f"Patches of one place or of two: {source}, never seen in training",
    )  # fmt: skip
    write_atomically(folder / "roc.png", curves)
    rows = hardest(distances["two_channel"], pairs.labels, SHOWN // 2)
    stored = pairs.load(rows)
    cut = (stored.shape[-1] - PATCH) // 2  # windows are shown without what views may show
    patches = stored[..., cut : cut + PATCH, cut : cut + PATCH].permute(0, 1, 3, 4, 2)
    left, right = (list(half.expand(-1, -1, -1, 3).numpy()) for half in patches.unbind(1))
    captions = ["one place" if y == 0 else "two places" for y in pairs.labels[rows].tolist()]
    title = f"{source}: the matches that score worst, and the pairs of two places that score best"
    picture = grids.image_pairs(left, right, captions, title, inverted=False)
    write_atomically(folder / "mistakes.png", picture)


def hardest(distances: Tensor, labels: Tensor, count: int) -> Tensor:
    """Rows of the ``count`` matches farthest apart, then of the other pairs closest together."""
    order = distances.argsort(stable=True)
    of_order = labels[order]
    return torch.cat([order[of_order == 0].flip(0)[:count], order[of_order == 1][:count]])


def table(metrics: dict[str, Any]) -> str:
    """The figures in a few lines."""
    lines = [
        "false positive rate at 95 % recall, %, of pairs of two places",
        f"{'':<12}{'':<16}{'all':>8}{'near':>8}{'far':>8}{'AUC':>9}",
    ]
    for source, kinds in metrics["fpr95"].items():
        for kind, found in kinds.items():
            cells = "".join(f"{100 * found[part]:>8.2f}" for part in ("all", "near", "far"))
            lines.append(f"{source:<12}{NETWORKS[kind]:<16}{cells}{found['auc']:>9.4f}")
    lines.append(
        f"({metrics['pairs_train']:,} pairs learned from, {metrics['pairs_test']:,} tested a "
        f"source; {metrics['epochs']} epochs of each network, {metrics['seconds_training']:.0f} s "
        f"of training on {metrics['threads']} threads)"
    )
    return "\n".join(lines)


def headline(metrics: dict[str, Any]) -> str:
    """The figure that counts, of the first source."""
    source, kinds = next(iter(metrics["fpr95"].items()))
    pair, plain = (100 * kinds[kind]["all"] for kind in ("two_channel", "siamese"))
    return f"FPR95 {pair:.1f} % ({source}), a plain Siamese network {plain:.1f} %"


RECIPE = Recipe(
    options=TwoChannelPatches,
    run=run,
    table=table,
    headline=headline,
    data="scikit-image's photographs; tested on a stereo pair and others",
    pictures={
        "roc.png": "Matches of the stereo pair that are found, by false positives",
        "mistakes.png": "Where the two-channel network errs most, in the same places",
        "training.png": "Loss and accuracy of the two-channel network by epoch",
    },
    quick=TwoChannelPatches(pairs=256, test_pairs=64, train=TrainConfig(epochs=1, device="cpu")),
)
