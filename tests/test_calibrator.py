"""Similarities from distances: Platt and isotonic, against scikit-learn, and their files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siamcuda.verification import Calibrator, VerificationReport, _evaluate, from_distances

METHODS = ("platt", "isotonic")


def trials(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.gamma(4, 1, 300), random.gamma(9, 1, 4000)


def report() -> VerificationReport:
    return from_distances(*trials())


@pytest.mark.parametrize("prior", [0.5, 0.01])
def test_platt_finds_the_best_slope_and_offset(prior: float) -> None:
    """Against a general minimiser, on Platt's targets."""
    optimize = pytest.importorskip("scipy.optimize")
    genuine, impostor = trials()
    found = Calibrator.fit(report(), prior=prior)

    def cost(at: np.ndarray) -> float:
        total = 0.0
        for d, target, weight in (
            (genuine, 301 / 302, prior / 300),
            (impostor, 1 / 4002, (1 - prior) / 4000),
        ):
            logit = at[1] - at[0] * d
            total += weight * (np.logaddexp(0, logit) - target * logit).sum()
        return total

    best = optimize.minimize(cost, [1.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-10,
                             "fatol": 1e-16, "maxiter": 4000})  # fmt: skip
    assert (found.slope, found.offset) == pytest.approx(tuple(best.x), rel=1e-5)
    assert found.slope > 0


def test_platt_does_not_depend_on_the_unit() -> None:
    genuine, impostor = trials()
    one = Calibrator.fit(from_distances(genuine, impostor))
    for scale in (1e-30, 1e30):
        other = Calibrator.fit(from_distances(genuine * scale, impostor * scale))
        assert other.slope * scale == pytest.approx(one.slope, rel=1e-9)
        assert other.offset == pytest.approx(one.offset, rel=1e-9)


@pytest.mark.parametrize("prior", [0.5, 0.9])
def test_isotonic_is_that_of_scikit_learn(prior: float) -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    genuine, impostor = (np.round(d, 1) for d in trials())
    d = np.r_[genuine, impostor]
    y = np.r_[np.ones(len(genuine)), np.zeros(len(impostor))]
    weight = np.where(y == 1, prior / len(genuine), (1 - prior) / len(impostor))
    model = isotonic.IsotonicRegression(increasing=False, out_of_bounds="clip")
    model.fit(d, y, sample_weight=weight)
    found = Calibrator.fit(from_distances(genuine, impostor), "isotonic", prior=prior)
    at = np.linspace(-1, 30, 5000)
    np.testing.assert_allclose(found(at), model.predict(at), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    genuine=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    impostor=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    method=st.sampled_from(METHODS),
)
def test_any_trials_give_a_similarity(genuine: list[int], impostor: list[int], method: str) -> None:
    """Trials that separate perfectly, that are all tied, that are the wrong way round."""
    calibrator = Calibrator.fit(from_distances(genuine, impostor), method)
    similarity = calibrator(np.linspace(-1, 11, 100))
    assert np.all((similarity >= 0) & (similarity <= 1))
    if method == "isotonic":
        assert np.all(np.diff(similarity) <= 0)
    ratios = calibrator.log_likelihood_ratio(np.linspace(-1, 11, 100))
    np.testing.assert_allclose(1 / (1 + np.exp(-ratios)), similarity, atol=1e-12)


def test_the_prior_moves_the_similarity_and_not_the_ratio() -> None:
    d = np.linspace(2, 9, 20)
    fair, rare = (Calibrator.fit(report(), "isotonic", prior=p) for p in (0.5, 0.001))
    assert np.all(rare(d) <= fair(d))
    np.testing.assert_allclose(
        rare.log_likelihood_ratio(np.array(fair.knots)),
        fair.log_likelihood_ratio(np.array(fair.knots)),
        rtol=1e-6,
    )


