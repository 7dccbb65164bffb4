"""What a report says, in words and numbers: the page and the terminal print the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from siamcuda.report.numbers import (
    Number,
    chosen,
    count,
    decimal,
    fraction,
    one_in,
    percent,
    threshold,
)
from siamcuda.report.samples import Samples
from siamcuda.verification import Calibrator, VerificationReport

__all__ = [
    "METRICS",
    "Fact",
    "KeyFigure",
    "OperatingPoint",
    "asked_rates",
    "evaluated",
    "headline",
    "key_figures",
    "missing",
    "operating_points",
]

#: What each metric is, in words.
METRICS = {
    "sqeuclidean": "squared Euclidean distance, Σ(x−y)²",
    "euclidean": "Euclidean distance, √Σ(x−y)²",
    "cosine": "cosine distance, 1 − cos",
}
#: Fewer errors than these don't fix a rate: with 30 it is within 30 % in nine cases of ten.
RULE_OF_30 = 30


@dataclass(frozen=True)
class Fact:
    """One line of what was evaluated."""

    name: str
    text: str


@dataclass(frozen=True)
class KeyFigure:
    """One number that says how good the whole is."""

    name: str
    value: Number | None  # None: ``note`` says why
    note: str
    meaning: str


@dataclass(frozen=True)
class OperatingPoint:
    """What happens at one threshold."""

    asked: Number | None  # FAR; None at the equal error rate
    threshold: Number
    exact: bool  # whether the threshold is the largest that keeps to the rate
    far: Number
    frr: Number
    tar: Number
    interval: tuple[Number, Number] | None  # of the FRR; at equal rates of both
    false_accepts: Number
    false_rejects: Number
    one_in: str  # false accepts among impostor pairs

    @property
    def few(self) -> bool:
        """Whether a rate stands on fewer than 30 errors."""
        return min(self.false_accepts.exact, self.false_rejects.exact) < RULE_OF_30


def asked_rates(
    report: VerificationReport, far: float | Iterable[float] | None
) -> tuple[float, ...]:
    """Rates to show: those given, else those of the confidence intervals, else the usual ones."""
    if far is None:
        far = report.confidence.frr if report.confidence else (1e-2, 1e-3, 1e-4)
    rates = tuple(map(float, far)) if isinstance(far, Iterable) else (float(far),)
    return tuple(sorted(set(rates), reverse=True))


def headline(
    report: VerificationReport, samples: Samples | None = None, gallery: Samples | None = None
) -> str:
    """Say in one sentence what this is about."""
    who = ""
    if samples is not None:
        who = f"{len(samples):,} embeddings of {samples.identities:,} identities"
        if gallery is not None:
            who += f" against {len(gallery):,} of {gallery.identities:,}"
        who += ": "
    how = "curves from bins" if report.binned else "every number exact"
    metric = METRICS.get(report.metric or "", report.metric or "distance not named").split(",")[0]
    return (
        f"{who}{report.genuine:,} genuine and {report.impostor:,} impostor pairs, {metric}, {how}."
    )


def evaluated(
    report: VerificationReport,
    samples: Samples | None = None,
    gallery: Samples | None = None,
    calibrator: Calibrator | None = None,
) -> list[Fact]:
    """Say what was compared with what, and how exactly it was counted."""
    facts = [Fact("Embeddings", _rows(samples))]
    if gallery is not None:
        facts.append(Fact("Gallery", f"{_rows(gallery)}; every embedding against every entry"))
    pairs = report.genuine + report.impostor
    facts += [
        Fact("Pairs", f"{pairs:,}"),
        Fact("Genuine pairs", f"{report.genuine:,} of one identity"),
        Fact("Impostor pairs", f"{report.impostor:,} of two identities"),
        Fact("Distance", METRICS.get(report.metric or "", report.metric or "not named")),
        Fact("NaN distances", _nan(report)),
        Fact("Counting", _counting(report)),
    ]
    if report.confidence is not None:
        level = f"{100 * report.confidence.level:g} %"
        drawn = f"{report.confidence.samples:,} samples of the identities, drawn with replacement"
        facts.append(Fact("Confidence intervals", f"{level}, from {drawn}"))
    if calibrator is not None:
        how = {"platt": "Platt's σ(b − s·d)", "isotonic": "isotonic, by pool-adjacent-violators"}
        facts.append(
            Fact(
                "Calibration",
                f"{how.get(calibrator.method, calibrator.method)}, prior {calibrator.prior:g}",
            )
        )
    return facts


def _rows(samples: Samples | None) -> str:
    if samples is None:
        return "how many was not said"
    text = f"{len(samples):,} of {samples.identities:,} identities"
    if samples.columns is not None:
        text += f", {samples.columns:,} columns"
    if samples.dtype is not None:
        text += f" of {samples.dtype}"
    return f"{text}, from {samples.source}" if samples.source else text


def _nan(report: VerificationReport) -> str:
    if not report.genuine_nan and not report.impostor_nan:
        return "none"
    return (
        f"{report.genuine_nan:,} genuine and {report.impostor_nan:,} impostor distances: "
        "never accepted, and counted in every rate"
    )


def _counting(report: VerificationReport) -> str:
    if not report.binned:
        return "exact: every distance was looked at, nothing is binned"
    return (
        f"curves from {len(report.distance):,} bins of the distance, each point of them exact; the "
        "EER and thresholds not marked otherwise are exact; the AUC is off by at most "
        f"{report.auc_error:.1g}"
    )


def key_figures(
    report: VerificationReport, calibrator: Calibrator | None = None
) -> list[KeyFigure]:
    """EER, AUC, d′, Cllr and rank 1, with what is known of their error."""
    confidence = report.confidence
    none = "no confidence interval was asked for"
    eer_note = f"at distance {threshold(report.eer_threshold, report.distance.dtype)}"
    figures = [
        KeyFigure(
            "Equal error rate",
            percent(report.eer),
            f"{_interval(confidence.eer, percent, confidence.level)}; {eer_note}"
            if confidence
            else f"{eer_note}; {none}",
            "false accepts and false rejects are equally frequent",
        ),
        KeyFigure(
            "AUC",
            fraction(report.auc),
            _interval(confidence.auc, fraction, confidence.level) if confidence else none,
            "chance that a genuine pair is closer than an impostor pair",
        ),
        _d_prime(report),
        _cllr("Minimum Cllr", report.min_cllr, _min_cllr_note(report)),
    ]
    if calibrator is not None:
        actual = report.cllr(calibrator)
        figures.append(_cllr("Actual Cllr", actual, "with the calibration shown below"))
    figures.append(_rank_one(report))
    return figures


def _d_prime(report: VerificationReport) -> KeyFigure:
    meaning = "distance of the two means in standard deviations"
    if report.spread is None:
        return KeyFigure("d′", None, "this report was made without means", meaning)
    value = report.d_prime
    if math.isnan(value):
        return KeyFigure("d′", None, "a distance is infinite, or none is a number", meaning)
    means = f"means {report.spread.genuine_mean:.4g} and {report.spread.impostor_mean:.4g}"
    return KeyFigure("d′", decimal(value), means, meaning)


def _cllr(name: str, value: float, note: str) -> KeyFigure:
    meaning = "cost of the evidence in bits: 0 is perfect, 1 says nothing"
    if math.isnan(value):
        return KeyFigure(name, None, "no distance of one kind is a number", meaning)
    return KeyFigure(name, decimal(value), note, meaning)


def _min_cllr_note(report: VerificationReport) -> str:
    note = "after the best calibration of these very pairs"
    return f"{note}; from bins, an upper bound" if report.binned else note


def _rank_one(report: VerificationReport) -> KeyFigure:
    meaning = "queries whose nearest entry shows their own identity"
    found = report.identification
    if found is None:
        return KeyFigure("Rank 1", None, "identification was not asked for", meaning)
    mated = int(found.mated.sum())
    if not mated:
        return KeyFigure("Rank 1", None, "no query has a mate in the gallery", meaning)
    return KeyFigure("Rank 1", percent(float(found.cmc(1)[0])), f"of {mated:,} queries", meaning)


def _interval(ends: tuple[float, float], written: object, level: float) -> str:
    assert callable(written)
    low, high = map(written, ends)
    return f"{100 * level:g} % interval {low} to {high}"


def operating_points(report: VerificationReport, far: Sequence[float]) -> list[OperatingPoint]:
    """One row for each false accept rate, and one where both error rates are equal."""
    points = [_point(report, None, report.eer_threshold, exact=True)]
    points += [_point(report, f, report.threshold(f), report.is_exact(f)) for f in far]
    return points


def _point(
    report: VerificationReport, asked: float | None, at: float, exact: bool
) -> OperatingPoint:
    far, frr = report.rates(at)
    accepts, rejects = round(far * report.impostor), round(frr * report.genuine)
    ends = None
    if report.confidence is not None:
        ends = report.confidence.eer if asked is None else report.confidence.frr.get(asked)
    return OperatingPoint(
        asked=None if asked is None else chosen(asked),
        threshold=threshold(at, report.distance.dtype),
        exact=exact,
        far=percent(far),
        frr=percent(frr),
        tar=percent((report.genuine - rejects) / report.genuine),
        interval=None if ends is None else (percent(ends[0]), percent(ends[1])),
        false_accepts=count(accepts),
        false_rejects=count(rejects),
        one_in=one_in(accepts, report.impostor),
    )


def missing(
    report: VerificationReport, samples: Samples | None, calibrator: Calibrator | None
) -> list[str]:
    """Parts that this report could have had."""
    parts = []
    if report.confidence is None:
        parts.append("Confidence intervals: no bootstrap samples were asked for.")
    if report.identification is None:
        parts.append("Identification (rank 1, CMC, open set): it was not asked for.")
    if calibrator is None:
        parts.append("Calibration (similarities in 0…1): no calibrator was given.")
    if report.hardest_genuine is None or report.hardest_impostor is None:
        parts.append("Hardest pairs: this report was made of distances, which have no pairs.")
    elif samples is None:
        parts.append("Labels of the hardest pairs: the rows were not described.")
    elif samples.images is None:
        parts.append("Pictures of the hardest pairs: no images were given.")
    return parts
