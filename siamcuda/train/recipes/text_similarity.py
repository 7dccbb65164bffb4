"""Texts by pairs that belong together; tested by how people judge words and documents.

A Siamese text encoder, a weighted mean of vectors of words and of runs of letters as in Wieting,
Bansal, Gimpel and Livescu, Towards Universal Paraphrastic Sentence Embeddings (2016), learns from
nothing but pairs: WordNet's glosses with their example sentences, and the two halves of each of
300 news documents (the background of Lee, Pincombe and Welsh 2005). Every other text of a batch is
an impostor, with the contrastive loss of Hadsell, Chopra and LeCun (2006).

The figures are Spearman's correlations of the cosine of two embeddings with human scores: 353 pairs
of words for relatedness (Finkelstein and others 2002), 999 for similarity (Hill, Reichart and
Korhonen 2015), and the 1,225 pairs among 50 news documents (Lee and others), where the score is the
mean of the two orders in which a pair was judged. No score is learnt from, and no document or copy
of one (half of the runs of five words shared); the judged words do occur in the glosses, as words.
Settings, and the epoch whose weights are kept, are chosen on 1,000 glosses kept from training: how
often the nearest of their 1,000 examples is a gloss's own.

Beside it, on the same texts: the encoder before training, TF-IDF of whole words (different words
have nothing in common, so of single words it knows nothing), and wordllama, the mean of frozen word
vectors that a large language model leaves, which saw incomparably more text, perhaps these too.
Wieting and others learnt from millions of paraphrases, with triplets of mined negatives; this is
their kind of model on a far smaller, free set, and its figures are not to be compared with theirs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from siamcuda import Gallery, verification
from siamcuda._files import write_atomically
from siamcuda.report import plots
from siamcuda.train.config import TrainConfig, check_least
from siamcuda.train.data import (
    WORDNET,
    Lee,
    TextPairs,
    halve_documents,
    load_lee,
    load_simlex999,
    load_wordnet_pairs,
    load_wordsim353,
)
from siamcuda.train.encoders import EncoderConfig, EncoderSpec, Tokenizer
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import AllPairs, BothSides
from siamcuda.train.recipes import Recipe
from siamcuda.train.runs import RunFolder, RunOptions
from siamcuda.train.samplers import PKSampler
from siamcuda.train.siamese import Siamese
from siamcuda.train.system import System
from siamcuda.train.texts import TextViews

__all__ = [
    "RECIPE",
    "TextSimilarity",
    "copies",
    "keep_out",
    "recall",
    "run",
    "spearman",
    "table",
    "tf_idf",
]

#: False accept rate of two held-out texts at the threshold that is kept with the encoder.
STORED_FAR = 1e-3
#: Words of a run by which copies of a text are found, and the share of its runs that makes a copy.
RUN, COPIED = 5, 0.5
#: What texts are judged on; name in metrics.json -> what it is called.
JUDGED = {"wordsim353": "WordSim353", "simlex999": "SimLex999", "lee": "Lee documents"}
RECALL = "recall_at_1"
SPLITTER = Tokenizer(longest=0)

#: Texts to their embeddings, (N, D), which are compared by their cosine.
Embedder = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class TextSimilarity(RunOptions):
    """Learn a text encoder from pairs that belong together; test it by human judgements."""

    out: Path = Path("runs/text-similarity")  # run folder; an interrupted run there goes on
    pairs: Literal["wordnet", "lee"] = "wordnet"  # lee: halves of documents alone, no WordNet
    wordnet: Path = WORDNET  # WordNet's dict folder; Debian: apt install wordnet-base
    validate: bool = False  # never look at the human judgements; the held-out pairs alone
    held_out: int = 1000  # glosses, each with one example, that settings are chosen on
    wordllama: bool = True  # test the vectors of the package wordllama beside
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig("text"))
    # A document of the tests has some 130 words, a word some 8 ids.
    tokenizer: Tokenizer = field(default_factory=lambda: Tokenizer(length=1024))
    drop: float = 0.4  # share of a text's ids that a view leaves out
    pairs_per_batch: int = 256
    objective: AllPairs = field(
        default_factory=lambda: AllPairs(margin=1.3, reduction="mean_active")
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=4, learning_rate=2e-3, weight_decay=0.0, device="cpu"
        )
    )

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_least(self, held_out=2, pairs_per_batch=2)
        self.spec.build(seed=0)  # an error comes before any folder
        TextViews(self.tokenizer, self.drop)
        super().check()

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder is and takes."""
        return EncoderSpec(self.encoder, self.tokenizer)


