"""Digits 0, 1 and 2 by pairs: same or different, a two-class problem on |f1 - f2|.

A Siamese encoder and a classifier of the difference of two encodings learn together, with the cross
entropy of pairs of which half are genuine. A digit is recognised by comparing it with references:
some training digits of each class. The class whose references are the most probably the same wins.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from siamcuda import verification
from siamcuda._files import write_atomically
from siamcuda.train.config import TrainConfig, check_least
from siamcuda.train.data import ImageArray
from siamcuda.train.encoders import DifferenceClassifier, EncoderConfig
from siamcuda.train.objectives import ClassifiedPairs
from siamcuda.train.recipes import Recipe
from siamcuda.train.recipes._digits import STORED_FAR, DigitOptions, draw_errors, split_digits
from siamcuda.train.runs import RunFolder
from siamcuda.train.samplers import PairSampler
from siamcuda.train.siamese import Siamese
from siamcuda.train.storage import save_tensors

__all__ = ["RECIPE", "Mnist012", "recognise", "run", "table"]

CLASSES = ("0", "1", "2")


@dataclass(frozen=True)
class Mnist012(DigitOptions):
    """MNIST's digits 0, 1 and 2: pairs classified as same or different, references decide."""

    out: Path = Path("runs/mnist-012")  # run folder; a run that was interrupted there goes on
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig("fast", normalize=False))
    hidden: int = 32  # units between |f1 - f2| and the two classes; 0 for none
    pairs_per_batch: int = 128
    references: int = 30  # training digits of each class that a digit is compared with
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=8, learning_rate=2e-3, device="cpu")
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_least(self, hidden=0, pairs_per_batch=2, references=1)
        super().check()


def run(options: Mnist012) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    known, unseen = (digits.of(CLASSES) for digits in split_digits(options))
    own = {
        "recipe": "mnist-012",
        "hidden": options.hidden,
        "pairs_per_batch": options.pairs_per_batch,
    }
    folder = RunFolder(options.out, ("head.safetensors", "errors.png"))
    config = options.digits(known, unseen, references=options.references, **own)
    return folder.complete(options, config, lambda: _made(options, folder, own, known, unseen))


def _made(
    options: Mnist012, folder: RunFolder, own: dict[str, Any], known: ImageArray,
    unseen: ImageArray,
) -> dict[str, Any]:  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options.train.seed + 1)
        head = DifferenceClassifier(options.encoder.embedding, options.hidden)
    sampler = PairSampler(known.labels, options.pairs_per_batch, options.train.seed)
    system = options.system(known, ClassifiedPairs(head), sampler)
    trained_for = folder.fit(system, options.train, own, f"Pairs of {len(known):,} digits 0, 1, 2")
    started = time.perf_counter()
    trained = Siamese(options.spec, system.model)
    chosen = _references(known.labels, options.references, options.train.seed)
    references, queries = trained.embed(known.at(chosen)), trained.embed(unseen)
    found, nearest = recognise(head, queries, references, known.labels[chosen])
    report = verification.evaluate(queries, unseen.labels, far=STORED_FAR, metric="euclidean")
    trained.calibrated(report, STORED_FAR).save(folder.path)
    save_tensors(folder.path / "head.safetensors", head.state_dict())
    wrong = torch.nonzero(found != unseen.labels)[:, 0]
    errors = draw_errors(
        unseen, wrong, found[wrong].tolist(), known.images[chosen[nearest[wrong]]],
        "their references",
    )  # fmt: skip
    write_atomically(folder.path / "errors.png", errors)
    return {
        "accuracy": 1 - len(wrong) / len(unseen),
        "wrong": len(wrong),
        "references": options.references,
        "digits_train": len(known),
        "digits_test": len(unseen),
        **trained_for,
        "seconds_testing": round(time.perf_counter() - started, 1),
    }


def _references(labels: Tensor, count: int, seed: int) -> Tensor:
    """Rows of ``count`` digits of each class, or of all that there are."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = [order[labels[order] == label][:count] for label in labels.unique().tolist()]
    return torch.cat(chosen)


@torch.inference_mode()
def recognise(
    head: nn.Module, queries: Tensor, references: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Compare every query with every reference.

    Args:
        head: (M, D), (M, D) -> (M, 2), logits of "same" and "different".
        queries: (Q, D).
        references: (R, D).
        labels: (R,) int64, their classes, 0, 1, ...

    Returns:
        The class of each query, (Q,): the one with the highest mean probability of "same"; and the
        reference of that class that is the most probably the same, (Q,).
    """
    classes = int(labels.max()) + 1
    found, nearest = [], []
    for part in queries.split(max(1, 2**18 // len(references))):
        x1 = part.unsqueeze(1).expand(-1, len(references), -1)
        x2 = references.unsqueeze(0).expand(len(part), -1, -1)
        same = head(x1, x2).softmax(-1)[..., 0]  # (q, R)
        sums = torch.zeros(len(part), classes).index_add_(1, labels, same)
        best = (sums / torch.bincount(labels, minlength=classes)).argmax(1)
        found.append(best)
        nearest.append(same.masked_fill(labels != best.unsqueeze(1), -1).argmax(1))
    return torch.cat(found), torch.cat(nearest)


def table(metrics: dict[str, Any]) -> str:
    """The figures in a few lines."""
    return "\n".join([
        f"{100 * metrics['accuracy']:.2f} % of {metrics['digits_test']:,} digits recognised "
        f"({metrics['wrong']} wrong), each compared with {metrics['references']} references of "
        "each class",
        f"({metrics['digits_train']:,} digits learned from, {metrics['epochs']} epochs, "
        f"{metrics['seconds_training']:.0f} s of training on {metrics['threads']} threads)",
    ])  # fmt: skip


def headline(metrics: dict[str, Any]) -> str:
    """The figure that counts."""
    return f"{100 * metrics['accuracy']:.2f} % of the digits recognised"


RECIPE = Recipe(
    options=Mnist012,
    run=run,
    table=table,
    headline=headline,
    data="MNIST, digits 0, 1, 2",
    pictures={"errors.png": "Every digit that is wrong, and the reference that decided"},
    quick=Mnist012(small=True, train=TrainConfig(epochs=1, device="cpu")),
)
