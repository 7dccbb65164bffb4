"""Losses over a batch as others write them: what siamcuda's are compared with.

A peer is a function ``prepare(labels, **options)`` that gives ``step(embeddings) -> loss``, or None
where its package is not installed: the caller says which are missing. Only what a user could keep
from batch to batch with a fixed layout of classes (indices of positives, lists of triplets) is
made in ``prepare``; where a peer is faster with such lists there is a variant with and one without.

``PEERS`` names each with the call of siamcuda that gives the same number, and says whether it needs
classes of equal size and whether torch.compile takes it in one graph. In words, the best settings:

- eager and torch.compile: squared distances from one matrix product (``expanded``), the root only
  of what is used; hard and semi-hard choose without a graph; all triplets by gathered positives,
  (B, K−1, B), the cube only for comparison.
- pytorch-metric-learning: LpDistance without normalisation, MeanReducer, no statistics; indices of
  triplets kept (``kept``). Its contrastive hinges are linear, so the two hooks that its loss has
  for them are overridden.
- sentence-transformers: its losses on embeddings, without a model.
- open-metric-learning: TripletLossWithMiner with AllTripletsMiner or HardTripletsMiner.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Step = Callable[[Tensor], Tensor]  # (B, D) -> 0-d
Prepare = Callable[..., Step | None]

#: Squared distances are not taken below it, so that their roots have finite gradients.
TINY = 1e-12


@dataclass(frozen=True)
class BatchPeer:
    """One way to write a loss over a batch, and siamcuda's call with the same value."""

    family: str
    variant: str
    prepare: Prepare
    op: str  # siamcuda's function
    options: dict[str, Any]  # for both
    ours: dict[str, Any]  # for siamcuda's alone
    equal_classes: bool  # every class must have as many rows
    one_graph: bool  # torch.compile(step, fullgraph=True) works

    @property
    def id(self) -> str:
        """For people: who, how, and what siamcuda is called with."""
        options = " ".join(f"{k}={v}" for k, v in {**self.options, **self.ours}.items())
        return f"{self.family} ({self.variant}) {self.op} {options}"


# --- plain PyTorch: distances ---------------------------------------------------------------------


def expanded(x: Tensor) -> Tensor:
    """(B, D) -> (B, B): |x|² + |y|² − 2x·y by one addmm, clamped away from 0."""
    norms = x.square().sum(1)
    return torch.addmm(norms, x, x.t(), alpha=-2).add(norms.unsqueeze(1)).clamp_min(TINY)


def by_cdist(x: Tensor) -> Tensor:
    """(B, D) -> (B, B): torch.cdist, squared."""
    return torch.cdist(x, x).square().clamp_min(TINY)


def same_class(labels: Tensor) -> Tensor:
    """(B,) -> (B, B) bool, the diagonal True."""
    return labels.unsqueeze(1) == labels


def positive_columns(labels: Tensor) -> Tensor:
    """(B,) -> (B, K−1): the other rows of each row's class; every class must have K rows."""
    others = same_class(labels).fill_diagonal_(False)
    sizes = others.sum(1)
    if len(labels) == 0 or bool((sizes != sizes[0]).any()):
        raise ValueError("gathered positives need classes of equal size")
    return others.nonzero()[:, 1].view(len(labels), -1)


# --- plain PyTorch: pairs -------------------------------------------------------------------------


def pairs(distances: Callable[[Tensor], Tensor], formula: Callable[..., Tensor]) -> Prepare:
    """Every pair twice in a (B, B) matrix; its diagonal adds 0, since formula(0, same) is 0."""

    def prepare(labels: Tensor, **options: Any) -> Step:
        count = max(len(labels) * (len(labels) - 1), 1)
        return lambda x: formula(distances(x), same_class(labels), **options).sum() / count

    return prepare


