"""Texts with human judgements, and pairs to learn from, as installed packages carry them.

Lee: M. D. Lee, B. Pincombe and M. Welsh, An empirical evaluation of models of text document
similarity (2005). WordSim353: L. Finkelstein and others, Placing search in context (2002).
SimLex999: F. Hill, R. Reichart and A. Korhonen, SimLex-999 (2015). WordNet: Princeton University.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from siamcuda.train.data.folders import read_bytes
from siamcuda.train.data.packages import find_in_package
from siamcuda.train.data.tables import read_rows
from siamcuda.train.data.text import TextPairs, make_pairs
from siamcuda.train.errors import InputError

__all__ = [
    "WORDNET",
    "Lee",
    "halve_documents",
    "load_lee",
    "load_simlex999",
    "load_wordnet_pairs",
    "load_wordsim353",
]

_GENSIM = "pip install --no-deps gensim"
#: Where Debian and its kin install the package wordnet-base.
WORDNET = Path("/usr/share/wordnet")


class Lee(NamedTuple):
    """The Lee corpus: news in English with people's judgement of every two."""

    documents: tuple[str, ...]  # 50
    similarity: Tensor  # (50, 50) float64 in 0...1; the two orders of a pair may differ
    background: tuple[str, ...]  # 300 more, without judgements


def load_lee(folder: Path | None = None) -> Lee:
    """Read the Lee corpus of ``folder``; by default that among gensim's test data.

    Raises:
        InputError: the package is not installed, or a file is missing or broken.
    """
    folder = _test_data("lee.cor", "the Lee corpus") if folder is None else folder
    documents = _documents(folder / "lee.cor")
    path = folder / "similarities0-1.txt"
    try:
        table = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"data: cannot read {path}: {error}") from error
    if table.shape != (len(documents),) * 2 or not np.isfinite(table).all():
        raise InputError(
            f"data: {path}: {len(documents)} rows of as many finite numbers are expected, got "
            f"{table.shape}"
        )
    return Lee(documents, torch.from_numpy(table), _documents(folder / "lee_background.cor"))


def _documents(path: Path) -> tuple[str, ...]:
    """One document a line; the files are in Latin-1, in which every byte is a character."""
    documents = tuple(line for line in read_bytes(path).decode("latin-1").splitlines() if line)
    if not documents:
        raise InputError(f"data: {path}: holds no document")
    return documents


def load_wordsim353(path: Path | None = None) -> TextPairs:
    """Read WordSim353, 353 pairs of words scored 0...10 for relatedness; by default gensim's copy.

    Raises:
        InputError: the package is not installed, or names the line that can't be used.
    """
    return _scored(path or _test_data("wordsim353.tsv", "WordSim353") / "wordsim353.tsv")


def load_simlex999(path: Path | None = None) -> TextPairs:
    """Read SimLex999, 999 pairs of words scored 0...10 for similarity; by default gensim's copy.

    Raises:
        InputError: the package is not installed, or names the line that can't be used.
    """
    return _scored(path or _test_data("simlex999.txt", "SimLex999") / "simlex999.txt")


def _test_data(file: str, what: str) -> Path:
    return find_in_package("gensim", f"test/test_data/{file}", what, _GENSIM).parent


def _scored(path: Path) -> TextPairs:
    """Rows of word, word, score, parted by tabs; comments begin with #."""
    lines, rows = [], []
    for line, row in read_rows(path):
        if row[0].startswith("#"):
            continue
        if len(row) != 3 or not all(row):
            raise InputError(f"data: {path}: line {line}: two words and a score are expected")
        lines.append(line)
        rows.append(row)
    return make_pairs(path, lines, rows)


def halve_documents(documents: tuple[str, ...]) -> TextPairs:
    """Pair the first half of each document's words with the second: pairs to learn from.

    >>> halve_documents(("one two three four",)).right
    ('three four',)
    """
    words = [document.split() for document in documents]
    cut = [(row[: len(row) // 2], row[len(row) // 2 :]) for row in words if len(row) > 1]
    return TextPairs(
        tuple(" ".join(left) for left, _ in cut), tuple(" ".join(right) for _, right in cut)
    )


def load_wordnet_pairs(folder: Path = WORDNET) -> TextPairs:
    """Read what WordNet explains and shows: pairs (gloss, example sentence), one an example.

    Args:
        folder: holds data.noun, data.verb, data.adj and data.adv, as in WordNet's own ``dict``
            folder and Debian's package wordnet-base.

    Raises:
        InputError: names the file that is missing, or the line that is none of WordNet's.
    """
    pairs: list[tuple[str, str]] = []
    for part in ("noun", "verb", "adj", "adv"):
        path = folder / f"data.{part}"
        if not path.is_file():
            raise InputError(
                f"data: {path} is missing: apt install wordnet-base, or give WordNet's dict folder"
            )
        pairs += _examples(path)
    if not pairs:
        raise InputError(f"data: {folder} holds no example")
    return TextPairs(tuple(left for left, _ in pairs), tuple(right for _, right in pairs))


def _examples(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of one file: a synset a line, its gloss after a bar, examples in quotes at its end."""
    for number, line in enumerate(read_bytes(path).decode("latin-1").split("\n"), 1):
        if not line or line.startswith("  "):  # the licence
            continue
        data, bar, text = line.partition(" | ")
        if not bar or not data[:8].isdecimal():
            raise InputError(f"data: {path}: line {number} is no synset")
        first = re.search(r';\s*"', text)  # a gloss may quote a word itself
        if first is None:
            continue
        gloss = text[: first.start()].strip()
        for example in re.findall(r'"([^"]+)"', text[first.start() :]):
            if gloss and example.strip(" ;"):
                yield gloss, example.strip()
