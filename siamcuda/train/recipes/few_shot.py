"""Twenty classes never seen, one example of each: the nearest example names a query.

Koch, Zemel and Salakhutdinov (2015), *Siamese Neural Networks for One-shot Image Recognition*: an
encoder learns to tell classes apart and then names the class of a query by comparing it with one
example of each of 20 new classes. Episodes are those of Lake, Salakhutdinov and Tenenbaum (2015):
the 20 classes are of one alphabet, and each gives one query. The figure is the mean accuracy over
400 episodes of 20 queries, with a 95 % interval over episodes; beside it, on the same episodes, the
accuracy of the nearest example in pixels.

The classes are printed letters in 10 to 16 fonts each, every drawing warped at random: not Omniglot
and not written by hand, so Koch's 92.0 % there is no figure to compare with. Scripts stay whole:
Latin and Greek letters are learned from, Cyrillic, Armenian and Georgian ones tested. Letters that
look the same in two scripts are one class, of the first. ``--omniglot FOLDER`` takes the two parts
of Omniglot instead; that path was tested on small made-up files alone. A second encoder does the
same for faces (AT&T): 20 people are learned from, the 20 others are the classes of every episode.

What differs from the papers: batch-all triplets of squared distances, not the cross entropy of
weighted L1 differences of pairs, a smaller convnet, no search over hyperparameters; and an example
and its query are in any two fonts, where Lake's are all by one drawer and all by another. Settings
were chosen with ``--validate``: Latin letters are learned from and Greek ones tested, 10 people
learned from and 10 others tested.
"""

from __future__ import annotations

import math
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import siamcuda
from siamcuda import Gallery, verification
from siamcuda._files import write_atomically
from siamcuda.report import grids
from siamcuda.train.augment import Augmentation, ImageViews
from siamcuda.train.config import TrainConfig, check_least
from siamcuda.train.data import ImageArray, draw_letters, load_att_faces, load_omniglot
from siamcuda.train.encoders import FACES, EncoderConfig, EncoderSpec, InputSpec
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import Triplets
from siamcuda.train.recipes import Recipe
from siamcuda.train.runs import RunFolder, RunOptions
from siamcuda.train.samplers import PKSampler
from siamcuda.train.siamese import Siamese
from siamcuda.train.system import System

__all__ = ["RECIPE", "Episodes", "FewShot", "draw_episodes", "interval", "run", "solve", "table"]

#: Scripts whose letters are tested, and those that ``validate`` tests instead. All others are
#: learned from: Latin, and letters that are signs.
TESTED, VALIDATED = ("CYRILLIC", "ARMENIAN", "GEORGIAN"), ("GREEK",)
LETTERS = InputSpec(1, 28, 28)
#: False accept rate of two tested examples at the threshold that is kept with the encoder. It, and
#: the calibrator, come from the tested classes; the accuracy of episodes needs neither.
STORED_FAR = 0.01
#: Printed letters move and lean; they have no mirror image and no light.
LETTER_VIEWS = Augmentation(
    rotate=10.0, shift=0.06, scale=0.12, shear=0.12, gamma=0.0, noise=0.05, erase=0.0, flip=0.0
)
_NEAREST = 8  # in the picture of what is nearest
_PART = 50  # episodes solved at a time