def test_calibrated_cost() -> None:
    """A fitted calibration costs little more than the best monotone one, a useless one a bit."""
    trial = report()
    isotonic, platt = (trial.cllr(Calibrator.fit(trial, m)) for m in ("isotonic", "platt"))
    assert trial.min_cllr <= isotonic + 1e-12
    assert trial.min_cllr <= platt < 1.1 * trial.min_cllr
    assert trial.cllr(Calibrator("platt", 0.5, None)) == pytest.approx(1)
    genuine, impostor = trials()
    calibrator = Calibrator.fit(trial)
    ratios = [calibrator.log_likelihood_ratio(d) for d in (genuine, impostor)]
    expected = np.log2(1 + np.exp(-ratios[0])).mean() + np.log2(1 + np.exp(ratios[1])).mean()
    assert platt == pytest.approx(expected / 2, rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_binned_report_gives_nearly_the_same(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) % 30
    x += 2 * torch.randn(30, 8, generator=torch.Generator().manual_seed(1))[labels]
    exact = Calibrator.fit(_evaluate.evaluate(x, labels), method)
    monkeypatch.setattr(_evaluate, "STORED_PAIRS", 0)
    trial = _evaluate.evaluate(x, labels, ())
    assert trial.binned
    binned = Calibrator.fit(trial, method)
    assert binned.metric == "sqeuclidean"
    d = np.linspace(0, 100, 50)
    np.testing.assert_allclose(binned(d), exact(d), atol=2e-3 if method == "platt" else 0.05)


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_and_dtypes(method: str) -> None:
    calibrator = Calibrator.fit(from_distances([0.0, 1.0, math.nan], [1.0, 2.0, math.inf]), method)
    values = calibrator(np.array([math.nan, math.inf, 0.0], np.float32))
    assert values.dtype == np.float32
    assert np.isnan(values[0])
    assert values[1] <= values[2] <= 1
    tensor = calibrator(torch.tensor([[0.0], [2.0]], dtype=torch.bfloat16, requires_grad=True))
    assert tensor.dtype == torch.bfloat16
    assert tensor.shape == (2, 1)
    assert np.isnan(calibrator.log_likelihood_ratio(np.array([math.nan]))).all()
    assert Calibrator("platt", 0.5, None)(np.array([math.inf])).tolist() == [0.5]


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load(method: str, tmp_path: Path) -> None:
    calibrator = Calibrator.fit(report(), method)
    path = tmp_path / "calibrator.json"
    calibrator.save(path)
    assert Calibrator.load(str(path)) == calibrator
    assert list(tmp_path.iterdir()) == [path]
    calibrator.save(path)  # replaces


def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calibrator.json"
    one = Calibrator.fit(report())
    one.save(path)

    def broken(_: int) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk is gone"):
        Calibrator.fit(report(), "isotonic").save(path)
    monkeypatch.undo()
    assert Calibrator.load(path) == one
    assert list(tmp_path.iterdir()) == [path]


GOOD = {
    "format": "siamcuda.calibrator",
    "version": 1,
    "method": "isotonic",
    "metric": None,
    "prior": 0.5,
    "slope": 0,
    "offset": 0,
    "knots": [0, 1],
    "values": [1, 0],
}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "other"}, "not a calibrator of siamcuda"),
        ({"version": 2}, "version 2 of the format, this build reads 1"),
        ({"extra": 1}, "fields"),
        ({"method": "magic"}, "method must be 'platt' or 'isotonic', got 'magic'"),
        ({"metric": 3}, "metric must be a string"),
        ({"prior": 0}, r"prior must be in \(0, 1\)"),
        ({"prior": "half"}, "prior must be a finite number"),
        ({"slope": math.nan}, "slope must be a finite number"),
        ({"offset": math.inf}, "offset must be a finite number"),
        ({"slope": True}, "slope must be a finite number"),
        ({"slope": 10**400}, "slope must be a finite number"),
        ({"knots": [0, "1"]}, "knots must be a list of finite numbers"),
        ({"knots": {"0": 1}}, "knots must be a list"),
        ({"knots": [0]}, "values must be as many as knots"),
        ({"method": "platt"}, "values must be as many as knots, none for platt"),
        ({"knots": [1, 1]}, "knots must be ascending"),
        ({"values": [0.2, 0.8]}, "values must be in 0…1 and never rising"),
        ({"values": [1.5, 0]}, "values must be in 0…1"),
    ],
)
def test_files_are_checked(tmp_path: Path, change: dict[str, object], match: str) -> None:
    path = tmp_path / "calibrator.json"
    path.write_text(json.dumps(GOOD))
    assert Calibrator.load(path)(np.array([0.25])).tolist() == [0.75]
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ValueError, match=match):
        Calibrator.load(path)


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "calibrator.json"
    for content in (b"", b"\x80\x04K\x01.", b"[1, 2]", b"{", b"[" * 100_000, b"\xff\xfe{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a"):
            Calibrator.load(path)
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ValueError, match="more than 67108864 bytes"):
        Calibrator.load(path)
    with pytest.raises(FileNotFoundError):
        Calibrator.load(tmp_path / "nothing.json")


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="method must be 'platt' or 'isotonic', got 'x'"):
        Calibrator.fit(report(), "x")
    for prior in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"prior must lie in \(0, 1\)"):
            Calibrator.fit(report(), prior=prior)
    with pytest.raises(ValueError, match="finite distances of both kinds"):
        Calibrator.fit(from_distances([math.inf], [1.0]))
