"""Which pictures a step encodes, and which pairs of them the loss sees.

A step encodes P people x K pictures once and pairs them many times: all genuine pairs among the
K pictures of each person, and as many impostor pairs, so that both kinds weigh the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["PeopleSampler", "balanced_pairs"]


class PeopleSampler:
    """Batches of P people x K pictures, drawn lazily; one epoch shows about as many as there are.

    Epoch e draws from a generator seeded with (seed, e) alone: a resumed run sees what an
    uninterrupted one sees.
    """

    def __init__(self, labels: Tensor, people: int, pictures: int, seed: int) -> None:
        people_labels = sorted(set(labels.tolist()))
        self.rows = [torch.nonzero(labels == label)[:, 0] for label in people_labels]
        self.people = min(people, len(self.rows))
        self.pictures = pictures
        self.seed = seed
        self.batches = max(1, round(len(labels) / (self.people * self.pictures)))

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int) -> Iterator[Tensor]:
        """Yield the rows of each batch, (P*K,) int64; a person with few pictures repeats some."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        for _ in range(self.batches):
            chosen = torch.randperm(len(self.rows), generator=generator)[: self.people]
            yield torch.cat([self._draw(self.rows[p], generator) for p in chosen.tolist()])

    def _draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        order = torch.randperm(len(rows), generator=generator)
        return rows[order.repeat(-(-self.pictures // len(rows)))[: self.pictures]]


def epoch_seed(seed: int, epoch: int) -> int:
    """Seeds of different runs and epochs that do not meet for epochs below 100,000."""
    return seed * 100_003 + epoch


def balanced_pairs(
    labels: Tensor, embeddings: Tensor, hard: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pair up a batch: every genuine pair, and as many impostor pairs.

    Args:
        labels: (B,) int64.
        embeddings: (B, D), the batch's embeddings; used for choosing alone, never differentiated.
        hard: share of the impostor pairs that are the closest ones; the others are random.
        generator: source of the random ones.

    Returns:
        i, j: (M,) int64 rows of the batch; target: (M,) int64, 0 genuine, 1 impostor.
    """
    i, j = torch.triu_indices(len(labels), len(labels), offset=1)
    same = labels[i] == labels[j]
    genuine, impostor = torch.nonzero(same)[:, 0], torch.nonzero(~same)[:, 0]
    count = min(len(genuine), len(impostor))
    closest = round(hard * count)
    if closest:
        with torch.no_grad():
            distance = torch.cdist(embeddings.detach(), embeddings.detach())[i, j][impostor]
        order = torch.argsort(distance, stable=True)
        near, far = impostor[order[:closest]], impostor[order[closest:]]
    else:
        near, far = impostor[:0], impostor
    drawn = far[torch.randperm(len(far), generator=generator)[: count - closest]]
    chosen = torch.cat([genuine, near, drawn])
    return i[chosen], j[chosen], (~same[chosen]).long()