def condensed(formula: Callable[..., Tensor], p: float = 2.0) -> Prepare:
    """Every pair once, by torch.pdist, which does not use a matrix product."""

    def prepare(labels: Tensor, **options: Any) -> Step:
        i, j = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)

        def step(x: Tensor) -> Tensor:
            distances = torch.pdist(x, p).square().clamp_min(TINY)
            return formula(distances, labels[i] == labels[j], **options).mean()

        return step

    return prepare


def contrastive(s: Tensor, same: Tensor, margin: float) -> Tensor:
    """Hadsell's loss of pairs from squared distances."""
    return torch.where(same, s, F.relu(margin - s.sqrt()).square())


def chopra(s: Tensor, same: Tensor, q: float, energy: str = "l2") -> Tensor:
    """Chopra's loss of pairs from squares of their energies (``energy`` is siamcuda's name)."""
    return torch.where(same, 2 / q * s, 2 * q * torch.exp(-2.77 / q * s.sqrt()))


def l1_squares(x: Tensor) -> Tensor:
    """(B, D) -> (B, B): the square of torch.cdist with p = 1."""
    return torch.cdist(x, x, p=1.0).square().clamp_min(TINY)


# --- plain PyTorch: triplets ----------------------------------------------------------------------


def _distance(s: Tensor, squared: bool) -> Tensor:
    return s if squared else s.sqrt()


def batch_hard(labels: Tensor, margin: float, squared: bool, soft: bool = False) -> Step:
    """Farthest positive and nearest negative of each row; roots of the B chosen only."""

    def step(x: Tensor) -> Tensor:
        same, s = same_class(labels), expanded(x)
        number = same.sum(1)
        valid = (number > 1) & (number < len(labels))
        positive = s.masked_fill(~same, TINY).max(1).values
        negative = s.masked_fill(same, float("inf")).min(1).values
        violation = _distance(positive, squared) - _distance(negative, squared)
        values = F.softplus(violation) if soft else F.relu(violation + margin)
        return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)

    return step


def batch_hard_full(labels: Tensor, margin: float, squared: bool, soft: bool = False) -> Step:
    """The same where every row is known to have both, as with a P×K sampler."""

    def step(x: Tensor) -> Tensor:
        same, s = same_class(labels), expanded(x)
        positive = s.masked_fill(~same, TINY).amax(1)
        negative = s.masked_fill(same, float("inf")).amin(1)
        violation = _distance(positive, squared) - _distance(negative, squared)
        values = F.softplus(violation) if soft else F.relu(violation + margin)
        return values.mean()

    return step


def batch_hard_chosen(labels: Tensor, margin: float, squared: bool, soft: bool = False) -> Step:
    """Chosen without a graph, then B direct distances: nothing of size B×B in backward."""

    def step(x: Tensor) -> Tensor:
        with torch.no_grad():
            same, s = same_class(labels), expanded(x)
            positive = s.masked_fill(~same, 0.0).argmax(1)
            negative = s.masked_fill(same, float("inf")).argmin(1)
        d_ap, d_an = ((x - x[chosen]).square().sum(1) for chosen in (positive, negative))
        if not squared:
            d_ap, d_an = d_ap.clamp_min(TINY).sqrt(), d_an.clamp_min(TINY).sqrt()
        violation = d_ap - d_an
        return (F.softplus(violation) if soft else F.relu(violation + margin)).mean()

    return step


def batch_all_gathered(labels: Tensor, margin: float, squared: bool, active: bool = False) -> Step:
    """Positives gathered: (B, K−1, B) instead of the cube. The fair bar."""
    positives = positive_columns(labels)
    terms = positives.numel() * (len(labels) - positives.shape[1] - 1)

    def step(x: Tensor) -> Tensor:
        d = _distance(expanded(x), squared)
        reach = d.gather(1, positives) + margin
        negatives = d.masked_fill(same_class(labels), float("inf"))  # relu(-inf) is 0
        values = F.relu(reach.unsqueeze(2) - negatives.unsqueeze(1))
        return values.sum() / ((values > 0).sum().clamp(min=1) if active else max(terms, 1))

    return step


