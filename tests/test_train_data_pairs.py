"""Pairs in tables: of images, and of texts; and the sets of texts that packages carry."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("PIL")
pytest.importorskip("safetensors")

from PIL import Image
from torch.utils.data import DataLoader

from siamcuda.train.data import (
    PairFile,
    TextPairs,
    decode_texts,
    encode_texts,
    halve_documents,
    load_lee,
    load_simlex999,
    load_text_pairs,
    load_wordnet_pairs,
    load_wordsim353,
    text_sets,
)
from siamcuda.train.errors import InputError

SETTINGS: dict[str, Any] = {"size": (6, 5)}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.new("L", (5 + number, 6), number * 50).save(folder / f"{number}.png")
    return folder


def table(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- pairs of images ------------------------------------------------------------------------------


def test_pairs_of_images_are_read_by_the_names_of_their_columns(images: Path) -> None:
    text = (
        'label,note,LEFT,right\n0,"a, b",0.png,1.png\nDifferent,,2.png,0.png\n\nsame,,3.png,3.png\n'
    )
    data = PairFile(table(images.parent, "\ufeff" + text), images, **SETTINGS)
    assert (len(data), data.labels.tolist()) == (3, [0, 1, 0])
    assert data.names == ("similar", "dissimilar")
    found = data.load(torch.tensor([1, 0]))
    assert (found.shape, found.dtype) == ((2, 2, 1, 6, 5), torch.uint8)
    assert found[:, :, 0, 3, 2].tolist() == [[100, 0], [0, 50]]
    assert data.load(torch.tensor([], dtype=torch.int64)).shape == (0, 2, 1, 6, 5)
    tabs = table(images, "left\tright\tlabel\n0.png\t1.png\t1\n", "pairs.tsv")
    assert PairFile(tabs, channels=3, **SETTINGS).load(torch.tensor([0])).shape == (1, 2, 3, 6, 5)


def test_workers_load_pairs_and_digests_tell_them_apart(images: Path) -> None:
    rows = "0.png,1.png,0\n2.png,3.png,1\n"
    path = table(images, "left,right,label\n" + rows)
    data: Any = PairFile(path, **SETTINGS)
    copy = pickle.loads(pickle.dumps(data))
    assert copy.digest() == data.digest()

    class Rows(torch.utils.data.Dataset[torch.Tensor]):
        def __getitem__(self, index: int) -> torch.Tensor:
            found: torch.Tensor = copy.load(torch.tensor([index]))
            return found

        def __len__(self) -> int:
            return 2

    batches = list(DataLoader(Rows(), batch_size=None, num_workers=1))
    assert torch.equal(torch.cat(batches), data.load(torch.arange(2)))
    digests = {data.digest(), PairFile(path, size=(6, 6)).digest()}
    for changed in (rows.replace("3", "1"), rows.replace(",1\n", ",0\n")):
        table(images, "left,right,label\n" + changed)
        digests.add(PairFile(path, **SETTINGS).digest())
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first row must name the columns left, right, label once each, it has nothing"),
        ("left,right\n", "it has left, right"),
        ("left,left,right,label\n", "once each"),
        ("left,right,label\n", "holds no row"),
        ("left,right,label\n0.png,1.png,0\n0.png,9.png,1\n", r"line 3: no such image: .*9\.png"),
        ("left,right,label\n0.png,,0\n", "line 2: no such image"),
        ("left,right,label\n0.png,1.png,2\n", "line 2: the label '2' is none of 0, same"),
        ("left,right,label\n0.png,1.png\n", "line 2 has 2 fields, the first row 3"),
        ('left,right,label\n0.png,"1.png,0\n', r"after line \d: "),
        ("left,right,label\n0.png," + "x" * 200_000 + ",0\n", "after line 1: field larger"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_its_line(
    images: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=rf"data: .*pairs\.csv: .*{message}"):
        PairFile(table(images, text), **SETTINGS)


def test_tables_that_are_none_are_named(images: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.csv: No such file"):
        PairFile(images / "absent.csv", **SETTINGS)
    (images / "pairs.csv").write_bytes(b"left,right,label\n\xff\xfe,1,1\n")
    with pytest.raises(InputError, match="not a text file in UTF-8"):
        PairFile(images / "pairs.csv", **SETTINGS)
    data = PairFile(table(images, "left,right,label\n0.png,1.png,0\n"), **SETTINGS)
    (images / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1\.png: the file is empty"):
        data.load(torch.tensor([0]))


@settings(deadline=None, max_examples=150)
@given(
    content=st.binary(max_size=80)
    | st.text("left,righbs\t\n\"'#01é\0", max_size=60).map(str.encode)
)
def test_any_table_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(b"left,right,score\na,b,1\n" + content)
    try:
        assert len(load_text_pairs(path)) >= 1
    except InputError as error:
        assert "any.csv" in str(error)  # noqa: PT017  it may also work


# --- pairs of texts -------------------------------------------------------------------------------


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_texts_come_back_from_their_bytes(texts: list[str]) -> None:
    encoded = encode_texts(texts)
    assert encoded.shape == (len(texts), max((len(t.encode()) for t in texts), default=0))
    assert decode_texts(encoded) == texts


def test_text_pairs_are_examples(tmp_path: Path) -> None:
    path = table(tmp_path, "a\tb\tscore\nthe cat\t猫\t9.5\ndog\tcat\t2\nthe cat\tx\t0\n", "t.tsv")
    pairs = load_text_pairs(path, "a", "b")
    assert pairs.labels.tolist() == [0, 1, 0]
    assert pairs.names == ("the cat", "dog")
    assert pairs.scores is not None
    assert pairs.scores.tolist() == [9.5, 2, 0]
    found = pairs.load(torch.tensor([1, 0]))
    assert found.shape == (2, 2, 7)
    assert decode_texts(found.flatten(0, 1)) == ["dog", "cat", "the cat", "猫"]
    part = pairs.at(torch.tensor([1]))
    assert (part.left, part.names, part.labels.tolist()) == (("dog",), ("dog",), [0])
    assert pickle.loads(pickle.dumps(pairs)).digest() == pairs.digest() != part.digest()
    plain = load_text_pairs(table(tmp_path, "left,right\na,b\n"))
    assert plain.scores is None
    assert plain.digest() != load_text_pairs(table(tmp_path, 'left,right\nab,""""\n')).digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("left,right,score\na,b,1\na,,1\n", "line 3: a text is empty"),
        ("left,right,score\na,b,high\n", "line 2: 'high' is no score"),
        ("left,right,score\na,b,nan\n", "line 2: 'nan' is no score"),
        ("left,score\na,1\n", "must name the columns left, right"),
    ],
)
def test_text_rows_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"pairs\.csv: .*{message}"):
        load_text_pairs(table(tmp_path, text))


