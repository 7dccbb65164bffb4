"""Faces of people never seen, verified as DeepFace does: by L2 distance and by a head on |f1 - f2|.

Y. Taigman, M. Yang, M. Ranzato, L. Wolf, *DeepFace: Closing the Gap to Human-Level Performance in
Face Verification* (CVPR 2014), compare two encodings by their distance and by a Siamese network:
one encoder for both faces, the absolute differences of its features, one linear layer, a logistic
output. Here the encoder (128 numbers of length 1) learns by the contrastive loss, and the head by
the cross entropy of the same pairs, which does not reach the encoder.

Counted over every two pictures of the last 10 of the 40 people of the AT&T faces, whom neither
weights nor thresholds have met: 450 genuine and 4,500 impostor pairs. That is few: one genuine
error is 0.22 %, and ten people say little of all people. The interval is that of 1,000 draws of ten
people with replacement. Beside the figures stand those of the pixels, standardised, of which
nothing is learned. Of the 30 others 25 are learned from; 5 say which epoch's weights stay and
give the threshold and the similarities that are stored. Margin, hard pairs and how the head learns
were chosen on folds of these 30 (``--validate``), where the figure is of the very people who chose
the epoch, and so a little too good. Encoder, views and learning rate are those of chopra-faces,
chosen on the first 35 people: five of the ten that are tested here were among them.

Unlike the paper: a small convnet instead of one of 120 million parameters, learned from 250
pictures instead of 4.4 million, no 3D alignment and no classification of people first; frontal
faces before a plain background instead of photographs from the web, so figures don't compare.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from siamcuda import squared_l2, verification
from siamcuda.train.config import TrainConfig
from siamcuda.train.data import ImageArray
from siamcuda.train.encoders import DifferenceClassifier
from siamcuda.train.objectives import ComparedPairs, HardPairs
from siamcuda.train.protocols import Trials, every_pair
from siamcuda.train.recipes import Recipe, _faces
from siamcuda.train.recipes._faces import FaceOptions, People
from siamcuda.train.runs import RunFolder
from siamcuda.train.siamese import Siamese
from siamcuda.train.storage import save_tensors
from siamcuda.verification import VerificationReport

__all__ = ["RECIPE", "DeepFaceVerify", "run", "score", "table"]

#: Ways to compare, as metrics.json calls them and as people do.
WAYS = {"distance": "squared L2 distance", "head": "head on |f1 - f2|"}


@dataclass(frozen=True)
class DeepFaceVerify(FaceOptions):
    """Verify faces by the distance of two encodings, and by a head on their difference."""

    out: Path = Path("runs/deepface-verify")  # run folder; an interrupted run there goes on
    objective: HardPairs = field(default_factory=lambda: HardPairs(loss="contrastive", margin=2.0))
    joint: bool = False  # the encoder learns by the head's loss too

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        super().check()


def run(options: DeepFaceVerify) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    people = _faces.split_people(options)
    config = options.faces(
        people,
        recipe="deepface-verify",
        objective=asdict(options.objective),
        joint=options.joint,
    )
    folder = RunFolder(options.out, ("head.safetensors", "roc.png", "histogram.png", "errors.png"))
    return folder.complete(options, config, lambda: _made(options, folder, config, people))


def _made(
    options: DeepFaceVerify, folder: RunFolder, config: dict[str, Any], people: People
) -> dict[str, Any]:
    head = make_head(options.encoder.embedding, options.objective.margin)

    def figures(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        both = [
            verification.from_distances(*every_pair(embeddings, labels, way)).eer
            for way in (squared_l2, lambda x1, x2: score(head, x1, x2))
        ]
        return {"eer": sum(both) / 2, "eer, distance": both[0], "eer, head": both[1]}

    objective = ComparedPairs(head, options.objective, options.joint)
    system = _faces.make_system(options, people, objective, figures)
    title = f"Pairs of {len(people.known.names)} people, {len(people.known)} pictures"
    trained_for = folder.fit(system, options.train, config, title)
    started = time.perf_counter()
    trained = _faces.stored_with(options, system.model, people)
    trained.save(folder.path)
    save_tensors(folder.path / "head.safetensors", head.state_dict())
    before, after = (_compared(trained, head, part) for part in (people.kept, people.unseen))
    pixels = _faces.compare_pixels(people.unseen)
    ways = {WAYS[way]: compared for way, compared in after.items()}
    _faces.draw(folder.path, people.unseen, ways, after["distance"][0], pixels)
    return {
        **{way: _faces.figures(after[way][0], before[way][0]) for way in WAYS},
        "pixels": _faces.figures(pixels, _faces.compare_pixels(people.kept)),
        **_faces.told(options, people),
        **trained_for,
        "seconds_testing": round(time.perf_counter() - started, 1),
    }


def _compared(
    trained: Siamese, head: nn.Module, faces: ImageArray
) -> dict[str, tuple[VerificationReport, Trials]]:
    """Report and trials of both ways."""
    report, embeddings = _faces.compare_all(trained, faces, _faces.SAMPLES)
    by_distance = every_pair(embeddings, faces.labels, squared_l2)
    by_head = every_pair(embeddings, faces.labels, lambda x1, x2: score(head, x1, x2))
    return {
        "distance": (report, by_distance),
        "head": (verification.from_distances(*by_head), by_head),
    }


def make_head(features: int, margin: float) -> DifferenceClassifier:
    """A head that begins as what it is to better: every difference counts alike, the L1 distance.

    Its score begins as (Σ|f1 - f2|) / √D less what that is, on average, at an L2 distance of half
    the margin: √(2/π)·margin/2. With weights drawn at random some differences would begin by
    speaking for the same person.
    """
    head = DifferenceClassifier(features)
    [linear] = head.layers
    assert isinstance(linear, nn.Linear)
    sides = torch.tensor([-0.5, 0.5])  # of the logits of "same" and "different"
    with torch.no_grad():
        linear.weight.copy_(sides[:, None] / features**0.5)
        linear.bias.copy_(-sides * math.sqrt(2 / math.pi) * margin / 2)
    return head


@torch.inference_mode()
def score(head: nn.Module, x1: Tensor, x2: Tensor) -> Tensor:
    """How much the head takes pairs for two people: (M, D), (M, D) -> (M,), logit(1) - logit(0)."""
    device = next(head.parameters()).device
    logits: Tensor = head(x1.to(device), x2.to(device)).cpu()
    return logits[:, 1] - logits[:, 0]


def table(metrics: dict[str, Any]) -> str:
    """The figures of both ways."""
    return _faces.table({called: metrics[way] for way, called in WAYS.items()}, metrics)


def headline(metrics: dict[str, Any]) -> str:
    """The figures that count."""
    rates = ", ".join(f"EER {100 * metrics[way]['eer']:.1f} % by {what}" for way, what in
                      (("distance", "squared L2"), ("head", "the head")))  # fmt: skip
    return f"{rates}, people never seen"


RECIPE = Recipe(
    options=DeepFaceVerify,
    run=run,
    table=table,
    headline=headline,
    data="AT&T faces, 25 people; 5 to validate; 10 others",
    pictures={
        "roc.png": "Verification of ten people never seen, in the two ways and by their pixels",
        "histogram.png": "Their genuine and impostor pairs, in the two ways",
        "errors.png": "The pairs of each kind that the distance finds hardest",
        "training.png": "Loss, distances and the error of the validation people by epoch",
    },
    quick=DeepFaceVerify(train=TrainConfig(epochs=2, device="cpu")),
)