@dataclass(frozen=True)
class FewShot(RunOptions):
    """One example of each of 20 classes never seen: letters of other scripts, other people."""

    out: Path = Path("runs/few-shot")  # run folder; a run that was interrupted there goes on
    data: Literal["letters", "faces"] = "letters"  # printed letters, or the AT&T faces
    omniglot: Path | None = None  # holds images_background and images_evaluation: no letters then
    also_faces: bool = True  # after the letters the faces, in the folder ``faces`` below this one
    face_epochs: int = 60  # of that run
    validate: bool = False  # never look at the tested classes: keep some of the others for that
    ways: int = 20  # classes of an episode, each with one query
    shots: int = 1  # examples of each class
    episodes: int = 400
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig("fast"))
    classes_per_batch: int = 64
    examples_per_class: int = 4
    objective: Triplets = field(default_factory=Triplets)
    augment: Augmentation = LETTER_VIEWS
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=40, learning_rate=2e-3, device="cpu")
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_least(self, ways=2, shots=1, episodes=2, classes_per_batch=2, examples_per_class=2)
        check_least(self, face_epochs=1)
        if self.data == "faces" and self.omniglot is not None:
            raise InputError("omniglot: stands in the place of the letters; leave data at letters")
        self.spec.build(seed=0)  # an error comes before any folder
        super().check()

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder is and takes."""
        return EncoderSpec(self.encoder, FACES if self.data == "faces" else LETTERS)

    @property
    def of_faces(self) -> FewShot | None:
        """The run on faces that follows; its settings are those of ``FACE_RUN``."""
        if not self.also_faces or self.data == "faces":
            return None
        kept = {name: getattr(self, name) for name in ("fresh", "threads", "validate", "episodes")}
        train = replace(FACE_RUN.train, epochs=self.face_epochs, seed=self.train.seed)
        ways = 10 if self.validate else FACE_RUN.ways  # people that are kept for that
        return replace(FACE_RUN, out=self.out / "faces", train=train, ways=ways, **kept)


#: How faces are learned, where ``data`` is letters and the faces come after them.
FACE_RUN = FewShot(
    data="faces",
    encoder=EncoderConfig("small"),
    classes_per_batch=20,
    examples_per_class=4,
    augment=Augmentation(),
    train=TrainConfig(epochs=60, learning_rate=2e-3, device="cpu"),
)


class Classes(NamedTuple):
    """Examples to learn from and examples of other classes to test on."""

    known: ImageArray
    unseen: ImageArray
    groups: tuple[str, ...]  # script, alphabet or kind of each class of ``unseen``


class Episodes(NamedTuple):
    """Rows of examples: E episodes of W classes, class w of an episode has query w."""

    support: Tensor  # (E, W, shots) int64
    query: Tensor  # (E, W) int64
    groups: tuple[str, ...]  # E, what the classes of each episode have in common


def run(options: FewShot) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    classes = load_classes(options)
    episodes = _episodes(options, classes)
    config = _config(options, classes)
    after = options.of_faces
    if after is not None:  # what it cannot do is said before any folder is made
        faces = load_classes(after)
        _episodes(after, faces)
        config["faces"] = _config(after, faces)
    folder = RunFolder(options.out, ("episode.png", "nearest.png", "faces.png"))

    def make() -> dict[str, Any]:
        metrics = _made(options, folder, classes, episodes)
        if after is not None:
            metrics["faces"] = run(after)
            metrics["seconds_training"] += metrics["faces"]["seconds_training"]
            picture = (after.out / "episode.png").read_bytes()
            write_atomically(options.out / "faces.png", picture)
        return metrics

    return folder.complete(options, config, make)


def load_classes(options: FewShot) -> Classes:
    """Read or draw the examples, and part them by class."""
    if options.data == "faces":
        return _faces(options)
    return _letters(options) if options.omniglot is None else _omniglot(options, options.omniglot)


def _faces(options: FewShot) -> Classes:
    faces = load_att_faces()
    half = len(faces.names) // 2
    known, unseen = faces.names[:half], faces.names[half:]
    if options.validate:
        known, unseen = known[: half // 2], known[half // 2 :]
    return Classes(faces.of(known), faces.of(unseen), ("faces",) * len(unseen))


def _letters(options: FewShot) -> Classes:
    letters = draw_letters(size=LETTERS.height, seed=options.train.seed)
    scripts = {letter: unicodedata.name(letter).split()[0] for letter in letters.names}
    tested = VALIDATED if options.validate else TESTED
    # Without ``validate`` the letters that it tests are learned from too.
    left_out = (*TESTED, *VALIDATED) if options.validate else TESTED
    known = [letter for letter, script in scripts.items() if script not in left_out]
    unseen = [letter for letter, script in scripts.items() if script in tested]
    groups = tuple(scripts[letter].capitalize() for letter in unseen)
    return Classes(letters.of(known), letters.of(unseen), groups)


def _omniglot(options: FewShot, folder: Path) -> Classes:
    size = LETTERS.height, LETTERS.width
    known = load_omniglot(folder, "background", size)
    alphabets = list(dict.fromkeys(_alphabet(name) for name in known.names))
    if options.validate:
        kept = set(alphabets[-max(1, len(alphabets) // 3) :])
        unseen = known.of([name for name in known.names if _alphabet(name) in kept])
        known = known.of([name for name in known.names if _alphabet(name) not in kept])
    else:
        unseen = load_omniglot(folder, "evaluation", size)
    groups = tuple(_alphabet(name) for name in unseen.names)
    return Classes(known.in_memory(), unseen.in_memory(), groups)


def _alphabet(name: str) -> str:
    return name.partition("/")[0]


def _config(options: FewShot, classes: Classes) -> dict[str, Any]:
    """All that decides the figures: what a run folder is claimed with."""
    return options.config(
        **_learned(options),
        known=classes.known.digest(),
        unseen=classes.unseen.digest(),
        ways=options.ways,
        shots=options.shots,
        episodes=options.episodes,
    )


def _learned(options: FewShot) -> dict[str, Any]:
    """What decides the weights, beside the examples and the trainer's own settings."""
    return {
        "recipe": "few-shot",
        "encoder": options.encoder.as_json(),
        "classes_per_batch": options.classes_per_batch,
        "examples_per_class": options.examples_per_class,
        "objective": asdict(options.objective),
        "augment": asdict(options.augment),
    }


