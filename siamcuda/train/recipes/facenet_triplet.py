"""FaceNet's triplets on faces of people never seen: semi-hard mining and every triplet of a batch.

F. Schroff, D. Kalenichenko, J. Philbin, *FaceNet: A Unified Embedding for Face Recognition and
Clustering* (CVPR 2015): 128 numbers of length 1, squared L2 distances, margin 0.2, and a negative
that is farther than the positive but within the margin. Beside it, all else alike, the hinge over
every valid triplet of the batch (Hermans, Beyer, Leibe 2017). Each has a folder of its own in the
run's: ``siamcuda compare runs/facenet-triplet/semihard A B``.

Counted over every two pictures of the last 10 of the 40 people of the AT&T faces, whom neither
weights nor thresholds have met: 450 genuine and 4,500 impostor pairs. That is few: one genuine
error is 0.22 %, and ten people say little of all people; which mining is better can't be told from
two figures whose intervals overlap. The intervals are those of 1,000 draws of ten people with
replacement. Beside the figures stand those of the pixels, standardised, of which nothing is
learned. Of the 30 others 25 are learned from; 5 say which epoch's weights stay and give the
threshold and the similarities that are stored. How long to learn was chosen on folds of these 30
(``--validate``), where the figure is of the very people who chose the epoch, and so a little too
good. Encoder, views and learning rate are those of chopra-faces, chosen on the first 35 people:
five of the ten that are tested here were among them. The margin is the paper's.

Unlike the paper: a small convnet learned from 250 pictures instead of 100 to 200 million, batches
of 100 instead of 1,800, and AdamW instead of AdaGrad; where no negative is farther than the
positive the farthest one is taken. Frontal faces before a plain background instead of photographs
from the web, so figures don't compare.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from siamcuda import squared_l2
from siamcuda._files import write_atomically
from siamcuda.report import plots
from siamcuda.train.config import TrainConfig
from siamcuda.train.objectives import Triplets
from siamcuda.train.protocols import every_pair
from siamcuda.train.recipes import Recipe, _faces
from siamcuda.train.recipes._faces import FaceOptions, People
from siamcuda.train.runs import RunFolder
from siamcuda.train.siamese import Siamese
from siamcuda.train.storage import load_json

__all__ = ["RECIPE", "FaceNetTriplet", "run", "table"]

Mining = Literal["semihard", "all"]
#: What the ways to mine are called.
MININGS: dict[Mining, str] = {"semihard": "semi-hard", "all": "batch-all"}


@dataclass(frozen=True)
class FaceNetTriplet(FaceOptions):
    """Learn faces by triplets, semi-hard ones and all, and verify people never seen by both."""

    out: Path = Path("runs/facenet-triplet")  # run folder; an interrupted run there goes on
    margin: float = 0.2

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        self.objective("all").check()
        super().check()

    def objective(self, mining: Mining) -> Triplets:
        """The loss, of squared distances."""
        return Triplets(mining=mining, margin=self.margin)


def run(options: FaceNetTriplet) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. What is finished is kept."""
    options.check()
    people = _faces.split_people(options)
    config = options.faces(people, recipe="facenet-triplet", margin=options.margin)
    folder = RunFolder(options.out, ("mining.png", "roc.png", "histogram.png", "errors.png"))
    return folder.complete(options, config, lambda: _both(options, folder, config, people))


def _both(
    options: FaceNetTriplet, folder: RunFolder, config: dict[str, Any], people: People
) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {
        mining: _one(options, config, people, mining) for mining in MININGS
    }
    drawn = {}
    for mining, called in MININGS.items():
        trained = Siamese.load(options.out / mining)
        report, embeddings = _faces.compare_all(trained, people.unseen)
        drawn[called] = report, every_pair(embeddings, people.unseen.labels, squared_l2)
    pixels = _faces.compare_pixels(people.unseen)
    _faces.draw(folder.path, people.unseen, drawn, drawn[MININGS["semihard"]][0], pixels)
    _draw_epochs(folder.path)
    semihard = results["semihard"]
    return {
        **results,
        "pixels": _faces.figures(pixels, _faces.compare_pixels(people.kept)),
        **{key: semihard[key] for key in _faces.told(options, people)},
        **{key: semihard[key] for key in ("threads", "versions")},
        "epochs": sum(result["epochs"] for result in results.values()),
        "seconds_training": round(sum(r["seconds_training"] for r in results.values()), 1),
    }


def _one(
    options: FaceNetTriplet, config: dict[str, Any], people: People, mining: Mining
) -> dict[str, Any]:
    folder, own = RunFolder(options.out / mining, ()), {**config, "mining": mining}
    return folder.complete(options, own, lambda: _made(options, folder, own, people, mining))


def _made(
    options: FaceNetTriplet, folder: RunFolder, config: dict[str, Any], people: People,
    mining: Mining,
) -> dict[str, Any]:  # fmt: skip
    system = _faces.make_system(options, people, options.objective(mining))
    title = f"{MININGS[mining]} triplets of {len(people.known.names)} people"
    trained_for = folder.fit(system, options.train, config, title, bar=MININGS[mining])
    started = time.perf_counter()
    trained = _faces.stored_with(options, system.model, people)
    before, _ = _faces.compare_all(trained, people.kept)
    report, _ = _faces.compare_all(trained, people.unseen, _faces.SAMPLES)
    trained.save(folder.path)
    return {
        **_faces.figures(report, before),
        **_faces.told(options, people),
        **trained_for,
        "seconds_testing": round(time.perf_counter() - started, 1),
    }


def _draw_epochs(folder: Path) -> None:
    """Write mining.png: both ways to mine by epoch."""
    panels: dict[str, dict[str, list[float]]] = {
        "mean loss of the active triplets": {},
        "share of the triplets that are active": {},
        "EER of the validation people": {},
    }
    for mining, called in MININGS.items():
        epochs = load_json(folder / mining / "history.json")["epochs"]
        found = (
            [one["loss"] for one in epochs],
            [one["figures"]["active"] for one in epochs],
            [one["validation"].get("eer", float("nan")) for one in epochs],
        )
        for lines, values in zip(panels.values(), found, strict=True):
            lines[called] = values
    picture = plots.by_epoch(panels, "Semi-hard triplets and every triplet of a batch")
    write_atomically(folder / "mining.png", picture)


def table(metrics: dict[str, Any]) -> str:
    """The figures of both."""
    return _faces.table({called: metrics[mining] for mining, called in MININGS.items()}, metrics)


def headline(metrics: dict[str, Any]) -> str:
    """The figures that count."""
    rates = ", ".join(
        f"EER {100 * metrics[mining]['eer']:.1f} % {called}" for mining, called in MININGS.items()
    )
    return f"{rates}, people never seen"


RECIPE = Recipe(
    options=FaceNetTriplet,
    run=run,
    table=table,
    headline=headline,
    data="AT&T faces, 25 people; 5 to validate; 10 others",
    pictures={
        "roc.png": "Verification of ten people never seen, after both ways to mine and by pixels",
        "histogram.png": "Squared distances of their pairs",
        "mining.png": "Loss, active triplets and the error of the validation people by epoch",
        "errors.png": "The pairs of each kind that are hardest after semi-hard mining",
    },
    quick=FaceNetTriplet(train=TrainConfig(epochs=2, device="cpu")),
)
