"""Signatures, or fingerprints, of writers never seen: genuine or forged, by a Siamese network.

J. Bromley, I. Guyon, Y. LeCun, E. Säckinger, R. Shah, *Signature Verification using a "Siamese"
Time Delay Neural Network* (NIPS 1993), and for scanned ones S. Dey, A. Dutta, J. I. Toledo,
S. K. Ghosh, J. Lladós, U. Pal, *SigNet: Convolutional Siamese Network for Writer Independent
Offline Signature Verification* (2017): a convnet learns by the contrastive loss of pairs, half of
them of one writer, the others genuine and forged, a fifth of these of two writers.

Data is a folder that is given; none comes with any package, so no figure of real signatures is
shown here. The last ten writers are tested on and never learned from. Genuine: every two of a
writer's own. Skilled: every genuine one with every one that was forged of it. Random: genuine ones
of two writers. Each kind of impostor has its EER against the same genuine pairs. Five other writers
say which epoch's weights stay and give the threshold (that of their EER against skilled forgeries)
whose false accepts and rejects are counted among the tested. Fingers without forgeries have the
random pairs alone.

Unlike SigNet: a smaller convnet at 64 x 128 pixels instead of 155 x 220, and rates at a threshold
of other writers beside those at the best one. Bromley's network followed the pen on a tablet; this
one sees the ink. The settings were tried on curves that a program draws (``--drawn``) and nothing
else: choose them anew for real signatures, with ``--validate``, which leaves the tested writers
alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from siamcuda import verification
from siamcuda._files import write_atomically
from siamcuda.report import grids, plots
from siamcuda.train.augment import Augmentation, ImageViews
from siamcuda.train.config import TrainConfig, check_least
from siamcuda.train.data import ImageArray, Signatures, load_signatures
from siamcuda.train.encoders import EncoderConfig, EncoderSpec, InputSpec
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import DrawnPairs
from siamcuda.train.placement import rank_and_ranks
from siamcuda.train.recipes import Recipe
from siamcuda.train.recipes._pretend import draw_signatures
from siamcuda.train.runs import RunFolder, RunOptions
from siamcuda.train.samplers import epoch_seed
from siamcuda.train.siamese import Siamese
from siamcuda.train.system import System
from siamcuda.verification import Calibrator, VerificationReport

__all__ = ["RECIPE", "Signature", "SignatureSampler", "Trials", "compare_all", "run", "table"]

#: A signature is twice as wide as it is high, or nearly so.
INK = InputSpec(1, 64, 128)
#: Kinds of impostors, as metrics.json calls them and as people do.
KINDS = {"skilled": "skilled forgeries", "random": "other writers' signatures"}
#: Pretend writers to learn from.
LEARNED = 10
#: Pairs of a kind that errors.png shows, in one line.
HARDEST = 8

_NO_DATA = (
    "data: signatures are to be given, since no package carries any: for example CEDAR's "
    "(signatures.rar of the University at Buffalo, 55 writers), a folder with "
    "full_org/original_WRITER_NUMBER.png and full_forg/forgeries_WRITER_NUMBER.png; or your own, "
    "as WRITER/genuine/* and WRITER/forged/*, or FINGER/genuine/* alone: --data FOLDER"
)


@dataclass(frozen=True)
class Signature(RunOptions):
    """Learn to tell genuine signatures from forged ones, and verify writers never seen."""

    out: Path = Path("runs/signature")  # run folder; a run that was interrupted there goes on
    data: Path | None = None  # CEDAR's two folders, or WRITER/genuine and WRITER/forged
    drawn: bool = False  # pretend signatures, drawn: a trial, whose figures mean nothing
    test_writers: int = 10  # the last writers: tested on, and nothing else
    validation_writers: int = 5  # those before: they say which epoch to keep and when to accept
    validate: bool = False  # never look at the test writers: report the validation writers' figures
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig("fast"))
    objective: DrawnPairs = field(default_factory=DrawnPairs)
    pairs_per_batch: int = 64
    strangers: float = 0.2  # share of the impostor pairs that are of two writers, none of it forged
    augment: Augmentation = field(
        default_factory=lambda: Augmentation(
            rotate=5.0, shift=0.04, scale=0.1, shear=0.1, gamma=0.2, noise=0.02, erase=0.0, flip=0.0
        )
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=20, patience=8, device="cpu")
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        if self.data is None and not self.drawn:
            raise InputError(_NO_DATA)
        if self.data is not None and self.drawn:
            raise InputError("drawn: signatures are either drawn or given by data, not both")
        check_least(self, test_writers=2, validation_writers=2, pairs_per_batch=2)
        if not 0 <= self.strangers <= 1:
            raise InputError(f"strangers: must lie in [0, 1], got {self.strangers}")
        self.spec.build(seed=0)  # an error comes before any folder
        super().check()

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder is and takes."""
        return EncoderSpec(self.encoder, INK)