def test_text_pairs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="1 on the left, 2 on the right"):
        TextPairs(("a",), ("b", "c"))
    with pytest.raises(InputError, match=r"\(1,\) float64 is expected"):
        TextPairs(("a",), ("b",), torch.tensor([1.0]))
    with pytest.raises(InputError, match="every score must be finite"):
        TextPairs(("a",), ("b",), torch.tensor([np.inf], dtype=torch.float64))
    with pytest.raises(InputError, match="pair 0 holds a zero character"):
        TextPairs(("a",), ("b\0",))


# --- sets inside packages -------------------------------------------------------------------------


def installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def test_the_lee_corpus_is_read_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "lee.cor").write_bytes("one café\ntwo".encode("latin-1"))
    (tmp_path / "lee_background.cor").write_text("x y z\n\nv w\n")
    judged = tmp_path / "similarities0-1.txt"
    judged.write_text("1\t0.25\n0.5\t1\n")
    lee = load_lee(tmp_path)
    assert lee.documents == ("one café", "two")
    assert lee.similarity.tolist() == [[1, 0.25], [0.5, 1]]
    assert lee.background == ("x y z", "v w")
    both = halve_documents(lee.background)
    assert (both.left, both.right) == (("x", "v"), ("y z", "w"))
    for text in ("1 2\n", "1 2\n3\n", "1 x\n2 3\n", "1 nan\n2 3\n"):
        judged.write_text(text)
        with pytest.raises(InputError, match=r"similarities0-1\.txt"):
            load_lee(tmp_path)
    (tmp_path / "lee.cor").write_text("\n")
    with pytest.raises(InputError, match=r"lee\.cor: holds no document"):
        load_lee(tmp_path)
    (tmp_path / "lee.cor").unlink()
    with pytest.raises(InputError, match=r"cannot read .*lee\.cor: No such file"):
        load_lee(tmp_path)


