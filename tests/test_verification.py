"""siamcuda.verification against a brute-force reading of its definitions and scikit-learn."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siamcuda.verification import from_distances

FARS = (0.0, 0.001, 0.01, 0.05, 0.075, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
distances = st.lists(
    st.one_of(
        st.integers(0, 12).map(lambda n: n / 4),  # many ties
        st.floats(0, 4, width=32),
        st.sampled_from([math.inf, math.nan]),
    ),
    min_size=1,
    max_size=40,
)


def brute_threshold(impostor: np.ndarray, far: float) -> float:
    """Largest representable t with FAR(t) <= far, by the words of the definition."""
    k = math.floor(Fraction(str(far)) * len(impostor))
    ascending = np.sort(impostor)  # NaN last
    if k >= len(impostor) or math.isnan(ascending[k]):
        return math.inf
    return float(np.nextafter(ascending[k], impostor.dtype.type(-np.inf)))


def brute_eer(genuine: np.ndarray, impostor: np.ndarray) -> tuple[float, float]:
    best = None
    for t in sorted({d for d in [*genuine.tolist(), *impostor.tolist()] if not math.isnan(d)}):
        far = Fraction(int((impostor <= t).sum()), len(impostor))
        frr = Fraction(int((~(genuine <= t)).sum()), len(genuine))
        if best is None or abs(far - frr) < best[0]:
            best = (abs(far - frr), float(far + frr) / 2, t)
    assert best is not None
    return best[1], best[2]


def brute_auc(genuine: np.ndarray, impostor: np.ndarray) -> float:
    g = np.where(np.isnan(genuine), np.inf, genuine)[:, None]
    i = np.where(np.isnan(impostor), np.inf, impostor)[None]
    beyond = np.isnan(genuine)[:, None].astype(int), np.isnan(impostor)[None].astype(int)
    closer = (g < i) | ((g == i) & (beyond[0] < beyond[1]))
    tie = (g == i) & (beyond[0] == beyond[1])
    return float((closer + 0.5 * tie).mean())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=150, deadline=None)
@given(genuine=distances, impostor=distances)
def test_every_number_follows_its_definition(
    dtype: type, genuine: list[float], impostor: list[float]
) -> None:
    own, other = np.array(genuine, dtype), np.array(impostor, dtype)
    if np.isnan(own).all() and np.isnan(other).all():
        with pytest.raises(ValueError, match="every distance is NaN"):
            from_distances(own, other)
        return
    report = from_distances(own, other)
    assert report.auc == pytest.approx(brute_auc(own, other), abs=1e-12)
    assert (report.eer, report.eer_threshold) == pytest.approx(brute_eer(own, other), abs=1e-12)
    for far in FARS:
        t = report.threshold(far)
        assert t == brute_threshold(other, far)
        assert report.frr(far) == (~(own <= t)).mean()
        assert (other <= t).mean() <= far
    far, tar, thresholds = report.roc()
    for row, t in enumerate(thresholds):
        assert far[row] == (other <= t).mean()
        assert tar[row] == (own <= t).mean()
    assert np.array_equal(report.det().far, far)
    np.testing.assert_allclose(report.det().rate, 1 - tar, atol=1e-15)


def test_scikit_learn_agrees() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    genuine = np.round(random.gamma(2, 1, 400), 2)
    impostor = np.round(random.gamma(5, 1, 3000), 2)
    report = from_distances(genuine, impostor)
    truth = np.r_[np.ones(len(genuine)), np.zeros(len(impostor))]
    score = -np.r_[genuine, impostor]
    assert report.auc == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)
    far, tar, _ = metrics.roc_curve(truth, score, drop_intermediate=False)
    np.testing.assert_allclose(report.roc().far, far, atol=1e-15)
    np.testing.assert_allclose(report.roc().rate, tar, atol=1e-15)
    far, frr, _ = metrics.det_curve(truth, score)
    ours = {(round(a, 12), round(b, 12)) for a, b in zip(*report.det()[:2], strict=True)}
    assert {(round(a, 12), round(b, 12)) for a, b in zip(far, frr, strict=True)} <= ours


@pytest.mark.parametrize("far", ["0.1", "0.3", "0.7", "0.05", "0.075", "0.29", "0.57", "0.001"])
def test_count_at_far_is_the_decimal_floor(far: str) -> None:
    """In floats 0.29 * 100 is 28.999999999999996: the count must come from the decimal."""
    for count in (10, 30, 100, 1000, 4000):
        impostor = np.arange(count, dtype=np.float64)
        k = int(Fraction(far) * count)
        assert from_distances([0.0], impostor).threshold(float(far)) == np.nextafter(k, -np.inf)


def test_ties_at_the_threshold_stay_out() -> None:
    report = from_distances([1.0, 2.0], [1.0, 2.0, 2.0, 2.0])
    assert report.threshold(0.5) == np.nextafter(2.0, 0)  # accepting d = 2 would accept all four
    assert report.frr(0.5) == 0.5
    assert report.threshold(1.0) == math.inf
    assert report.frr(1.0) == 0.0


def test_threshold_separates_in_the_precision_of_the_distances() -> None:
    """A float64 neighbour of a float32 distance would round back onto it in a comparison."""
    impostor = torch.tensor([0.1, 0.2, 0.3])
    t = from_distances(torch.tensor([0.05]), impostor).threshold(0.0)
    assert not bool((impostor <= t).any())
    assert np.float32(t) == t


def test_nan_is_never_accepted_and_counted_apart() -> None:
    report = from_distances([0.1, math.nan], [0.2, math.nan, math.nan])
    assert (report.genuine_nan, report.impostor_nan) == (1, 2)
    assert report.frr(1.0) == 0.5
    assert report.threshold(0.5) == math.inf  # one impostor of three can be accepted at all


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.int32])
def test_other_dtypes(kind: torch.dtype) -> None:
    genuine, impostor = torch.tensor([1, 3]).to(kind), torch.tensor([2, 4, 5]).to(kind)
    report = from_distances(genuine, impostor)
    assert report.auc == 5 / 6
    assert report.frr(0.0) == 0.5


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(ValueError, match=r"impostor: at least one distance.*\(0,\)"):
        from_distances([1.0], [])
    with pytest.raises(ValueError, match="genuine: holds -inf"):
        from_distances([-math.inf], [1.0])
    with pytest.raises(TypeError, match="genuine: real distances"):
        from_distances(np.array(["a"]), [1.0])  # type: ignore[arg-type]
    report = from_distances([1.0], [2.0])
    for far in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="far must lie"):
            report.frr(far)
