"""Losses of a batch as settings: what --objective chooses, with the options of each.

``losses="reference"`` takes the plain PyTorch twins (siamcuda.reference) instead of the fused ones:
the same numbers, for measuring what fusing is worth. With several ranks the losses over all pairs
and triplets are those of the joined batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

import siamcuda
from siamcuda import reference
from siamcuda.functional import LossStats
from siamcuda.train.config import check_choices
from siamcuda.train.errors import InputError
from siamcuda.train.system import Objective, Outcome

__all__ = [
    "AllPairs",
    "BothSides",
    "ClassifiedPairs",
    "ComparedPairs",
    "CrossTriplets",
    "DrawnPairs",
    "HardPairs",
    "LabelledPairs",
    "PairScores",
    "Triplets",
    "balanced_pairs",
]

Losses = Literal["fused", "reference"]
PairLoss = Literal["chopra", "contrastive"]
Energy = Literal["l2", "l1"]


class _Options:
    """Options of an objective: its fields."""

    def check(self) -> None:
        """Raise InputError that names the first setting that cannot work."""
        check_choices(self)
        for one in fields(self):  # type: ignore[arg-type]  # every objective is a dataclass
            value = getattr(self, one.name)
            if not isinstance(value, float):
                continue
            if one.name == "q" and not (math.isfinite(value) and value > 0):
                raise InputError(f"q: must be finite and > 0, got {value}")
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{one.name}: must be finite and >= 0, got {value}")
            if one.name == "hard" and value > 1:
                raise InputError(f"hard: must lie in [0, 1], got {value}")


def _paired_loss(objective: HardPairs | DrawnPairs, x1: Tensor, x2: Tensor, y: Tensor) -> Tensor:
    source: Any = reference if objective.losses == "reference" else siamcuda
    options: dict[str, Any]
    if objective.loss == "chopra":
        options = {"q": objective.q, "energy": objective.energy}
        loss: Tensor = source.chopra_loss(x1, x2, y, **options)
    else:
        loss = source.contrastive_loss(x1, x2, y, margin=objective.margin)
    return loss


def _energies(x1: Tensor, x2: Tensor, y: Tensor, energy: str) -> dict[str, Tensor]:
    """Mean distances of the genuine and of the impostor pairs."""
    with torch.no_grad():
        distance = (x1 - x2).norm(p=1 if energy == "l1" else 2, dim=1)
        return {"genuine": distance[y == 0].mean(), "impostor": distance[y == 1].mean()}


@dataclass(frozen=True)
class HardPairs(_Options):
    """All genuine pairs of a P×K batch, and as many impostor pairs, the closest ones or any."""

    loss: PairLoss = "chopra"
    q: float = 4.0  # Q of the Chopra loss
    energy: Energy = "l2"  # distance of the Chopra loss
    margin: float = 1.0  # of the contrastive loss
    hard: float = 1.0  # share of the impostor pairs that are the closest of the batch
    losses: Losses = "fused"

    def __call__(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        """The mean over the pairs; outputs (B, D)."""
        return self.of(self.pairs(outputs, labels, generator), tell)

    def pairs(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pair up a batch (B, D): x1 and x2 (M, D), y (M,) 0 genuine, 1 impostor."""
        i, j, y = balanced_pairs(labels, outputs, self.hard, generator)
        return outputs[i], outputs[j], y

    def of(self, pairs: tuple[Tensor, Tensor, Tensor], tell: bool) -> Outcome:
        """The mean over pairs as :meth:`pairs` gives them."""
        loss = _paired_loss(self, *pairs)
        return Outcome(loss, _energies(*pairs, self.energy) if tell else {})


