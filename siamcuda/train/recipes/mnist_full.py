"""All of MNIST by every triplet of a batch; a test digit is what its nearest neighbour is.

Batch-all triplets of Hermans, Beyer and Leibe (2017) with squared distances as in FaceNet (Schroff
2015). A test digit is given the label of the nearest of the 60,000 training digits, found by exact
search. Settings are to be chosen with ``--validate``: the last 10,000 training digits are left out
and tested on instead.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from siamcuda import Gallery, verification
from siamcuda._files import write_atomically
from siamcuda.report.pngs import write_pngs
from siamcuda.train.config import TrainConfig, check_least
from siamcuda.train.data import ImageArray
from siamcuda.train.objectives import Triplets
from siamcuda.train.recipes import Recipe
from siamcuda.train.recipes._digits import STORED_FAR, DigitOptions, draw_errors, split_digits
from siamcuda.train.runs import RunFolder
from siamcuda.train.samplers import PKSampler
from siamcuda.train.siamese import Siamese

__all__ = ["RECIPE", "MnistFull", "run", "table"]


@dataclass(frozen=True)
class MnistFull(DigitOptions):
    """MNIST, all 60,000 digits: batch-all triplets, 128-d, the nearest neighbour decides."""

    out: Path = Path("runs/mnist-full")  # run folder; a run that was interrupted there goes on
    classes_per_batch: int = 10
    digits_per_class: int = 26
    objective: Triplets = field(default_factory=Triplets)

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_least(self, classes_per_batch=2, digits_per_class=2)
        super().check()


def run(options: MnistFull) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    known, unseen = split_digits(options)
    own = {
        "recipe": "mnist-full",
        "classes_per_batch": options.classes_per_batch,
        "digits_per_class": options.digits_per_class,
        "objective": asdict(options.objective),
    }
    folder = RunFolder(options.out, ("histogram.png", "errors.png"))
    config = options.digits(known, unseen, **own)
    return folder.complete(options, config, lambda: _made(options, folder, own, known, unseen))


def _made(
    options: MnistFull, folder: RunFolder, own: dict[str, Any], known: ImageArray,
    unseen: ImageArray,
) -> dict[str, Any]:  # fmt: skip
    classes, each = options.classes_per_batch, options.digits_per_class
    sampler = PKSampler(known.labels, classes, each, options.train.seed)
    system = options.system(known, options.objective, sampler)
    title = f"Batch-all triplets on {len(known):,} digits"
    trained_for = folder.fit(system, options.train, own, title)
    started = time.perf_counter()
    trained = Siamese(options.spec, system.model)
    gallery, queries = trained.embed(known), trained.embed(unseen)
    rows = Gallery(gallery).search(queries, 1).ids[:, 0]  # of the nearest digits
    report = verification.evaluate(queries, unseen.labels, far=STORED_FAR, metric="euclidean")
    trained.calibrated(report, STORED_FAR).save(folder.path)
    found = known.labels[rows]
    wrong = torch.nonzero(found != unseen.labels)[:, 0]
    errors = draw_errors(
        unseen, wrong, found[wrong].tolist(), known.images[rows[wrong]],
        "what they were taken for",
    )  # fmt: skip
    write_atomically(folder.path / "errors.png", errors)
    write_pngs(folder.path, report, far=STORED_FAR, names=["histogram"])
    return {
        "error": len(wrong) / len(unseen),
        "wrong": len(wrong),
        "digits_train": len(known),
        "digits_test": len(unseen),
        "verification": {
            "eer": report.eer,
            "auc": report.auc,
            "frr_at_far": {str(STORED_FAR): report.frr(STORED_FAR)},
        },
        **trained_for,
        "seconds_testing": round(time.perf_counter() - started, 1),
    }


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


def headline(metrics: dict[str, Any]) -> str:
    """The figure that counts."""
    return f"{100 * metrics['error']:.2f} % of the digits wrong"


RECIPE = Recipe(
    options=MnistFull,
    run=run,
    table=table,
    headline=headline,
    data="MNIST, all 60,000",
    pictures={
        "errors.png": "Every digit that is wrong, and the one that it was taken for",
        "training.png": "Loss and distances by epoch",
    },
    quick=MnistFull(small=True, train=TrainConfig(epochs=1, device="cpu")),
)