def _episodes(options: FewShot, classes: Classes) -> Episodes:
    return draw_episodes(
        classes.unseen.labels, classes.groups, options.ways, options.shots, options.episodes,
        options.train.seed,
    )  # fmt: skip


def draw_episodes(
    labels: Tensor, groups: Sequence[str], ways: int, shots: int, count: int, seed: int
) -> Episodes:
    """Draw episodes, each of classes of one group, every group as likely.

    Args:
        labels: (N,) int64, the class of each example.
        groups: of each class; those with fewer than ``ways`` classes take no part.
        ways: classes of an episode.
        shots: examples of each class; its query is another one.
        count: E.
        seed: the same seed draws the same episodes.

    Raises:
        InputError: no group has so many classes of so many examples.
    """
    rows = [torch.nonzero(labels == label)[:, 0] for label in range(len(groups))]
    members: dict[str, list[int]] = {}
    for label, group in enumerate(groups):
        if len(rows[label]) > shots:
            members.setdefault(group, []).append(label)
    large = [group for group, own in members.items() if len(own) >= ways]
    if not large:
        most = max(map(len, members.values()), default=0)
        raise InputError(
            f"ways: {ways} classes of {shots + 1} examples are needed in one script, alphabet or "
            f"set; the largest has {most}"
        )
    generator = torch.Generator().manual_seed(seed)

    def some(values: Tensor, wanted: int) -> Tensor:
        return values[torch.randperm(len(values), generator=generator)[:wanted]]

    drawn = torch.empty(count, ways, shots + 1, dtype=torch.int64)
    chosen = [large[i] for i in torch.randint(len(large), (count,), generator=generator).tolist()]
    for episode, group in zip(drawn, chosen, strict=True):
        for place, label in enumerate(some(torch.tensor(members[group]), ways).tolist()):
            episode[place] = some(rows[label], shots + 1)
    return Episodes(drawn[:, :, :shots], drawn[:, :, shots], tuple(chosen))