@dataclass(frozen=True)
class DrawnPairs(_Options):
    """Pairs as a PairSampler draws them: the left halves of a batch, then the right ones."""

    loss: PairLoss = "contrastive"
    q: float = 4.0  # Q of the Chopra loss
    energy: Energy = "l2"  # distance of the Chopra loss
    margin: float = 1.0  # of the contrastive loss
    losses: Losses = "fused"

    def __call__(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        """The mean over the pairs; outputs (2M, D)."""
        (x1, x2), (left, right) = outputs.chunk(2), labels.chunk(2)
        y = (left != right).long()
        loss = _paired_loss(self, x1, x2, y)
        return Outcome(loss, _energies(x1, x2, y, self.energy) if tell else {})


@dataclass(frozen=True)
class LabelledPairs(DrawnPairs):
    """Pairs with a verdict each, as a PairFile has them, both halves encoded alike (Branches)."""

    def __call__(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        """The mean over the pairs; outputs (B, 2, D), labels 0 similar, 1 not."""
        x1, x2 = outputs.unbind(1)
        loss = _paired_loss(self, x1, x2, labels)
        return Outcome(loss, _energies(x1, x2, labels, self.energy) if tell else {})


def _batch_loss(
    name: str, losses: Losses, outputs: Tensor, labels: Tensor, tell: bool, **options: Any
) -> Outcome:
    """A loss over the batch, joined over the ranks where there are several."""
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    joined = joined and torch.distributed.get_world_size() > 1
    if losses == "reference":
        if joined:
            raise InputError("losses: the reference losses know one process; leave it at fused")
        return Outcome(getattr(reference, name)(outputs, labels, **options), {})
    source: Any = siamcuda.distributed if joined else siamcuda
    if joined:
        options["ddp"] = True
    if not tell:
        return Outcome(getattr(source, name)(outputs, labels, **options), {})
    loss, stats = getattr(source, name)(outputs, labels, return_stats=True, **options)
    return Outcome(loss, _told(stats))


def _told(stats: LossStats) -> Mapping[str, Tensor]:
    """What is reported of a batch loss."""
    return {
        "genuine": stats.mean_positive_distance,
        "impostor": stats.mean_negative_distance,
        "active": stats.active / stats.valid.clamp(min=1),
    }


@dataclass(frozen=True)
class AllPairs(_Options):
    """Every pair of the batch."""

    loss: PairLoss = "contrastive"
    q: float = 4.0  # Q of the Chopra loss
    energy: Energy = "l2"  # distance of the Chopra loss
    margin: float = 1.0  # of the contrastive loss
    reduction: Literal["mean", "mean_active"] = "mean"
    losses: Losses = "fused"

    def __call__(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        """The mean over all pairs; outputs (B, D)."""
        options: dict[str, Any] = {"margin": self.margin}
        if self.loss == "chopra":
            options = {"q": self.q, "energy": self.energy}
        name = f"batch_{self.loss}_loss"
        return _batch_loss(
            name, self.losses, outputs, labels, tell, reduction=self.reduction, **options
        )


@dataclass(frozen=True)
class Triplets(_Options):
    """Triplets of the batch, all of them or mined."""

    mining: Literal["all", "hard", "semihard", "easy_positive"] = "all"
    margin: float = 0.2
    squared: bool = True  # FaceNet's squared distances
    soft: bool = False  # softplus instead of the hinge
    reduction: Literal["mean", "mean_active"] = "mean_active"
    losses: Losses = "fused"

    def __call__(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        """The mean over the triplets; outputs (B, D)."""
        return _batch_loss(
            "batch_triplet_loss", self.losses, outputs, labels, tell, margin=self.margin,
            mining=self.mining, squared=self.squared, soft=self.soft, reduction=self.reduction,
        )  # fmt: skip


@dataclass(frozen=True)
class CrossTriplets(Triplets):
    """Pairs that belong together: each half is nearer to its other than to the halves of others.

    Anchors are of one side, positives and negatives of the other, then the other way round: two
    halves of one side are never compared, so the sides may lie wherever they like.
    """

    def __call__(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        """The mean over the triplets of both directions; outputs (B, 2, D)."""
        pair = torch.arange(len(outputs), device=outputs.device)
        source: Any = reference if self.losses == "reference" else siamcuda

        def across(x1: Tensor, x2: Tensor, **options: Any) -> Any:
            return source.batch_triplet_loss(
                x1, pair, ref_embeddings=x2, ref_labels=pair, margin=self.margin,
                mining=self.mining, squared=self.squared, soft=self.soft,
                reduction=self.reduction, **options,
            )  # fmt: skip

        x1, x2 = (side.contiguous() for side in outputs.unbind(1))
        if not tell or self.losses == "reference":
            return Outcome((across(x1, x2) + across(x2, x1)) / 2, {})
        loss, stats = across(x1, x2, return_stats=True)
        return Outcome((loss + across(x2, x1)) / 2, _told(stats))


@dataclass(frozen=True)
class PairScores(_Options):
    """Scores of pairs that a model sees together: high for similar ones, label 0."""

    loss: Literal["logistic", "hinge"] = "logistic"

    def __call__(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        """The mean over the pairs; outputs (B,), labels 0 similar, 1 not."""
        sign = 1 - 2 * labels.to(outputs.dtype)
        if self.loss == "logistic":
            loss = functional.softplus(-sign * outputs).mean()
        else:
            loss = (1 - sign * outputs).clamp(min=0).mean()
        if not tell:
            return Outcome(loss, {})
        right = (sign * outputs.detach() > 0).double().mean()
        return Outcome(loss, {"accuracy": right})


class ClassifiedPairs(nn.Module):
    """Pairs as a PairSampler draws them, told apart by a head that learns with the encoder.

    Args:
        head: (M, D), (M, D) -> (M, 2), logits of "same" and "different".
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        """The mean cross entropy of the pairs; outputs (2M, D)."""
        (x1, x2), (left, right) = outputs.chunk(2), labels.chunk(2)
        y = (left != right).long()
        logits = self.head(x1, x2)
        loss = functional.cross_entropy(logits, y)
        if not tell:
            return Outcome(loss, {})
        accuracy = (logits.detach().argmax(1) == y).double().mean()
        return Outcome(loss, {"accuracy": accuracy, **_energies(x1, x2, y, "l2")})


class ComparedPairs(nn.Module):
    """Pairs as :class:`HardPairs` makes them, with its loss; a head learns to tell them apart.

    Args:
        head: (M, D), (M, D) -> (M, 2), logits of "same" and "different".
        pairs: which pairs, and the loss of their distances.
        joint: the encoder learns by the head's cross entropy too; else by the distances alone.
    """

    def __init__(self, head: nn.Module, pairs: HardPairs, joint: bool) -> None:
        super().__init__()
        self.head, self.pairs, self.joint = head, pairs, joint

    def forward(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        """The mean over the pairs of both losses, added; outputs (B, D)."""
        x1, x2, y = self.pairs.pairs(outputs, labels, generator)
        loss, figures = self.pairs.of((x1, x2, y), tell)
        seen = (x1, x2) if self.joint else (x1.detach(), x2.detach())
        return Outcome(loss + functional.cross_entropy(self.head(*seen), y), figures)


class BothSides(nn.Module):
    """Examples that are pairs: both sides of a pair are rows of one batch, and of one class.

    Two pairs of one class are genuine pairs of each other too. A module, so that what the objective
    may have to learn is trained.

    Args:
        objective: of all rows.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        """The objective's; outputs (2B, D), the left sides and then the right ones; labels (B,)."""
        if len(outputs) != 2 * len(labels):
            raise ValueError(
                f"outputs: {2 * len(labels)} rows are expected, two for each of {len(labels)} "
                f"pairs, got {tuple(outputs.shape)}"
            )
        return self.objective(outputs, labels.repeat(2), generator, tell)


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
    i, j = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
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
    drawn = torch.randperm(len(far), generator=generator)[: count - closest].to(far.device)
    chosen = torch.cat([genuine, near, far[drawn]])
    return i[chosen], j[chosen], (~same[chosen]).long()