def batch_all_cube(labels: Tensor, margin: float, squared: bool, active: bool = False) -> Step:
    """(B, B, B), any classes: what most people write first."""

    def step(x: Tensor) -> Tensor:
        d = _distance(expanded(x), squared)
        same = same_class(labels)
        positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        valid = positive.unsqueeze(2) & ~same.unsqueeze(1)
        values = torch.where(valid, F.relu(d.unsqueeze(2) - d.unsqueeze(1) + margin), 0.0)
        return values.sum() / ((values > 0) if active else valid).sum().clamp(min=1)

    return step


def batch_semihard_gathered(labels: Tensor, margin: float, squared: bool) -> Step:
    """FaceNet's negative of each (a, p): found by sorting, without a graph, then gathered."""
    positives = positive_columns(labels)
    last = len(labels) - positives.shape[1] - 2  # the farthest negative

    def step(x: Tensor) -> Tensor:
        s = expanded(x)
        d_ap = s.gather(1, positives)
        with torch.no_grad():
            negatives, order = s.masked_fill(same_class(labels), float("inf")).sort(1)
            place = torch.searchsorted(negatives, d_ap, right=True).clamp(max=last)
        d_an = s.gather(1, order.gather(1, place))
        return F.relu(_distance(d_ap, squared) - _distance(d_an, squared) + margin).mean()

    return step


# --- pytorch-metric-learning ----------------------------------------------------------------------