def solve(embeddings: Tensor, episodes: Episodes) -> Tensor:
    """Give each query the class of its nearest example: (N, D) -> (E, W) places 0, 1, ..., W - 1.

    Query w of an episode is right where it is given w.
    """
    shots = episodes.support.shape[2]
    found = []
    for support, query in zip(
        episodes.support.flatten(1).split(_PART), episodes.query.split(_PART), strict=True
    ):
        distances = siamcuda.squared_cdist(embeddings[query], embeddings[support])
        found.append(distances.argmin(2) // shots)
    return torch.cat(found)


def interval(correct: Tensor) -> tuple[float, float]:
    """Mean accuracy, and half of its 95 % interval over episodes: (E, W) bool."""
    each = correct.double().mean(1)
    return float(each.mean()), 1.96 * float(each.std()) / math.sqrt(len(each))


def _made(
    options: FewShot, folder: RunFolder, classes: Classes, episodes: Episodes
) -> dict[str, Any]:
    config, encoder, spec = options.train, options.spec.build(options.train.seed), options.spec
    known, unseen = classes.known, classes.unseen
    assert isinstance(spec.inputs, InputSpec)
    system = System(
        model=encoder,
        objective=options.objective,
        examples=known,
        sampler=PKSampler(
            known.labels, options.classes_per_batch, options.examples_per_class, config.seed
        ),
        transform=ImageViews((spec.inputs.height, spec.inputs.width), options.augment),
    )
    title = f"Triplets of {len(known.names):,} classes, {len(known):,} examples"
    trained_for = folder.fit(system, config, _learned(options), title, bar=options.data)
    started = time.perf_counter()
    height, width = unseen.images.shape[-2:]
    trained = Siamese(spec, encoder, stored=(height, width), mirror=options.data == "faces")
    embeddings = trained.embed(unseen)
    pixels = trained.views(unseen.images).flatten(1)
    ways = torch.arange(options.ways)
    found = solve(embeddings, episodes)
    accuracy, half = interval(found == ways)
    plain, plain_half = interval(solve(pixels, episodes) == ways)
    report = verification.evaluate(embeddings, unseen.labels, far=STORED_FAR, metric="euclidean")
    trained.calibrated(report, STORED_FAR).save(folder.path)
    _draw(folder.path, options, classes, episodes, found, embeddings)
    groups = sorted(set(episodes.groups))
    of_group = {g: torch.tensor([group == g for group in episodes.groups]) for g in groups}
    return {
        "accuracy": accuracy,
        "interval": half,
        "pixels": plain,
        "pixels_interval": plain_half,
        "by_group": {
            g: float((found[rows] == ways).double().mean()) for g, rows in of_group.items()
        },
        "ways": options.ways,
        "shots": options.shots,
        "episodes": options.episodes,
        "data": options.data if options.omniglot is None else "omniglot",
        "classes_train": len(known.names),
        "classes_test": len(unseen.names),
        "examples_train": len(known),
        "examples_test": len(unseen),
        "verification": {"eer": report.eer, "auc": report.auc},
        **trained_for,
        "seconds_testing": round(time.perf_counter() - started, 1),
    }


def _draw(
    folder: Path, options: FewShot, classes: Classes, episodes: Episodes, found: Tensor,
    embeddings: Tensor,
) -> None:  # fmt: skip
    """Write an episode in which something is wrong, and what is nearest to some examples."""
    unseen = classes.unseen
    inverted = options.data == "letters" and options.omniglot is None  # ink is 255
    wrong = (found != torch.arange(options.ways)).sum(1)
    # One that is about as good as the mean: the best would flatter, the worst mislead.
    typical = int((wrong - wrong.double().mean()).abs().argmin())
    images = unseen.load(torch.arange(len(unseen)))[:, 0].numpy()
    picture = grids.episode(
        [images[row] for row in episodes.support[typical, :, 0].tolist()],
        [images[row] for row in episodes.query[typical].tolist()],
        found[typical].tolist(),
        f"An episode: one example of each of {options.ways} classes never seen",
        inverted=inverted,
    )
    write_atomically(folder / "episode.png", picture)
    generator = torch.Generator().manual_seed(options.train.seed)
    rows = torch.randperm(len(unseen), generator=generator)[:_NEAREST]
    ids = Gallery(embeddings).search(embeddings[rows], min(_NEAREST + 1, len(unseen))).ids
    others = [
        [i for i in line if i != row][:_NEAREST]
        for row, line in zip(rows.tolist(), ids.tolist(), strict=True)
    ]
    picture = grids.retrieval_grid(
        [images[row] for row in rows.tolist()],
        [[images[row] for row in line] for line in others],
        [
            (unseen.labels[line] == unseen.labels[row]).tolist()
            for row, line in zip(rows, others, strict=True)
        ],
        f"Examples of classes never seen, and the nearest of the {len(unseen) - 1:,} others",
        inverted=inverted,
    )
    write_atomically(folder / "nearest.png", picture)


def table(metrics: dict[str, Any]) -> str:
    """The figures, one line a set of classes."""
    sets = [metrics, *([metrics["faces"]] if "faces" in metrics else [])]
    first = f"{metrics['ways']}-way {metrics['shots']}-shot accuracy, %"
    lines = [f"{first:<32} {'siamcuda':>14} {'pixels':>14} {'learned':>9} {'tested':>8}"]
    for one in sets:
        ours, plain = (
            f"{100 * one[name]:.1f} ± {100 * one[half]:.1f}"
            for name, half in (("accuracy", "interval"), ("pixels", "pixels_interval"))
        )
        name = (
            one["data"] if one["ways"] == metrics["ways"] else f"{one['data']}, {one['ways']}-way"
        )
        counts = f"{one['classes_train']:>9,} {one['classes_test']:>8,}"
        lines.append(f"{name:<32} {ours:>14} {plain:>14} {counts}")
        if len(one["by_group"]) > 1:
            lines += [
                f"  {group:<30} {100 * value:>7.1f}" for group, value in one["by_group"].items()
            ]
    lines.append(
        f"({metrics['episodes']} episodes of {metrics['ways']} queries, 95 % intervals; learned, "
        f"tested: classes; {metrics['seconds_training']:.0f} s of training on "
        f"{metrics['threads']} threads)"
    )
    return "\n".join(lines)


def headline(metrics: dict[str, Any]) -> str:
    """The figure that counts."""
    parts = [f"{100 * metrics['accuracy']:.1f} % of {metrics['data']}"]
    if "faces" in metrics:
        parts.append(f"{100 * metrics['faces']['accuracy']:.1f} % of faces")
    return f"{', '.join(parts)} right, {metrics['ways']}-way {metrics['shots']}-shot"


_QUICK = TrainConfig(epochs=1, device="cpu")

RECIPE = Recipe(
    options=FewShot,
    run=run,
    table=table,
    headline=headline,
    data="printed letters of 3 scripts never seen; AT&T faces, 20 others",
    pictures={
        "episode.png": "An episode of letters: the examples, and what the queries were taken for",
        "nearest.png": "Letters of scripts never seen in training, and their nearest",
        "faces.png": "An episode of faces",
    },
    quick=FewShot(
        episodes=20,
        face_epochs=2,
        encoder=EncoderConfig("fast", options={"width": 8}),
        train=_QUICK,
    ),
)