def test_scored_words_are_read_from_a_file(tmp_path: Path) -> None:
    path = table(tmp_path, "# words\nlove\tsex\t6.77\nold\tnew\t1.58\n", "words.tsv")
    for load in (load_wordsim353, load_simlex999):
        pairs = load(path)
        assert (pairs.left, pairs.right) == (("love", "old"), ("sex", "new"))
        assert pairs.scores is not None
        assert pairs.scores.tolist() == [6.77, 1.58]
    for text, message in (("a\tb\n", "line 1: two words"), ("#\na\tb\tx\n", "line 2: 'x' is no")):
        with pytest.raises(InputError, match=rf"words\.tsv: {message}"):
            load_wordsim353(table(tmp_path, text, "words.tsv"))


def test_texts_of_gensim_are_whole_where_they_are_installed() -> None:
    if importlib.util.find_spec("gensim") is None:
        with pytest.raises(InputError, match="Lee corpus: not installed: pip install --no-deps"):
            load_lee()
    installed("gensim")
    before = set(sys.modules)
    lee = load_lee()
    assert (len(lee.documents), lee.similarity.shape, len(lee.background)) == (50, (50, 50), 300)
    assert float(lee.similarity.min()) >= 0
    assert bool((lee.similarity.diagonal() == 1).all())
    assert len(load_wordsim353()) == 353
    assert len(load_simlex999()) == 999
    assert not {name for name in set(sys.modules) - before if name.startswith("gensim")}


NOUNS = """\
  1 This software and database is being provided to you
00001740 03 n 01 entity 0 000 | that which is perceived  
00002684 03 n 01 object 0 000 | a tangible entity; that casts; "it was full of balls"; "a "  
00003993 03 n 01 stride 0 000 | progress (as in "make strides"); "great strides"- G.B.Shaw  
"""  # noqa: W291  the files end their lines so


def test_wordnet_pairs_glosses_with_their_examples(tmp_path: Path) -> None:
    for part in ("noun", "verb", "adj"):
        (tmp_path / f"data.{part}").write_text(NOUNS if part == "noun" else "")
    with pytest.raises(InputError, match=r"data\.adv is missing: apt install wordnet-base"):
        load_wordnet_pairs(tmp_path)
    (tmp_path / "data.adv").write_text("")
    pairs = load_wordnet_pairs(tmp_path)
    gloss = "a tangible entity; that casts"
    assert pairs.left == (gloss, gloss, 'progress (as in "make strides")')
    assert pairs.right == ("it was full of balls", "a", "great strides")
    assert pairs.labels.tolist() == [0, 0, 1]
    (tmp_path / "data.adv").write_text("00000001 no bar\n")
    with pytest.raises(InputError, match=r"data\.adv: line 1 is no synset"):
        load_wordnet_pairs(tmp_path)
    for part in ("noun", "adv"):
        (tmp_path / f"data.{part}").write_text("")
    with pytest.raises(InputError, match="holds no example"):
        load_wordnet_pairs(tmp_path)


def test_wordnet_is_whole_where_it_is_installed() -> None:
    if not text_sets.WORDNET.is_dir():
        pytest.skip(f"wordnet-base is not installed: no {text_sets.WORDNET}")
    pairs = load_wordnet_pairs()
    assert len(pairs) > 45_000
    assert len(pairs.names) > 30_000