class Part(NamedTuple):
    """Some writers: their files, which know the pairs, and the same images in memory."""

    files: Signatures
    images: ImageArray


class Trials(NamedTuple):
    """Distances of pairs of signatures, and which rows they are of."""

    genuine: Tensor  # (G,) of one writer
    impostor: dict[str, Tensor]  # kind -> (I,); a kind without a pair is left out
    pairs: dict[str, Tensor]  # "genuine" or kind -> (G, 2) or (I, 2) rows

    def report(self, kind: str) -> VerificationReport:
        """Error rates of the genuine pairs against a kind of impostors."""
        return verification.from_distances(self.genuine, self.impostor[kind])

    @property
    def hardest(self) -> str:
        """The kind that says when to stop and when to accept: skilled where there is one."""
        return next(iter(self.impostor))


class SignatureSampler:
    """Batches of pairs: M left ones, then M right ones; half of the pairs of one writer.

    The others are genuine and forged, and a share of them genuine ones of two writers. Where
    nothing was forged, all of the others are of two writers. Each rank takes its share of a batch.

    Args:
        signatures: what is drawn from.
        pairs: M.
        strangers: that share.
        seed: of all epochs.

    Raises:
        InputError: one writer alone, or nobody with two genuine signatures.
    """

    def __init__(self, signatures: Signatures, pairs: int, strangers: float, seed: int) -> None:
        left, right, y = signatures.pairs()
        listed = torch.stack([left, right], 1)
        self.same, self.forged = listed[y == 0], listed[y == 1]
        genuine = torch.nonzero(~signatures.forged)[:, 0]
        self.by_writer = [
            genuine[signatures.labels[genuine] == label]
            for label in signatures.labels[genuine].unique()
        ]
        if len(self.by_writer) < 2 or not len(self.same):
            raise InputError("data: to learn takes two writers, and one with two genuine images")
        self.pairs, self.seed = pairs, seed
        self.strangers = strangers if len(self.forged) else 1.0
        self.batches = max(1, round(len(signatures) / (2 * pairs)))

    def __len__(self) -> int:
        """Batches of an epoch; one shows about as many images as there are."""
        return self.batches

    def epoch(self, epoch: int) -> list[Tensor]:
        """Rows of each batch, (2M,) int64."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        return [self._batch(generator) for _ in range(self.batches)]

    def _batch(self, generator: torch.Generator) -> Tensor:
        def drawn(listed: Tensor, count: int) -> Tensor:
            return listed[torch.randint(max(len(listed), 1), (count,), generator=generator)]

        impostors = self.pairs // 2
        strange = round(self.strangers * impostors)
        strangers = [self._strangers(generator) for _ in range(strange)]
        chosen = torch.cat([
            drawn(self.same, self.pairs - impostors),
            drawn(self.forged, impostors - strange),
            torch.tensor(strangers, dtype=torch.int64).reshape(-1, 2),
        ])  # fmt: skip
        rank, ranks = rank_and_ranks()
        return chosen[rank::ranks].T.reshape(-1)

    def _strangers(self, generator: torch.Generator) -> list[int]:
        two = torch.randperm(len(self.by_writer), generator=generator)[:2].tolist()
        rows = (self.by_writer[writer] for writer in two)
        return [int(own[torch.randint(len(own), (), generator=generator)]) for own in rows]


def run(options: Signature) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    if options.data is not None:
        return _run(options, options.data)
    with tempfile.TemporaryDirectory() as folder:
        draw_signatures(Path(folder), options.test_writers + options.validation_writers + LEARNED)
        return _run(options, Path(folder))


def _run(options: Signature, data: Path) -> dict[str, Any]:
    known, kept, unseen = (Part(files, files.in_memory()) for files in _split(options, data))
    sampler = SignatureSampler(
        known.files, options.pairs_per_batch, options.strangers, options.train.seed
    )
    config = options.config(
        recipe="signature",
        drawn=options.drawn,
        validate=options.validate,
        encoder=options.encoder.as_json(),
        objective=asdict(options.objective),
        pairs_per_batch=options.pairs_per_batch,
        strangers=options.strangers,
        augment=asdict(options.augment),
        known=known.images.digest(),
        kept=kept.images.digest(),
        unseen=unseen.images.digest(),
    )
    folder = RunFolder(options.out, ("roc.png", "histogram.png", "errors.png"))
    return folder.complete(
        options, config,
        lambda: _made(options, folder, config, sampler, known, kept, unseen),
    )  # fmt: skip


def _split(options: Signature, data: Path) -> tuple[Signatures, Signatures, Signatures]:
    """Signatures to learn from, to validate by and to test on, each writer in one alone."""
    signatures = load_signatures(data, (INK.height, INK.width))
    writers, tested = signatures.writers, options.test_writers
    needed = tested + options.validation_writers + 2
    if len(writers) < needed:
        raise InputError(
            f"data: {len(writers)} writers are too few to test on {tested} of them, keep "
            f"{options.validation_writers} for validation and learn from two"
        )
    others = writers[:-tested]
    known, kept = others[: -options.validation_writers], others[-options.validation_writers :]
    unseen = kept if options.validate else writers[-tested:]
    parts = signatures.by(known), signatures.by(kept), signatures.by(unseen)
    for part in parts:
        if not (part.pairs().labels == 0).any():
            raise InputError(
                f"data: none of the writers {', '.join(part.writers)} has two genuine images"
            )
    return parts


def _made(
    options: Signature, folder: RunFolder, config: dict[str, Any], sampler: SignatureSampler,
    known: Part, kept: Part, unseen: Part,
) -> dict[str, Any]:  # fmt: skip
    def validate(model: nn.Module) -> dict[str, float]:
        trials = compare_all(Siamese(options.spec, model), kept)
        return {"eer": trials.report(trials.hardest).eer}

    system = System(
        model=options.spec.build(options.train.seed),
        objective=options.objective,
        examples=known.images,
        sampler=sampler,
        transform=ImageViews((INK.height, INK.width), options.augment),
        validate=validate,
    )
    title = f"Pairs of {len(known.files):,} signatures of {len(known.files.writers)} writers"
    trained_for = folder.fit(system, options.train, config, title)
    started = time.perf_counter()
    trained = Siamese(options.spec, system.model)
    chosen = compare_all(trained, kept)
    before = chosen.report(chosen.hardest)
    threshold = before.eer_threshold
    replace(
        trained, threshold=threshold, far=before.rates(threshold)[0],
        calibrator=Calibrator.fit(before),
    ).save(folder.path)  # fmt: skip
    trials = compare_all(trained, unseen)
    reports = {kind: trials.report(kind) for kind in trials.impostor}
    _draw(folder.path, unseen, trials, reports, threshold)
    return {
        **{kind: _figures(report) for kind, report in reports.items()},
        "at_stored_threshold": {
            "frr": next(iter(reports.values())).rates(threshold)[1],
            "far": {kind: report.rates(threshold)[0] for kind, report in reports.items()},
        },
        "writers_train": len(known.files.writers),
        "writers_validation": len(kept.files.writers),
        "writers_test": len(unseen.files.writers),
        "images_train": len(known.files),
        "drawn": options.drawn,
        "validate": options.validate,
        **trained_for,
        "seconds_testing": round(time.perf_counter() - started, 1),
    }


def compare_all(trained: Siamese, part: Part) -> Trials:
    """Compare all pairs of a kind: genuine ones, genuine and forged, genuine of two writers."""
    embeddings = trained.embed(part.images)
    left, right, y = part.files.pairs()
    genuine = torch.nonzero(~part.files.forged)[:, 0]
    i, j = torch.triu_indices(len(genuine), len(genuine), offset=1)
    apart = part.files.labels[genuine[i]] != part.files.labels[genuine[j]]
    listed = torch.stack([left, right], 1)
    pairs = {
        "genuine": listed[y == 0],
        "skilled": listed[y == 1],
        "random": torch.stack([genuine[i[apart]], genuine[j[apart]]], 1),
    }
    distances = {
        kind: trained.distances(embeddings[rows[:, 0]], embeddings[rows[:, 1]])
        for kind, rows in pairs.items()
    }
    impostor = {kind: distances[kind] for kind in KINDS if len(pairs[kind])}
    return Trials(distances["genuine"], impostor, pairs)


def _figures(report: VerificationReport) -> dict[str, Any]:
    return {
        "eer": report.eer,
        "auc": report.auc,
        "genuine": report.genuine,
        "impostor": report.impostor,
    }


def _draw(
    folder: Path, part: Part, trials: Trials, reports: Mapping[str, VerificationReport],
    threshold: float,
) -> None:  # fmt: skip
    what = f"{len(part.files.writers)} writers never seen in training"
    curves = {KINDS[kind]: [report] for kind, report in reports.items()}
    write_atomically(folder / "roc.png", plots.roc(curves, {}, f"Verification, {what}"))
    arrays = {
        KINDS[kind]: (trials.genuine.numpy(), impostor.numpy())
        for kind, impostor in trials.impostor.items()
    }
    lines = {
        KINDS[kind]: {report.rates(threshold)[0]: threshold} for kind, report in reports.items()
    }
    histogram = plots.distance_histogram(arrays, lines, f"Distances, {what}")
    write_atomically(folder / "histogram.png", histogram)
    kind = trials.hardest
    far = trials.genuine.argsort(descending=True, stable=True)[:HARDEST]
    near = trials.impostor[kind].argsort(stable=True)[:HARDEST]
    rows = torch.cat([trials.pairs["genuine"][far], trials.pairs[kind][near]])
    distances = torch.cat([trials.genuine[far], trials.impostor[kind][near]]).tolist()
    names = [part.files.names[label] for label in part.files.labels[rows[:, 0]].tolist()]
    left, right = (list(part.images.load(side)[:, 0].numpy()) for side in rows.T)
    captions = [f"{name}: {d:.2f}" for name, d in zip(names, distances, strict=True)]
    title = f"Genuine pairs farthest apart, then the closest {KINDS[kind]}: distances"
    picture = grids.image_pairs(left, right, captions, title, inverted=False, columns=HARDEST)
    write_atomically(folder / "errors.png", picture)


def table(metrics: dict[str, Any]) -> str:
    """The figures in a few lines."""
    lines = [f"{'':<28}{'EER, %':>8}{'AUC':>9}{'FAR, %':>9}{'pairs':>10}"]
    stored = metrics["at_stored_threshold"]
    for kind, called in KINDS.items():
        if kind in metrics:
            one = metrics[kind]
            lines.append(
                f"{called:<28}{100 * one['eer']:>8.2f}{one['auc']:>9.4f}"
                f"{100 * stored['far'][kind]:>9.2f}{one['impostor']:>10,}"
            )
    genuine = next(metrics[kind]["genuine"] for kind in KINDS if kind in metrics)
    who = "kept for validation" if metrics["validate"] else "never seen"
    lines += [
        f"(FAR where the validation writers' errors are equal; there {100 * stored['frr']:.2f} % "
        f"of {genuine:,} genuine pairs are rejected;",
        f"{metrics['writers_test']} writers {who}, {metrics['writers_train']} learned from, "
        f"{metrics['writers_validation']} kept for validation; {metrics['epochs']} epochs, "
        f"{metrics['seconds_training']:.0f} s of training)",
    ]
    if metrics["drawn"]:
        lines.append("These signatures were drawn by a program: the figures mean nothing.")
    return "\n".join(lines)


def headline(metrics: dict[str, Any]) -> str:
    """The figures that count."""
    rates = ", ".join(f"EER {100 * metrics[kind]['eer']:.1f} % against {called}"
                      for kind, called in KINDS.items() if kind in metrics)  # fmt: skip
    return f"{rates}{' (drawn)' if metrics['drawn'] else ''}"


RECIPE = Recipe(
    options=Signature,
    run=run,
    table=table,
    headline=headline,
    data="signatures, a folder that you give",
    pictures={
        "roc.png": "Verification of writers never seen, against both kinds of impostors",
        "histogram.png": "Distances of their pairs, and the threshold of the validation writers",
        "errors.png": "The pairs of each kind that are hardest",
        "training.png": "Loss, distances and the error of the validation writers by epoch",
    },
    quick=Signature(
        drawn=True, test_writers=2, validation_writers=2, pairs_per_batch=16,
        train=TrainConfig(epochs=2, device="cpu"),
    ),
    given=True,
)  # fmt: skip
