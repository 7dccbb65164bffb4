"""Verification of every pair of a set: whole evaluations beside peers, and single passes.

Rows are identities of ten, whose genuine and impostor distances overlap (EER about 7 %). Every
figure of a peer is compared with float64. A peer has to hold all distances, so it meets small sets
alone; of a large one ours is checked by what can be known of all pairs without looking at them:
their number, and the sum of their squared distances, N·Σ|x|² - |Σx|².

Operations are counted as 2D for each pair and pass; identification, two passes more, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.harness import Case, Peer, Task
from siamcuda import verification
from siamcuda.verification._intervals import sharpen
from siamcuda.verification._sweep import Side, Sweep

SUITE = "verification"
FARS = (1e-2, 1e-3, 1e-4)
TORCH, SKLEARN = "torch", "scikit-learn"
OF_AN_IDENTITY = 10
#: Spread within an identity, the spread of identities being 1.
NOISE = 1.5
#: A step of a large set takes seconds.
ROUNDS, FEW_ROUNDS = 9, 3


def inputs(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and identities (N,)."""
    generator = torch.Generator().manual_seed(rows + columns)
    labels = torch.arange(rows) // OF_AN_IDENTITY
    centres = torch.randn(int(labels[-1]) + 1, columns, generator=generator)
    return centres[labels] + NOISE * torch.randn(rows, columns, generator=generator), labels


def pairs(rows: int) -> int:
    return rows * (rows - 1) // 2


# --- whole evaluations ----------------------------------------------------------------------------

Figures = list[Tensor]


def _ours(x: Tensor, labels: Tensor) -> Figures:
    report = verification.evaluate(x, labels, FARS, hardest=0, identification=False)
    return _figures(
        report.eer, report.auc,
        [report.frr(f) for f in FARS], [float(report.threshold(f)) for f in FARS],
    )  # fmt: skip


def _figures(eer: float, auc: float, frr: list[float], thresholds: list[float]) -> Figures:
    """Rates and thresholds, whose errors are told apart."""
    return [torch.tensor([eer, auc, *frr]), torch.tensor(thresholds)]


def _at(impostor_within: Tensor, genuine: Tensor, impostors: int) -> tuple[float, float]:
    """EER and AUC from the impostor pairs at most as far as each genuine one, those ascending."""
    far = impostor_within.double() / impostors
    frr = 1 - torch.arange(1, len(genuine) + 1) / len(genuine)
    at = int((far - frr).abs().argmin())
    return float(far[at] + frr[at]) / 2, 1 - float(far.mean())


def _frr(genuine: Tensor, thresholds: Tensor) -> list[float]:
    """Share of the genuine pairs that are not nearer than the impostor at each threshold."""
    accepted = torch.searchsorted(genuine, thresholds)
    return (1 - accepted / len(genuine)).tolist()


def by_sorting(genuine: Tensor, impostor: Tensor) -> Figures:
    genuine, impostor = genuine.sort().values, impostor.sort().values
    eer, auc = _at(torch.searchsorted(impostor, genuine, right=True), genuine, len(impostor))
    thresholds = impostor[[int(f * len(impostor)) for f in FARS]]
    return _figures(eer, auc, _frr(genuine, thresholds), thresholds.tolist())


def by_selecting(genuine: Tensor, impostor: Tensor) -> Figures:
    """Only the genuine distances and the nearest impostors are put in order."""
    genuine = genuine.sort().values
    slots = torch.bucketize(impostor, genuine)  # the first genuine pair at least as far
    within = torch.bincount(slots, minlength=len(genuine) + 1)[:-1].cumsum(0)
    eer, auc = _at(within, genuine, len(impostor))
    places = [int(f * len(impostor)) for f in FARS]
    nearest = impostor.topk(places[0] + 1, largest=False).values
    return _figures(eer, auc, _frr(genuine, nearest[places]), nearest[places].tolist())


def by_scikit_learn(genuine: Tensor, impostor: Tensor) -> Figures:
    from sklearn.metrics import auc, roc_curve

    scores = -torch.cat([genuine, impostor]).numpy()
    truth = np.zeros(len(scores), bool)
    truth[: len(genuine)] = True
    far, tar, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    at = int(np.abs(far - (1 - tar)).argmin())
    chosen = [int(np.searchsorted(far, f, side="right")) for f in FARS]  # the first refused
    return _figures(
        (far[at] + 1 - tar[at]) / 2, float(auc(far, tar)),
        [1 - tar[i] for i in chosen], [-thresholds[i] for i in chosen],
    )  # fmt: skip


