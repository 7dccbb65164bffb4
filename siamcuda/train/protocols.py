"""Turning embeddings of test people into genuine and impostor distances.

``pair``      every two pictures. Genuine: two of one person. Impostor: two of two people.
``enrolled``  a person's first ``ENROLLED`` pictures are that person's model; every other picture is
              a probe, compared with the model of every person by the distance to the model's
              nearest picture. Genuine: the probe's own model (the probe is never part of it).
              Impostor: each other person's model.

Five people with ten pictures give 225 + 1000 pairs, and 25 genuine + 100 impostor trials.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ENROLLED", "Trials", "enrolled_trials", "every_pair", "pair_trials"]

#: Pictures in the model of a person.
ENROLLED = 5


class Trials(NamedTuple):
    """Distances of the genuine and of the impostor trials."""

    genuine: Tensor  # (G,)
    impostor: Tensor  # (I,)


def every_pair(
    embeddings: Tensor, labels: Tensor, compare: Callable[[Tensor, Tensor], Tensor]
) -> Trials:
    """Compare every two pictures once.

    Args:
        embeddings: (N, D).
        labels: (N,), whom each shows.
        compare: (M, D), (M, D) -> (M,), small for pictures of one person.
    """
    i, j = torch.triu_indices(len(labels), len(labels), offset=1)
    distance = compare(embeddings[i], embeddings[j])
    same = labels[i] == labels[j]
    return Trials(distance[same], distance[~same])


def pair_trials(embeddings: Tensor, labels: Tensor, p: float = 2.0) -> Trials:
    """Compare every two pictures once, by the L1 or L2 distance of their embeddings."""
    return every_pair(embeddings, labels, lambda x1, x2: (x1 - x2).norm(p=p, dim=1))


def enrolled_trials(embeddings: Tensor, labels: Tensor, p: float = 2.0) -> Trials:
    """Compare every probe with every person's model: the distance to its nearest picture."""
    people = sorted(set(labels.tolist()))
    enrolled = torch.zeros(len(labels), dtype=torch.bool)
    for person in people:
        enrolled[torch.nonzero(labels == person)[:ENROLLED, 0]] = True
    probes, probe_labels = embeddings[~enrolled], labels[~enrolled]
    columns = []
    for person in people:
        model = embeddings[enrolled & (labels == person)]  # (ENROLLED, D)
        distances = (probes[:, None] - model).norm(p=p, dim=2)
        columns.append(distances.min(1).values)
    distance = torch.stack(columns, 1)  # (probes, people)
    own = probe_labels[:, None] == torch.tensor(people)
    return Trials(distance[own], distance[~own])