@dataclass(frozen=True)
class Texts:
    """What is learned from and what is tested on."""

    known: TextPairs
    held_out: TextPairs  # of H classes, one each
    words: Mapping[str, TextPairs]  # pairs of words with human scores
    lee: Lee


def run(options: TextSimilarity) -> dict[str, Any]:
    """Do what the options ask and return what metrics.json holds. A finished run is kept."""
    options.check()
    frozen = load_wordllama() if options.wordllama else None
    texts = load_texts(options)
    own = {
        "recipe": "text-similarity",
        "encoder": options.spec.as_json(),
        "drop": options.drop,
        "pairs_per_batch": options.pairs_per_batch,
        "objective": asdict(options.objective),
        "held_out": texts.held_out.digest(),
    }
    folder = RunFolder(options.out, ("judged.png", "systems.png"))
    judged = {name: pairs.digest() for name, pairs in texts.words.items()}
    config = options.config(
        known=texts.known.digest(), judged=judged, validate=options.validate,
        wordllama=options.wordllama, **own,
    )  # fmt: skip
    return folder.complete(
        options, config,
        lambda: _made(options, folder, own, texts, frozen),
    )  # fmt: skip


def load_texts(options: TextSimilarity) -> Texts:
    """Read every text; what is tested on, and copies of it, are not among what is learned from."""
    lee = load_lee()
    copied = copies(lee.background, lee.documents)
    documents = tuple(d for d, is_copy in zip(lee.background, copied, strict=True) if not is_copy)
    halves = halve_documents(documents)
    if options.pairs == "lee":
        known, held_out = keep_out(halves, options.held_out)
    else:
        known, held_out = keep_out(load_wordnet_pairs(options.wordnet), options.held_out)
        known = TextPairs(known.left + halves.left, known.right + halves.right)
    words = {"wordsim353": load_wordsim353(), "simlex999": load_simlex999()}
    return Texts(known, held_out, words, lee)


def copies(texts: Sequence[str], of: Sequence[str]) -> list[bool]:
    """Whether each text shares half of its runs of five words, or of the other's, with one ``of``.

    A shorter text is one run.

    >>> copies(["A red fish.", "One fish, two fish"], ["a red fish"])
    [True, False]
    """
    where: dict[tuple[str, ...], list[int]] = {}
    sizes = []
    for number, text in enumerate(of):
        runs = _runs(text)
        sizes.append(len(runs))
        for one in runs:
            where.setdefault(one, []).append(number)
    found = []
    for text in texts:
        runs = _runs(text)
        shared = Counter(number for one in runs for number in where.get(one, ()))
        found.append(any(count >= COPIED * min(len(runs), sizes[n]) for n, count in shared.items()))
    return found


def _runs(text: str) -> set[tuple[str, ...]]:
    words = SPLITTER.words(text)
    return {tuple(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))}