def _by_torch(x: Tensor, genuine: Tensor, impostor: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """All distances by one product; what is genuine is known beforehand, as positions."""

    def distances() -> tuple[Tensor, Tensor]:
        squares = x.square().sum(1)
        found = torch.addmm(squares, x, x.t(), alpha=-2).add_(squares.unsqueeze(1)).flatten()
        return found[genuine], found[impostor]

    return distances


def _positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the genuine and of the impostor pairs i < j in a flat matrix of all."""
    upper = torch.ones(len(labels), len(labels), dtype=torch.bool).triu(1)
    same = labels.unsqueeze(1) == labels
    return (upper & same).flatten().nonzero()[:, 0], (upper & ~same).flatten().nonzero()[:, 0]


def _evaluation(rows: int, columns: int) -> Task:
    x, labels = inputs(rows, columns)
    genuine, impostor = _positions(labels)
    distances = _by_torch(x, genuine, impostor)

    def peer(family: str, variant: str, step: Callable[[], Figures]) -> Peer:
        return Peer(family, variant, step, step)

    found = [
        peer("ours", "siamcuda", lambda: _ours(x, labels)),
        peer(TORCH, "all sorted", lambda: by_sorting(*distances())),
        peer(TORCH, "topk and bucketize", lambda: by_selecting(*distances())),
        peer(SKLEARN, "roc_curve", lambda: by_scikit_learn(*distances())),
    ]

    def expected() -> Figures:
        exact = torch.cdist(x.double(), x.double()).square().flatten()
        return by_sorting(exact[genuine], exact[impostor])

    # Float32's rounding moves a pair or two over a threshold.
    return Task(found, expected, rtol=1e-5, atol=3e-4)


# --- large sets -----------------------------------------------------------------------------------


def _sums(x: Tensor, labels: Tensor) -> Tensor:
    """Sums of the squared distances of the genuine and of the impostor pairs, in float64."""
    wide = x.double()

    def within(rows: Tensor) -> Tensor:
        return rows.shape[-2] * rows.square().sum((-2, -1)) - rows.sum(-2).square().sum(-1)

    whole = len(labels) // OF_AN_IDENTITY * OF_AN_IDENTITY
    genuine = within(wide[:whole].view(-1, OF_AN_IDENTITY, x.shape[1])).sum()
    genuine = genuine + within(wide[whole:])
    return torch.stack([genuine, within(wide) - genuine])


def _genuine(labels: Tensor) -> int:
    return int(sum(n * (n - 1) // 2 for n in torch.bincount(labels).tolist()))


def _alone(
    labels: Tensor, step: Callable[[], Figures], others: Callable[[], Figures] = list
) -> Task:
    """Ours; the first of its figures counts genuine and impostor pairs, none more, none less."""
    genuine = _genuine(labels)
    kinds = torch.tensor([genuine, pairs(len(labels)) - genuine])
    kept: list[Figures] = []

    def run() -> None:
        kept[:] = [step()]

    def outputs() -> Figures:
        [counts, *rest] = kept[0]
        return [counts - kinds, *rest]

    def expected() -> Figures:
        return [torch.zeros(2), *others()]

    return Task([Peer("ours", "siamcuda", run, outputs)], expected, rtol=1e-5, atol=0)


def _first_pass(rows: int, columns: int) -> Task:
    x, labels = inputs(rows, columns)
    side = Side.of(x, labels.numpy(), unit=False)
    sweep = Sweep(side, side, "sqeuclidean")

    def step() -> Figures:
        counts, sums, _ = sweep.histogram(0)
        return [torch.from_numpy(counts.sum(1)), torch.from_numpy(sums[:, 0])]

    return _alone(labels, step, lambda: [_sums(x, labels)])


def _second_pass(rows: int, columns: int) -> Task:
    x, labels = inputs(rows, columns)
    side = Side.of(x, labels.numpy(), unit=False)
    sweep = Sweep(side, side, "sqeuclidean")
    counts = sweep.histogram(0)[0][:, :65536]

    def step() -> Figures:
        intervals = sharpen(sweep, counts, sweep.pairs, FARS, ())
        return [torch.tensor([int(intervals.genuine.sum()), int(intervals.impostor.sum())])]

    return _alone(labels, step)


def _large(rows: int, columns: int) -> Task:
    x, labels = inputs(rows, columns)

    def step() -> Figures:
        report = verification.evaluate(x, labels, FARS, hardest=0, identification=False)
        assert report.spread is not None
        kinds = torch.tensor([report.genuine, report.impostor])
        means = torch.tensor([report.spread.genuine_mean, report.spread.impostor_mean])
        return [kinds, means * kinds]

    return _alone(labels, step, lambda: [_sums(x, labels)])


# --- the table of cases ---------------------------------------------------------------------------


def _case(
    op: str, rows: int, columns: int, make: Callable[[int, int], Task], passes: int,
    **options: Any,
) -> Case:  # fmt: skip
    return Case(
        SUITE, op, "float32", rows, columns, lambda: make(rows, columns), allocators=("warm",),
        flops=2 * passes * pairs(rows) * columns, **options,
    )  # fmt: skip


def cases(quick: bool = False) -> Iterator[Case]:
    """Every case; the quick ones touch each kind."""
    if quick:
        yield _case("evaluate", 3000, 64, _evaluation, 2)
        yield _case("first pass", 3000, 64, _first_pass, 1)
        yield _case("second pass", 3000, 64, _second_pass, 1)
        return
    for rows in (4000, 10_000):
        yield _case("evaluate", rows, 128, _evaluation, 2, rounds=ROUNDS)
    for rows, columns, share in ((100_000, 128, 0.4), (50_000, 512, 0.6), (50_000, 768, 0.6)):
        few: dict[str, Any] = {"rounds": FEW_ROUNDS, "limit_goal": share}
        yield _case("first pass", rows, columns, _first_pass, 1, **few)
        yield _case("second pass", rows, columns, _second_pass, 1, **few)
    for rows in (25_000, 50_000, 100_000, 200_000):
        yield _case("evaluate", rows, 128, _large, 2, rounds=FEW_ROUNDS)
