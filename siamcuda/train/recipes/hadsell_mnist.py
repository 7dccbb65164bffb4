"""MNIST in the plane by the contrastive loss of all pairs of a batch; the neighbours there decide.

The loss and the idea of a map that one can look at are those of R. Hadsell, S. Chopra and Y. LeCun,
"Dimensionality reduction by learning an invariant mapping", CVPR 2006. They map the digits 4 and 9
by which pictures are neighbours, without labels. Here all ten digits are mapped by their labels, as
in the Siamese example of Caffe, with a convnet of today, random views of the digits, and every pair
of a batch instead of pairs that are drawn.

The figure: a test digit is mapped to two numbers and given the class that most of its nearest
training digits have, found by exact search. Settings were chosen on the last 10,000 training
digits; ``--validate`` leaves them out and tests on them instead.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from siamcuda import Gallery, verification
from siamcuda._files import write_atomically
from siamcuda.report import grids
from siamcuda.train.config import TrainConfig, check_least
from siamcuda.train.data import ImageArray
from siamcuda.train.encoders import EncoderConfig
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import AllPairs
from siamcuda.train.recipes import Recipe
from siamcuda.train.recipes._digits import (
    STORED_FAR,
    DigitOptions,
    check_neighbours,
    split_digits,
    vote,
)
from siamcuda.train.runs import RunFolder
from siamcuda.train.samplers import PKSampler
from siamcuda.train.siamese import Siamese

__all__ = ["RECIPE", "HadsellMnist", "run", "table"]


@dataclass(frozen=True)
class HadsellMnist(DigitOptions):
    """MNIST in two dimensions: contrastive loss of all pairs, drawn as a map."""

    out: Path = Path("runs/hadsell-mnist")  # run folder; an interrupted run there goes on
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig("fast", embedding=2, normalize=False)
    )
    digits_per_class: int = 20  # of each of the ten classes in a batch
    objective: AllPairs = field(default_factory=lambda: AllPairs(reduction="mean_active"))
    neighbours: int = 25  # training digits that vote for the class of a test digit
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=12, learning_rate=8e-3, device="cpu")
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_least(self, digits_per_class=2)
        if self.encoder.embedding != 2 or self.encoder.bits is not None:
            raise InputError("encoder: a map has embeddings of 2 numbers and no bits")
        super().check()


def run(options: HadsellMnist) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    known, unseen = split_digits(options)
    check_neighbours(options.neighbours, known)
    own = {
        "recipe": "hadsell-mnist",
        "digits_per_class": options.digits_per_class,
        "objective": asdict(options.objective),
    }
    folder = RunFolder(options.out, ("embedding.png",))
    config = options.digits(known, unseen, neighbours=options.neighbours, **own)
    return folder.complete(
        options, config,
        lambda: _made(options, folder, own, known, unseen),
    )  # fmt: skip


def _made(
    options: HadsellMnist, folder: RunFolder, own: dict[str, Any], known: ImageArray,
    unseen: ImageArray,
) -> dict[str, Any]:  # fmt: skip
    classes = len(known.names)
    sampler = PKSampler(known.labels, classes, options.digits_per_class, options.train.seed)
    system = options.system(known, options.objective, sampler)
    trained_for = folder.fit(
        system, options.train, own, f"Pairs of {len(known):,} digits, in the plane"
    )
    started = time.perf_counter()
    trained = Siamese(options.spec, system.model)
    gallery, queries = trained.embed(known), trained.embed(unseen)
    nearest = known.labels[Gallery(gallery).search(queries, options.neighbours).ids]
    wrong = vote(nearest, classes) != unseen.labels
    report = verification.evaluate(queries, unseen.labels, far=STORED_FAR, metric="euclidean")
    trained.calibrated(report, STORED_FAR).save(folder.path)
    title = f"{len(unseen):,} digits never seen in training, each mapped to two numbers"
    picture = grids.embedding_map(
        queries.numpy(), unseen.labels.numpy(), unseen.names, unseen.images.numpy(), title,
        inverted=True,
    )  # fmt: skip
    write_atomically(folder.path / "embedding.png", picture)
    return {
        "error": float(wrong.double().mean()),
        "wrong": int(wrong.sum()),
        "error_nearest": float((nearest[:, 0] != unseen.labels).double().mean()),
        "neighbours": options.neighbours,
        "digits_train": len(known),
        "digits_test": len(unseen),
        "eer": report.eer,
        **trained_for,
        "seconds_testing": round(time.perf_counter() - started, 1),
    }


def table(metrics: dict[str, Any]) -> str:
    """The figures in a few lines."""
    return "\n".join([
        f"in two dimensions, {metrics['neighbours']} neighbours vote: "
        f"{100 * metrics['error']:.2f} % of {metrics['digits_test']:,} digits wrong "
        f"({metrics['wrong']}), {metrics['digits_train']:,} learned from",
        f"the nearest alone: {100 * metrics['error_nearest']:.2f} % wrong; two digits, the same or "
        f"not: EER {100 * metrics['eer']:.2f} %",
        f"({metrics['epochs']} epochs, {metrics['seconds_training']:.0f} s of training on "
        f"{metrics['threads']} threads)",
    ])  # fmt: skip


def headline(metrics: dict[str, Any]) -> str:
    """The figure that counts."""
    return f"{100 * metrics['error']:.2f} % of the digits wrong, in two dimensions"


RECIPE = Recipe(
    options=HadsellMnist,
    run=run,
    table=table,
    headline=headline,
    data="MNIST, all 60,000",
    pictures={
        "embedding.png": "The test digits in the plane, as points by class; and themselves, "
        "in each cell the one nearest to its middle",
        "training.png": "Loss and distances by epoch",
    },
    quick=HadsellMnist(small=True, train=TrainConfig(epochs=1, device="cpu")),
)
