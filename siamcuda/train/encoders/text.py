"""A quick encoder of sentences: a weighted mean of learnt vectors, and a small network on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siamcuda.train.encoders.layers import at_least, finish
from siamcuda.train.encoders.tokens import Tokenizer
from siamcuda.train.errors import InputError

__all__ = ["TextEncoder"]

WORDS = Tokenizer()


class TextEncoder(nn.Module):
    """Vectors of words and runs of letters, their mean with learnt weights, a small network.

    ==========  ====================================================  ===========
    layer                                                             output
    ==========  ====================================================  ===========
    weights     softmax over the sentence of one learnt score an id   L
    bag         mean of the ids' vectors with these weights           width
    network     layer norm, linear, GELU, linear                      embedding
    skip        linear, added to what the network gives               embedding
    ==========  ====================================================  ===========

    The order of words is not seen. A score is the logarithm of a weight, so that
    :meth:`weigh_by_rarity` starts them as inverse document frequencies; training moves them on.

    8,536,833 parameters with the default tokenizer, all but 82,560 of them vectors and scores of
    ids; 0.16 MFLOP a sentence beside reading its vectors.

    Sources: a mean with weights by frequency is the baseline of S. Arora, Y. Liang, T. Ma, *A
    simple but tough-to-beat baseline for sentence embeddings*, ICLR 2017; learning means of word
    vectors from pairs of sentences is J. Wieting, M. Bansal, K. Gimpel, K. Livescu, *Towards
    universal paraphrastic sentence embeddings*, ICLR 2016.

    Args:
        embedding: length of the embedding.
        inputs: the tokenizer, whose ids this takes.
        normalize: scale embeddings to length 1.
        width: length of the vectors of ids.
        hidden: units between the two linear layers.
    """

    def __init__(
        self,
        embedding: int = 128,
        inputs: Tokenizer = WORDS,
        *,
        normalize: bool = True,
        width: int = 128,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        at_least(1, width=width, hidden=hidden)
        self.ids = inputs.size
        self.bag = nn.EmbeddingBag(self.ids, width, mode="sum", padding_idx=0)
        self.score = nn.Embedding(self.ids, 1)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, embedding)
        )
        self.skip = nn.Linear(width, embedding, bias=False)
        self.normalize = normalize
        # Small: an optimizer's steps have a length of their own, and a vector that is long to begin
        # with hardly turns in the few steps that a rare word gets.
        with torch.no_grad():
            self.bag.weight.mul_(0.02)
        nn.init.zeros_(self.score.weight)  # a plain mean to begin with

    def weights(self, ids: Tensor) -> Tensor:
        """How much each token counts, (B, L) -> (B, L); a row sums to 1, or to 0 if it is empty."""
        padding = ids == 0
        scores = self.score(ids).squeeze(2).masked_fill(padding, -1e4)
        return torch.softmax(scores, 1).masked_fill(padding, 0)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed sentences: (B, L) int64, 0 is padding -> (B, embedding)."""
        if ids.dim() != 2 or ids.dtype != torch.int64:
            raise InputError(f"ids: (B, L) int64 is expected, got {tuple(ids.shape)} {ids.dtype}")
        weights = self.weights(ids)
        if torch.compiler.is_exporting():  # ONNX has no bag of embeddings
            mean = (weights.unsqueeze(1) @ self.bag.weight[ids]).squeeze(1)
        else:
            mean = self.bag(ids, per_sample_weights=weights.to(self.bag.weight.dtype))
        return finish(self.network(mean) + self.skip(mean), self.normalize)

    @torch.no_grad()
    def weigh_by_rarity(self, ids: Tensor) -> None:
        """Start the weights as inverse document frequencies of the rows of ``ids`` (N, L)."""
        documents = torch.zeros(self.ids, dtype=torch.int64)
        for part in ids.cpu().split(1024):  # at once, long rows of many texts take gigabytes
            ordered = part.sort(1).values
            first = torch.ones_like(ordered, dtype=torch.bool)
            first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
            documents += torch.bincount(ordered[first & (ordered != 0)], minlength=self.ids)
        rarity = torch.log((1 + len(ids)) / (1 + documents.double())) + 1
        self.score.weight.copy_(rarity.log().unsqueeze(1))
