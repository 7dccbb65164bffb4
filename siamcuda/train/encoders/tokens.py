"""Sentences as numbers: words and pieces of words, by a vocabulary or by hashing."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from siamcuda.train.encoders.spec import from_fields
from siamcuda.train.errors import InputError

__all__ = ["Tokenizer"]

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Tokenizer:
    """Words, and the runs of letters in them, as ids: the same on every machine, with no file.

    A word gives its own id, then one for each run of ``shortest`` to ``longest`` letters of
    ``<word>``, where < and > mark its ends: unknown and misspelt words share most of them with
    words that were seen (Bojanowski et al., *Enriching word vectors with subword information*,
    2017). An id is a position in the vocabulary, counted from 1, or else a bucket that a keyed hash
    (BLAKE2b) chooses; 0 is padding.

    Args:
        buckets: how many ids hashing has. Two words in one bucket share what is learnt of them.
        shortest: letters of the shortest run, ends included.
        longest: letters of the longest run; 0 leaves runs out.
        length: tokens of a sentence that are kept, the first ones.
        lowercase: whether case is forgotten.
        seed: another seed puts other words together.
        vocabulary: words with ids of their own; the others are hashed.

    Example:
        >>> tokenizer = Tokenizer(buckets=1000, longest=0)
        >>> tokenizer.encode(["One fish, two fish", "Red fish"]).shape
        torch.Size([2, 4])
        >>> Tokenizer(longest=0, vocabulary=("red", "fish")).encode(["Red fish"])
        tensor([[1, 2]])
    """

    buckets: int = 1 << 16
    shortest: int = 3
    longest: int = 5
    length: int = 256
    lowercase: bool = True
    seed: int = 0
    vocabulary: tuple[str, ...] = ()
    _known: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)
    _cache: dict[str, tuple[int, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        for name, least in {"buckets": 1, "shortest": 1, "longest": 0, "length": 1}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(
                    f"tokenizer.{name}: an integer of at least {least} is expected: {value!r}"
                )
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 64:
            raise InputError(f"tokenizer.seed: an integer in [0, 2^64) is expected: {self.seed!r}")
        if isinstance(self.vocabulary, str) or not all(isinstance(w, str) for w in self.vocabulary):
            raise InputError("tokenizer.vocabulary: a list of words is expected")
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
        self._known.update({word: i for i, word in enumerate(self.vocabulary, 1)})
        if len(self._known) != len(self.vocabulary):
            raise InputError("tokenizer.vocabulary: a word stands in it twice")

    @property
    def size(self) -> int:
        """One more than the greatest id."""
        return 1 + len(self.vocabulary) + self.buckets

    def words(self, text: str) -> list[str]:
        """Split a text at what is neither letter, digit nor underscore; NFKC, and case as asked."""
        text = unicodedata.normalize("NFKC", text)
        return _WORD.findall(text.lower() if self.lowercase else text)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Ids of each text, padded with 0 to the longest: (B, L) int64, L at least 1."""
        if isinstance(texts, str):
            raise InputError("texts: a list of texts is expected, got one text")
        rows = []
        for text in texts:
            row: list[int] = []
            for word in self.words(text):
                if len(row) >= self.length:
                    break
                row += self._ids(word)
            rows.append(row[: self.length])
        ids = torch.zeros(len(rows), max((len(row) for row in rows), default=1) or 1).long()
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = torch.tensor(row, dtype=torch.int64)
        return ids

    def with_vocabulary(self, texts: Iterable[str], words: int, least: int = 2) -> Tokenizer:
        """Give the commonest ``words`` words of ``texts`` ids of their own, if met ``least`` times.

        Words that are equally common come in alphabetical order.
        """
        counts = Counter(word for text in texts for word in self.words(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        chosen = [word for word in ranked[:words] if counts[word] >= least]
        return dataclasses.replace(self, vocabulary=tuple(chosen))

    def as_json(self) -> dict[str, Any]:
        """What :meth:`from_json` takes."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return content | {"vocabulary": list(self.vocabulary)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Tokenizer:
        """Read what :meth:`as_json` gave; InputError names what is unknown or unusable."""
        return from_fields(cls, content, "tokenizer")

    def _ids(self, word: str) -> tuple[int, ...]:
        # Zipf: few words make most of a text, so each is hashed once; the cache stays small
        found = self._cache.get(word)
        if found is None:
            if len(self._cache) >= 1 << 17:
                self._cache.clear()
            marked = f"<{word}>"
            runs = [
                marked[start : start + letters]
                for letters in range(self.shortest, min(self.longest, len(marked) - 1) + 1)
                for start in range(len(marked) - letters + 1)
            ]
            own = self._known.get(word) or self._bucket("word", word)
            found = self._cache[word] = (own, *(self._bucket("run", run) for run in runs))
        return found

    def _bucket(self, kind: str, piece: str) -> int:
        digest = hashlib.blake2b(
            piece.encode("utf-8", "surrogatepass"),
            digest_size=8,
            key=self.seed.to_bytes(8, "little"),
            person=kind.encode(),
        ).digest()
        return 1 + len(self.vocabulary) + int.from_bytes(digest, "little") % self.buckets
