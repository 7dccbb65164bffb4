"""Texts by pairs: the recipe end to end on made-up texts, what it counts, pairs in the trainer."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for _extra in ("PIL", "accelerate", "matplotlib", "safetensors", "tensorboard", "tqdm"):
    pytest.importorskip(_extra)

from PIL import Image

from siamcuda.train.config import TrainConfig
from siamcuda.train.data import Lee, TextPairs, encode_texts
from siamcuda.train.encoders import EncoderConfig, EncoderSpec, Tokenizer
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import AllPairs, BothSides, ClassifiedPairs
from siamcuda.train.recipes import text_similarity
from siamcuda.train.samplers import PKSampler
from siamcuda.train.siamese import Siamese
from siamcuda.train.system import Outcome, System
from siamcuda.train.texts import TextViews
from siamcuda.train.trainer import fit

THINGS = (("engine", "wheel", "road"), ("leaf", "root", "forest"), ("sail", "wave", "harbour"),
          ("flour", "oven", "bread"), ("violin", "song", "opera"))  # fmt: skip
WORDS = Tokenizer(buckets=256, longest=0)


def sentences(count: int, seed: int) -> TextPairs:
    """Pairs of texts of one theme, whose left text says its number too."""
    random = np.random.default_rng(seed)
    sides: tuple[list[str], list[str]] = ([], [])
    for number in range(count):
        theme = THINGS[number % len(THINGS)]
        for side in sides:
            side.append(" ".join([*random.choice(theme, 4), f"n{seed}x{number}"]))
    return TextPairs(tuple(sides[0]), tuple(sides[1]))


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> text_similarity.TextSimilarity:
    """A run on made-up themes; people find two words alike that are of one theme."""
    words = [(word, other, float(theme == of))
             for theme in THINGS for word in theme for of in THINGS for other in of]  # fmt: skip
    judged = TextPairs(
        tuple(w for w, _, _ in words), tuple(o for _, o, _ in words),
        torch.tensor([score for _, _, score in words], dtype=torch.float64),
    )  # fmt: skip
    news = sentences(20, seed=1)
    theme = torch.arange(20) % len(THINGS)
    lee = Lee(news.left, (theme == theme[:, None]).double(), sentences(30, seed=2).left)
    monkeypatch.setattr(text_similarity, "load_lee", lambda: lee)
    monkeypatch.setattr(text_similarity, "load_wordsim353", lambda: judged)
    monkeypatch.setattr(text_similarity, "load_simlex999", lambda: judged)
    monkeypatch.setattr(
        text_similarity, "load_wordnet_pairs", lambda folder: sentences(150, seed=3)
    )
    return text_similarity.TextSimilarity(
        out=tmp_path / "run", wordllama=False, threads=1, tokenizer=WORDS, pairs_per_batch=5,
        encoder=EncoderConfig("text", 8, options={"width": 16, "hidden": 16}),
        train=TrainConfig(epochs=4, learning_rate=1e-2, device="cpu"),
    )  # fmt: skip


def test_every_file_is_left_and_people_are_agreed_with(
    options: text_similarity.TextSimilarity,
) -> None:
    metrics = text_similarity.run(options)
    assert {path.name for path in options.out.iterdir()} == {
        "config.json", "checkpoint.safetensors", "calibrator.json", "history.json", "metrics.json",
        "tensorboard", "training.png", "judged.png", "systems.png",
    }  # fmt: skip
    assert json.loads((options.out / "metrics.json").read_text()) == metrics
    assert (metrics["pairs_train"], metrics["pairs_held_out"]) == (150 - 15 + 30, 15)
    assert metrics["pairs_judged"] == {"wordsim353": 225, "simlex999": 225, "lee": 190}
    own, before = metrics["systems"]["siamcuda"], metrics["systems"]["before training"]
    assert own["wordsim353"] > 0.5 > before["wordsim353"]
    assert own["lee"] > 0.2  # 190 pairs: chance is 0, give or take 0.07
    assert 0 <= own["recall_at_1"] <= 1
    assert f"{own['lee']:.3f}" in text_similarity.table(metrics)
    assert f"{own['lee']:.3f} Lee documents" in text_similarity.headline(metrics)
    for picture in options.out.glob("*.png"):
        with Image.open(picture) as image:
            image.load()
    trained = Siamese.load(options.out)
    z = trained.embed_texts(["oven bread", "flour bread", "sail wave"])
    near, far = trained.compare(z[[0, 0]], z[[1, 2]])
    assert near.distance < far.distance
    assert near.similarity is not None
    assert text_similarity.run(options) == metrics  # a finished run is kept


def test_validation_looks_at_no_judgement(options: text_similarity.TextSimilarity) -> None:
    quick = replace(options, validate=True, pairs="lee", train=TrainConfig(epochs=1, device="cpu"))
    metrics = text_similarity.run(quick)
    assert metrics["pairs_train"] == 27
    assert all(list(figures) == ["recall_at_1"] for figures in metrics["systems"].values())
    assert "recall@1" in text_similarity.headline(metrics)
    assert "WordSim353" not in text_similarity.table(metrics)
    assert not (options.out / "judged.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 1}, "held_out: must be at least 2"),
        ({"pairs_per_batch": 1}, "pairs_per_batch: must be at least 2"),
        ({"pairs": "both"}, "pairs: 'both' is none of wordnet, lee"),
        ({"drop": 1.0}, r"drop: must lie in \[0, 1\)"),
        ({"objective": AllPairs(margin=-1.0)}, "margin: must be finite"),
        ({"encoder": EncoderConfig("fast")}, "inputs: fast takes images"),
    ],
)
def test_settings_that_cannot_work(
    options: text_similarity.TextSimilarity, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        text_similarity.run(replace(options, **change))
    assert not options.out.exists()


def test_missing_wordnet_is_named(
    options: text_similarity.TextSimilarity, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    pytest.importorskip("gensim")
    with pytest.raises(InputError, match=r"data\.noun is missing: apt install wordnet-base"):
        text_similarity.run(replace(options, wordnet=tmp_path))
    assert not options.out.exists()


def test_wordllama_is_read_from_its_package() -> None:
    pytest.importorskip("wordllama")
    embed = text_similarity.load_wordllama()
    pairs = TextPairs(("cat", "cat"), ("kitten", "bolt"))
    near, far = text_similarity.cosines(embed, pairs).tolist()
    assert near > far


# --- what is kept apart, and what is counted ------------------------------------------------------


def test_copies_share_half_of_their_runs() -> None:
    known = "the quick brown fox jumps over the lazy dog again"  # six runs of five words
    found = text_similarity.copies(
        [
            "The QUICK brown fox, jumps over the lazy dog again!",
            "the quick brown fox jumps over the lazy",  # four runs, all of them
            "a b c d e f quick brown fox jumps over the lazy",  # three of nine: half of the six
            "a b c d e f brown fox jumps over the lazy",  # two of them
            "the quick brown fox",  # short: one run, of its own
            "she ran",
            "",
        ],
        [known, "She ran!"],
    )
    assert found == [True, True, True, False, False, True, False]


def test_what_is_held_out_is_never_learned() -> None:
    left = tuple(f"gloss number {i // 2} of the book" for i in range(60))  # two examples each
    right = tuple(f"example {i} of this long list" for i in range(60))
    known, held_out = text_similarity.keep_out(TextPairs(left, right), 20)
    assert len(held_out) == len(held_out.names) == 3  # a tenth of 30 classes
    assert len(known) == 54
    assert not set(known.left) & set(held_out.left)
    twin = TextPairs((*known.left, "another gloss"), (*known.right, held_out.right[1].upper()))
    whole = TextPairs(twin.left + held_out.left, twin.right + held_out.right)
    for _ in range(2):  # the same ones in every run
        again = text_similarity.keep_out(whole, 20)
        assert not set(map(str.lower, again[0].right)) & set(map(str.lower, again[1].right))
    with pytest.raises(InputError, match="held_out: 3 classes of pairs are too few"):
        text_similarity.keep_out(held_out, 20)


def test_ranks_correlate_as_scipy_says() -> None:
    scipy = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    x = random.integers(0, 6, 50).astype(float)  # many ties
    y = x + random.normal(0, 2, 50)
    found = text_similarity.spearman(x, y)
    assert found == pytest.approx(scipy.spearmanr(x, y).statistic, abs=1e-12)
    assert text_similarity.spearman(x, -np.exp(x)) == pytest.approx(-1)
    assert text_similarity.spearman(x, np.ones(50)) is None


def test_rare_words_count_more() -> None:
    known = ["red fish", "blue fish", "old fish"]
    found = text_similarity.tf_idf(["Red fish, red!", "bird"], known)
    fish, red, bird = np.log(4 / 4) + 1, np.log(4 / 2) + 1, np.log(4 / 1) + 1
    expected = torch.tensor([[2 * red, fish, 0], [0, 0, bird]], dtype=torch.float32)
    torch.testing.assert_close(found, expected)


def test_the_nearest_right_text_counts() -> None:
    places = {"a": [1.0, 0], "b": [0.0, 1], "c": [1, 1], "x": [2.0, 0.1], "y": [1.0, 0.9],
              "z": [0, 0.1]}  # fmt: skip

    def embed(texts: Any) -> torch.Tensor:
        return torch.tensor([places[text] for text in texts])

    pairs = TextPairs(("a", "b", "c"), ("x", "y", "z"))
    assert text_similarity.recall(embed, pairs) == pytest.approx(1 / 3)  # a alone finds its own
    scored = text_similarity.cosines(embed, TextPairs(("a", "a"), ("b", "c")))
    torch.testing.assert_close(scored, torch.tensor([0, 0.5**0.5], dtype=torch.float64))


# --- pairs of texts in the trainer ----------------------------------------------------------------


def test_views_are_ids_of_the_left_texts_and_then_of_the_right_ones() -> None:
    pairs = TextPairs(("one fish", "red"), ("two naïve fish", "blue fish"))
    stored = pairs.load(torch.arange(2))
    views = TextViews(WORDS)
    expected = WORDS.encode([*pairs.left, *pairs.right])
    assert torch.equal(views(stored, torch.Generator()), expected)
    assert torch.equal(views(encode_texts(pairs.right), None), WORDS.encode(pairs.right))
    for wrong in (stored.long(), stored[0, 0], stored[:, :1]):
        with pytest.raises(ValueError, match="texts: uint8"):
            views(wrong, None)


def test_random_views_leave_ids_out() -> None:
    texts = encode_texts(["a b c d e f g h"] * 400)
    views = TextViews(WORDS, drop=0.25)
    whole = views(texts, None)
    found = views(texts, torch.Generator().manual_seed(0))
    left_out = found != whole
    assert bool((found[left_out] == 0).all())
    assert float(left_out.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(found, views(texts, torch.Generator().manual_seed(0)))


def test_both_sides_of_a_pair_are_of_one_class() -> None:
    heard = []

    def objective(
        outputs: torch.Tensor, labels: torch.Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        heard.append((outputs, labels.tolist(), generator, tell))
        return Outcome(outputs.sum(), {})

    outputs, generator = torch.randn(6, 2), torch.Generator()
    loss = BothSides(objective)(outputs, torch.tensor([4, 4, 7]), generator, True).loss
    assert loss == outputs.sum()
    assert heard == [(outputs, [4, 4, 7, 4, 4, 7], generator, True)]
    with pytest.raises(ValueError, match="outputs: 6 rows are expected"):
        BothSides(objective)(outputs[:5], torch.tensor([4, 4, 7]), generator, True)


def test_what_an_objective_learns_of_pairs_is_trained() -> None:
    head = torch.nn.Bilinear(4, 4, 2)
    both = BothSides(ClassifiedPairs(head))
    assert [p.shape for p in both.parameters()] == [p.shape for p in head.parameters()]


@pytest.mark.parametrize("chunk", [0, 3])
def test_text_pairs_are_learned_and_resumed(chunk: int, tmp_path: Path) -> None:
    """As docs/training.md shows; a state of a wrapped objective is read again."""
    pairs = sentences(40, seed=0)
    spec = EncoderSpec(EncoderConfig("text", 8, options={"width": 16, "hidden": 16}), WORDS)

    def made() -> System:
        return System(
            model=spec.build(0),
            objective=BothSides(AllPairs("chopra", q=1.0)),
            examples=pairs,
            sampler=PKSampler(pairs.labels, classes=8, examples=1, seed=0),
            transform=TextViews(WORDS, drop=0.1),
        )

    config = TrainConfig(epochs=4, learning_rate=1e-2, device="cpu", chunk=chunk, patience=0)
    whole = made()
    history = fit(whole, config, state=tmp_path / "state").history
    assert history[-1].loss < 0.8 * history[0].loss
    again = made()
    assert fit(again, config, state=tmp_path / "state").history == history
    for name, weights in again.model.state_dict().items():
        assert torch.equal(weights, whole.model.state_dict()[name])


def test_one_example_of_each_class_needs_no_class_of_two() -> None:
    sampler = PKSampler(torch.arange(10), classes=4, examples=1, seed=0)
    assert [len(rows) for rows in sampler.epoch(0)] == [4, 4]
    assert all(len(rows.unique()) == 4 for rows in sampler.epoch(1))
    with pytest.raises(InputError, match="no class has two examples"):
        PKSampler(torch.arange(10), classes=4, examples=2, seed=0)
    with pytest.raises(InputError, match="telling apart takes two"):
        PKSampler(torch.zeros(10), classes=4, examples=1, seed=0)