def _module(name: str) -> Any:
    """The module, or None where its package is not installed; another failure is raised."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        return None
    return importlib.import_module(name)


def _lp_distance(squared: bool) -> Any:
    distances = _module("pytorch_metric_learning.distances")
    return distances.LpDistance(normalize_embeddings=False, power=2 if squared else 1)


def metric_learning_contrastive(labels: Tensor, margin: float) -> Step | None:
    """ContrastiveLoss with its hinges squared, summed, over ordered pairs."""
    losses = _module("pytorch_metric_learning.losses")
    if losses is None:
        return None
    reducers = _module("pytorch_metric_learning.reducers")

    class Squared(losses.ContrastiveLoss):
        def pos_calc(self, distances: Tensor, margin: float) -> Tensor:
            return distances.square()

        def neg_calc(self, distances: Tensor, margin: float) -> Tensor:
            return F.relu(margin - distances).square()

    loss = Squared(neg_margin=margin, distance=_lp_distance(False), reducer=reducers.SumReducer())
    count = max(len(labels) * (len(labels) - 1), 1)
    return lambda x: loss(x, labels) / count


def _metric_learning_triplets(margin: float, squared: bool, soft: bool, active: bool) -> Any:
    losses = _module("pytorch_metric_learning.losses")
    if losses is None:
        return None
    reducers = _module("pytorch_metric_learning.reducers")
    reducer = reducers.AvgNonZeroReducer() if active else reducers.MeanReducer()
    return losses.TripletMarginLoss(
        margin=0.0 if soft else margin,
        smooth_loss=soft,
        distance=_lp_distance(squared),
        reducer=reducer,
    )


def metric_learning_all(
    labels: Tensor, margin: float, squared: bool, active: bool = False, kept: bool = False
) -> Step | None:
    """TripletMarginLoss over all triplets, their list made in each step or ``kept``."""
    loss = _metric_learning_triplets(margin, squared, False, active)
    if loss is None:
        return None
    if not kept:
        return lambda x: loss(x, labels)
    utils = _module("pytorch_metric_learning.utils.loss_and_miner_utils")
    triplets = utils.get_all_triplets_indices(labels)
    return lambda x: loss(x, labels, triplets)


def metric_learning_hard(
    labels: Tensor, margin: float, squared: bool, soft: bool = False
) -> Step | None:
    """BatchHardMiner (by the same distance) and TripletMarginLoss."""
    loss = _metric_learning_triplets(margin, squared, soft, False)
    if loss is None:
        return None
    miners = _module("pytorch_metric_learning.miners")
    miner = miners.BatchHardMiner(distance=_lp_distance(squared))
    return lambda x: loss(x, labels, miner(x, labels))


# --- sentence-transformers ------------------------------------------------------------------------


def _sentence_loss(name: str, labels: Tensor, squared: bool, **options: Any) -> Step | None:
    """A loss of its own on embeddings: the model that its constructor wants is never called."""
    losses = _module("sentence_transformers.sentence_transformer.losses")
    if losses is None:
        return None
    euclidean = losses.BatchHardTripletLossDistanceFunction.euclidean_distance
    loss = getattr(losses, name)(
        None, distance_metric=lambda x: euclidean(x, squared=squared), **options
    )
    return lambda x: loss.compute_loss_from_embeddings([x], labels)


def sentence_all(labels: Tensor, margin: float, squared: bool) -> Step | None:
    """BatchAllTripletLoss: the mean over non-zero terms only."""
    return _sentence_loss("BatchAllTripletLoss", labels, squared, margin=margin)


def sentence_hard(labels: Tensor, margin: float, squared: bool, soft: bool = False) -> Step | None:
    """BatchHardTripletLoss or BatchHardSoftMarginTripletLoss; every row must have both."""
    if soft:
        return _sentence_loss("BatchHardSoftMarginTripletLoss", labels, squared)
    return _sentence_loss("BatchHardTripletLoss", labels, squared, margin=margin)


def sentence_semihard(labels: Tensor, margin: float, squared: bool) -> Step | None:
    """BatchSemiHardTripletLoss; there must be two classes."""
    return _sentence_loss("BatchSemiHardTripletLoss", labels, squared, margin=margin)


# --- open-metric-learning -------------------------------------------------------------------------


OPEN_PARTS = {
    "TripletLoss": "oml.losses.triplet",
    "TripletLossWithMiner": "oml.losses.triplet",
    "AllTripletsMiner": "oml.miners.inbatch_all_tri",
    "HardTripletsMiner": "oml.miners.inbatch_hard_tri",
}


def open_metric_learning() -> dict[str, Any] | None:
    """Its losses and miners by name, without running the ``__init__`` files of its folders, which
    import torchvision and others that these losses don't use.
    """
    package = importlib.util.find_spec("oml")
    if package is None or not package.submodule_search_locations:
        return None
    root = Path(next(iter(package.submodule_search_locations)))
    bare = ["oml", *(f"oml.{path.name}" for path in root.iterdir() if path.is_dir())]
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_oml(name)}
    try:
        for name in bare:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        return {
            part: getattr(importlib.import_module(module), part)
            for part, module in OPEN_PARTS.items()
        }
    finally:
        for name in [name for name in sys.modules if _is_oml(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_oml(name: str) -> bool:
    return name.partition(".")[0] == "oml"


def open_metric(miner: str) -> Prepare:
    """TripletLossWithMiner with the miner of that name; it has no squared distance."""

    def prepare(labels: Tensor, margin: float, squared: bool, soft: bool = False) -> Step | None:
        names = open_metric_learning()
        if squared:
            raise ValueError("open-metric-learning has no squared distance")
        if names is None:
            return None
        loss = names["TripletLossWithMiner"](None if soft else margin, names[miner]())
        return lambda x: loss(x, labels)

    return prepare


# --- all of them ----------------------------------------------------------------------------------

EAGER, METRIC, SENTENCE, OPEN = (
    "eager",
    "pytorch-metric-learning",
    "sentence-transformers",
    "open-metric-learning",
)

# family, variant, prepare, one graph
_CONTRASTIVE: tuple[tuple[str, str, Prepare, bool], ...] = (
    (EAGER, "expanded", pairs(expanded, contrastive), True),
    (EAGER, "cdist", pairs(by_cdist, contrastive), True),
    (EAGER, "pdist", condensed(contrastive), False),
    (METRIC, "ContrastiveLoss", metric_learning_contrastive, False),
)
_CHOPRA_L2: tuple[tuple[str, str, Prepare, bool], ...] = (
    (EAGER, "expanded", pairs(expanded, chopra), True),
    (EAGER, "cdist", pairs(by_cdist, chopra), True),
    (EAGER, "pdist", condensed(chopra), False),
)
_CHOPRA_L1: tuple[tuple[str, str, Prepare, bool], ...] = (
    (EAGER, "cdist", pairs(l1_squares, chopra), True),
    (EAGER, "pdist", condensed(chopra, 1.0), False),
)

# family, variant, prepare, equal classes, one graph; by mining, soft, reduction
_Triplets = dict[tuple[str, bool, str], tuple[tuple[str, str, Prepare, bool, bool], ...]]
_HARD = (
    (EAGER, "any classes", batch_hard, False, True),
    (EAGER, "both known", batch_hard_full, True, True),
    (EAGER, "chosen rows", batch_hard_chosen, True, True),
    (METRIC, "BatchHardMiner", metric_learning_hard, False, False),
    (SENTENCE, "batch hard", sentence_hard, True, False),
    (OPEN, "HardTripletsMiner", open_metric("HardTripletsMiner"), True, False),
)
_TRIPLETS: _Triplets = {
    ("hard", False, "mean"): _HARD,
    ("hard", True, "mean"): _HARD,
    ("all", False, "mean"): (
        (EAGER, "gathered", batch_all_gathered, True, True),
        (EAGER, "cube", batch_all_cube, False, True),
        (METRIC, "all triplets", metric_learning_all, False, False),
        (METRIC, "kept triplets", partial(metric_learning_all, kept=True), False, False),
        (OPEN, "AllTripletsMiner", open_metric("AllTripletsMiner"), True, False),
    ),
    ("all", False, "mean_active"): (
        (EAGER, "gathered", partial(batch_all_gathered, active=True), True, True),
        (EAGER, "cube", partial(batch_all_cube, active=True), False, True),
        (METRIC, "all triplets", partial(metric_learning_all, active=True), False, False),
        (
            METRIC,
            "kept triplets",
            partial(metric_learning_all, active=True, kept=True),
            False,
            False,
        ),
        (SENTENCE, "batch all", sentence_all, False, False),
    ),
    ("semihard", False, "mean"): (
        (EAGER, "gathered", batch_semihard_gathered, True, True),
        (SENTENCE, "batch semi-hard", sentence_semihard, True, False),
    ),
}


def _pairs_of(op: str, options: dict[str, Any], ways: Any) -> list[BatchPeer]:
    return [
        BatchPeer(family, variant, prepare, op, options, {}, False, graph)
        for family, variant, prepare, graph in ways
    ]


def _triplets_of(squared: bool) -> list[BatchPeer]:
    found = []
    for (mining, soft, reduction), ways in _TRIPLETS.items():
        options = {"margin": 0.2, "squared": squared, **({"soft": True} if soft else {})}
        ours = {"mining": mining, "reduction": reduction}
        found += [
            BatchPeer(family, variant, prepare, "batch_triplet_loss", options, ours, equal, graph)
            for family, variant, prepare, equal, graph in ways
            if not (squared and family == OPEN)
        ]
    return found


PEERS: tuple[BatchPeer, ...] = (
    *_pairs_of("batch_contrastive_loss", {"margin": 1.0}, _CONTRASTIVE),
    *_pairs_of("batch_contrastive_loss", {"margin": 2.0}, _CONTRASTIVE),
    *_pairs_of("batch_chopra_loss", {"q": 2.0, "energy": "l2"}, _CHOPRA_L2),
    *_pairs_of("batch_chopra_loss", {"q": 2.0, "energy": "l1"}, _CHOPRA_L1),
    *_triplets_of(squared=True),
    *_triplets_of(squared=False),
)