def keep_out(pairs: TextPairs, count: int) -> tuple[TextPairs, TextPairs]:
    """Part ``pairs`` by class: what is left to learn from, and one pair of each class held out.

    At most a tenth of the classes is held out, the same ones in every run. A pair one of whose
    texts is a copy of a held-out one belongs to neither.
    """
    classes = len(pairs.names)
    count = min(count, classes // 10)
    if count < 2:
        raise InputError(f"held_out: {classes} classes of pairs are too few to keep any out")
    chosen = torch.randperm(classes, generator=torch.Generator().manual_seed(0))[:count]
    out = torch.isin(pairs.labels, chosen)
    first: dict[int, int] = {}
    for row in torch.nonzero(out)[:, 0].tolist():
        first.setdefault(int(pairs.labels[row]), row)
    held_out = pairs.at(torch.tensor(list(first.values())))
    rest = pairs.at(torch.nonzero(~out)[:, 0])
    shown = held_out.left + held_out.right
    copied = zip(copies(rest.left, shown), copies(rest.right, shown), strict=True)
    new = torch.tensor([not (left or right) for left, right in copied])
    return rest.at(torch.nonzero(new)[:, 0]), held_out


def load_wordllama() -> Embedder:
    """The mean of frozen word vectors: the package's own 256 numbers a word, nothing downloaded."""
    try:
        import wordllama
    except ModuleNotFoundError as error:
        raise InputError(
            "wordllama: not installed: pip install wordllama, or --no-wordllama"
        ) from error
    try:
        model = wordllama.WordLlama.load(
            cache_dir=Path(wordllama.__file__).parent, disable_download=True
        )
    except (OSError, ValueError) as error:
        raise InputError(f"wordllama: cannot read its vectors: {error}") from error
    return lambda texts: torch.from_numpy(np.asarray(model.embed(list(texts)), np.float32))


def _made(
    options: TextSimilarity, folder: RunFolder, own: dict[str, Any], texts: Texts,
    frozen: Embedder | None,
) -> dict[str, Any]:  # fmt: skip
    config, tokenizer, known = options.train, options.tokenizer, texts.known
    encoder, fresh = _begun(options, known), _begun(options, known)
    trained, untrained = (
        Siamese(options.spec, module.eval(), "cosine") for module in (encoder, fresh)
    )

    def missed(_: nn.Module) -> dict[str, float]:
        return {"missed": 1 - recall(trained.embed_texts, texts.held_out)}

    system = System(
        model=encoder,
        objective=BothSides(options.objective),
        examples=known,
        sampler=PKSampler(known.labels, options.pairs_per_batch, 1, config.seed),
        transform=TextViews(tokenizer, options.drop),
        validate=missed,
        figure="missed",
    )
    title = f"Contrastive loss on {len(known):,} pairs of texts"
    trained_for = folder.fit(system, config, own, title)
    started = time.perf_counter()
    systems: dict[str, Embedder] = {
        "siamcuda": trained.embed_texts,
        "before training": untrained.embed_texts,
        "TF-IDF": lambda asked: tf_idf(asked, known.left + known.right),
    }
    if frozen is not None:
        systems["wordllama"] = frozen
    tested = {name: _test(embed, texts, options.validate) for name, embed in systems.items()}
    _save(trained, folder.path, texts.held_out)
    _draw(folder.path, tested, trained.embed_texts, texts, options.validate)
    return {
        "systems": tested,
        "pairs_train": len(known),
        "pairs_held_out": len(texts.held_out),
        "pairs_judged": {name: len(p) for name, p in texts.words.items()}
        | {"lee": len(texts.lee.documents) * (len(texts.lee.documents) - 1) // 2},
        **trained_for,
        "seconds_testing": round(time.perf_counter() - started, 1),
    }


def _begun(options: TextSimilarity, known: TextPairs) -> nn.Module:
    """The encoder before training: random vectors, weights by how rare a word is."""
    encoder = options.spec.build(options.train.seed)
    weigh = getattr(encoder, "weigh_by_rarity", None)
    if weigh is not None:  # an encoder of somebody else's may have none
        weigh(options.tokenizer.encode(known.left + known.right))
    return encoder


def _save(trained: Siamese, path: Path, held_out: TextPairs) -> None:
    """Save with a threshold and a calibrator, which come from the held-out pairs."""
    embeddings = trained.embed_texts(held_out.left + held_out.right)
    labels = held_out.labels.repeat(2)
    report = verification.evaluate(embeddings, labels, far=STORED_FAR, metric="cosine")
    trained.calibrated(report, STORED_FAR).save(path)


# --- the figures ----------------------------------------------------------------------------------


def _test(embed: Embedder, texts: Texts, validate: bool) -> dict[str, float | None]:
    """Recall among the held-out pairs, and correlations with people unless it is to validate."""
    figures: dict[str, float | None] = {RECALL: recall(embed, texts.held_out)}
    if validate:
        return figures
    for name, pairs in texts.words.items():
        assert pairs.scores is not None
        figures[name] = spearman(cosines(embed, pairs).numpy(), pairs.scores.numpy())
    likeness, judged = _documents(embed, texts.lee)
    return figures | {"lee": spearman(likeness, judged)}


def cosines(embed: Embedder, pairs: TextPairs) -> Tensor:
    """Cosine of the two texts of each pair: (N,); 0 where one has no embedding."""
    both = nn.functional.normalize(embed(pairs.left + pairs.right).double())
    left, right = both.chunk(2)
    return (left * right).sum(1)


def _documents(embed: Embedder, lee: Lee) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and human judgement of every two documents, i < j."""
    embeddings = nn.functional.normalize(embed(lee.documents).double())
    i, j = torch.triu_indices(len(embeddings), len(embeddings), 1)
    judged = (lee.similarity + lee.similarity.t()) / 2
    return (embeddings @ embeddings.t())[i, j].numpy(), judged[i, j].numpy()


def recall(embed: Embedder, pairs: TextPairs) -> float:
    """How often the nearest of all right texts is a left text's own."""
    left, right = embed(pairs.left + pairs.right).float().chunk(2)
    found = Gallery(right.contiguous(), metric="cosine").search(left.contiguous(), 1).ids[:, 0]
    return float((found == torch.arange(len(pairs))).double().mean())


def spearman(x: NDArray[np.floating], y: NDArray[np.floating]) -> float | None:
    """Spearman's rank correlation of (N,) and (N,); None where one of them is constant.

    Equal values share the mean of their ranks.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0]))
    1.0
    """
    ranks = []
    for values in (x, y):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            return None
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[inverse])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def tf_idf(texts: Sequence[str], known: Sequence[str]) -> Tensor:
    """Counts of words times the logarithm of how rare each is among ``known``: (N, V) float32.

    V is of the words of ``texts``.
    """
    split = [Counter(SPLITTER.words(text)) for text in texts]
    places = {word: i for i, word in enumerate(dict.fromkeys(w for row in split for w in row))}
    documents = Counter(word for text in known for word in set(SPLITTER.words(text)))
    rarity = torch.tensor([np.log((1 + len(known)) / (1 + documents[w])) + 1 for w in places])
    counts = torch.zeros(len(texts), len(places))
    for row, words in zip(counts, split, strict=True):
        for word, count in words.items():
            row[places[word]] = count
    return counts * rarity.float()


# --- what is shown --------------------------------------------------------------------------------


def _draw(
    path: Path, tested: Mapping[str, Mapping[str, float | None]], embed: Embedder, texts: Texts,
    validate: bool,
) -> None:  # fmt: skip
    kinds = {RECALL: "recall@1 among\nheld-out pairs"}
    if not validate:
        kinds = JUDGED | kinds
    groups = {
        label: {name: figures[kind] for name, figures in tested.items()}
        for kind, label in kinds.items()
    }
    title, ylabel = "The nearest of held-out pairs", "recall"
    if not validate:
        title = "Spearman's correlation with people, and the nearest of held-out pairs"
        ylabel = "correlation, recall"
    bars = plots.grouped_bars(groups, ylabel, title)
    write_atomically(path / "systems.png", bars)
    if validate:
        return
    panels = {}
    for kind, pairs in texts.words.items():
        assert pairs.scores is not None
        panels[JUDGED[kind]] = (pairs.scores.numpy(), cosines(embed, pairs).numpy())
    likeness, judged = _documents(embed, texts.lee)
    panels[JUDGED["lee"]] = (judged, likeness)
    scatter = plots.scatter(
        panels, "score by people", "cosine of the embeddings", "What people say, and the encoder"
    )
    write_atomically(path / "judged.png", scatter)


def table(metrics: dict[str, Any]) -> str:
    """The figures in a few lines."""
    systems = metrics["systems"]
    kinds = [kind for kind in (*JUDGED, RECALL) if kind in systems["siamcuda"]]
    names = JUDGED | {RECALL: "recall@1"}
    width = max(map(len, systems))
    lines = [" ".join([" " * width, *(f"{names[kind]:>13}" for kind in kinds)])]
    for name, figures in systems.items():
        cells = [_cell(figures[kind]) for kind in kinds]
        lines.append(" ".join([f"{name:<{width}}", *(f"{cell:>13}" for cell in cells)]))
    if JUDGED.keys() <= set(kinds):
        counts = ", ".join(f"{n:,}" for n in metrics["pairs_judged"].values())
        lines.append(f"Spearman's correlation with people's scores of {counts} pairs;")
    held_out = metrics["pairs_held_out"]
    lines += [
        f"recall@1: the nearest of {held_out:,} right texts is the left one's own",
        f"({metrics['pairs_train']:,} pairs learned from, {metrics['epochs']} epochs, "
        f"{metrics['seconds_training']:.0f} s of training on {metrics['threads']} threads)",
    ]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def headline(metrics: dict[str, Any]) -> str:
    """The figures that count."""
    own = metrics["systems"]["siamcuda"]
    if "lee" not in own:
        return f"recall@1 {100 * own[RECALL]:.1f} % of held-out pairs"
    found = ", ".join(f"{_cell(own[kind])} {name}" for kind, name in JUDGED.items())
    return f"Spearman {found}"


RECIPE = Recipe(
    options=TextSimilarity,
    run=run,
    table=table,
    headline=headline,
    data="WordNet's glosses and examples, Lee's news; WordSim353, SimLex999",
    pictures={
        "systems.png": "Each system on each set",
        "judged.png": "Every judged pair: people's score and the encoder's cosine",
        "training.png": "Loss and distances by epoch, and held-out glosses that miss their example",
    },
    quick=TextSimilarity(
        pairs="lee",
        wordllama=False,
        tokenizer=Tokenizer(length=1024, buckets=1 << 14),
        train=TrainConfig(epochs=2, device="cpu"),
    ),
)
