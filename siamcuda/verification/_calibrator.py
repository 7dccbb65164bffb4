"""From distances to similarities in 0…1 and log-likelihood ratios: Platt or isotonic."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from siamcuda._files import write_atomically
from siamcuda.verification._isotonic import pool
from siamcuda.verification._report import VerificationReport

__all__ = ["Calibrator"]

_Doubles = NDArray[np.float64]
_Distances = TypeVar("_Distances", Tensor, NDArray[np.floating[Any]])

_FORMAT, _VERSION = "siamcuda.calibrator", 1
_MOST_BYTES = 64 << 20
_KEYS = {"format", "version", "method", "metric", "prior", "slope", "offset", "knots", "values"}


@dataclass(frozen=True)
class Calibrator:
    """The chance that a pair is genuine, from its distance.

    ``prior`` is the chance before the distance is known: with ½ a similarity above ½ says that the
    distance speaks for a genuine pair, however rare genuine pairs were among those of the report.

    Example:
        >>> import numpy as np
        >>> from siamcuda.verification import from_distances
        >>> report = from_distances([0.1, 0.2, 0.4], [0.3, 0.8, 0.9])
        >>> calibrator = Calibrator.fit(report)
        >>> similarity = calibrator(np.array([0.0, 0.5, 2.0]))
        >>> bool(similarity[0] > 0.5 > similarity[2] >= 0)
        True
    """

    method: str  # "platt" or "isotonic"
    prior: float
    metric: str | None  # of the report, as a reminder; None where it named none
    slope: float = 0.0  # s of Platt's formula
    offset: float = 0.0  # b of it
    knots: tuple[float, ...] = ()  # distances, ascending, between which values lie on a line
    values: tuple[float, ...] = ()  # similarities at the knots, never rising

    @classmethod
    def fit(
        cls, report: VerificationReport, method: str = "platt", *, prior: float = 0.5
    ) -> Calibrator:
        """Fit to the genuine and impostor counts of a report.

        Args:
            report: distances that are NaN or infinite take no part; from a binned curve each pair
                is taken at the middle of its interval.
            method: ``"platt"``: σ(b − s·d) by maximum likelihood, with Platt's targets
                (N₊+1)/(N₊+2) and 1/(N₋+2) in place of 1 and 0, so that trials that separate
                perfectly have a finite answer (Platt 1999; the safe Newton steps of Lin, Lin and
                Weng 2007). ``"isotonic"``: the best value for each distance that never rises with
                it, by pool-adjacent-violators (Zadrozny and Elkan 2002), straight lines between.
            prior: weight of all genuine pairs together, in (0, 1).

        Raises:
            ValueError: an unknown method, a prior outside of (0, 1), or a report without a finite
                distance of each kind.
        """
        if method not in ("platt", "isotonic"):
            raise ValueError(f"method must be 'platt' or 'isotonic', got {method!r}")
        if not 0 < prior < 1:
            raise ValueError(f"prior must lie in (0, 1), got {prior}")
        distance = report._middle()
        finite = np.isfinite(distance)
        genuine, impostor = (counts[finite].astype(np.float64) for counts in report._counts())
        distance = distance[finite]
        totals = genuine.sum(), impostor.sum()
        if not all(totals):
            raise ValueError("report: finite distances of both kinds are needed to calibrate")
        if method == "platt":
            # Each pair weighs so much that the kinds together weigh what the prior says.
            weights = genuine * (prior / totals[0]), impostor * ((1 - prior) / totals[1])
            targets = (totals[0] + 1) / (totals[0] + 2), 1 / (totals[1] + 2)
            slope, offset = _platt(distance, *weights, *targets)
            return cls("platt", prior, report.metric, slope, offset)
        blocks = pool(genuine * (prior / totals[0]), impostor * ((1 - prior) / totals[1]))
        ends = np.stack([distance[blocks.first], distance[blocks.last]], 1)
        knots, at = np.unique(ends.ravel(), return_index=True)  # a block of one has one end
        values = np.repeat(blocks.value, 2)[at]
        return cls(
            "isotonic", prior, report.metric,
            knots=tuple(knots.tolist()), values=tuple(values.tolist()),
        )  # fmt: skip

    def __call__(self, distances: _Distances) -> _Distances:
        """Similarities in 0…1, in the shape and dtype of ``distances``; NaN stays NaN."""
        if isinstance(distances, Tensor):
            wide = distances.detach().cpu().double().numpy()
            return torch.from_numpy(self._similarity(wide)).to(distances)
        return self._similarity(distances.astype(np.float64)).astype(distances.dtype)

    def log_likelihood_ratio(self, distances: NDArray[np.floating[Any]]) -> _Doubles:
        """ln of p(distance | genuine) / p(distance | impostor), in float64, NaN for NaN."""
        prior_odds = math.log(self.prior) - math.log1p(-self.prior)
        if self.method == "platt":
            return self._logit(distances.astype(np.float64)) - prior_odds
        similarity = self._similarity(distances.astype(np.float64))
        with np.errstate(divide="ignore"):  # 0 and 1 have infinite ratios
            odds: _Doubles = np.log(similarity) - np.log1p(-similarity)
        return odds - prior_odds

    def _logit(self, distances: _Doubles) -> _Doubles:
        if self.slope == 0:  # 0·inf would be NaN
            return np.where(np.isnan(distances), np.nan, self.offset)
        return self.offset - self.slope * distances

    def _similarity(self, distances: _Doubles) -> _Doubles:
        if self.method == "platt":
            logit = self._logit(distances)
            e = np.exp(-np.abs(logit))
            return np.asarray(np.where(logit >= 0, 1 / (1 + e), e / (1 + e)))
        return np.asarray(np.interp(distances, self.knots, self.values))

    def save(self, path: str | Path) -> None:
        """Write a small JSON file, whole or not at all."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "method": self.method,
            "metric": self.metric,
            "prior": self.prior,
            "slope": self.slope,
            "offset": self.offset,
            "knots": list(self.knots),
            "values": list(self.values),
        }
        text = json.dumps(content, allow_nan=False, indent=1)
        write_atomically(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | Path) -> Calibrator:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is too large or is not a calibrator; it says what is wrong.
            OSError: it cannot be read.
        """
        path = Path(path)
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise ValueError(f"{path}: more than {_MOST_BYTES} bytes, not a calibrator")
        try:
            content = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not a JSON file ({error})") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{path}: not a calibrator of siamcuda")
        if content.get("version") != _VERSION:
            raise ValueError(
                f"{path}: version {content.get('version')!r} of the format, "
                f"this build reads {_VERSION}"
            )
        if content.keys() != _KEYS:
            raise ValueError(f"{path}: fields {sorted(content)}, expected {sorted(_KEYS)}")
        return cls._checked(path, content)

    @classmethod
    def _checked(cls, path: Path, content: dict[str, Any]) -> Calibrator:
        def fail(field: str, expected: str) -> ValueError:
            return ValueError(f"{path}: {field} must be {expected}, got {content[field]!r:.80}")

        def is_number(value: object) -> bool:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                return False
            return abs(value) <= sys.float_info.max

        if content["method"] not in ("platt", "isotonic"):
            raise fail("method", "'platt' or 'isotonic'")
        if not (content["metric"] is None or isinstance(content["metric"], str)):
            raise fail("metric", "a string or null")
        for name in ("prior", "slope", "offset"):
            if not is_number(content[name]):
                raise fail(name, "a finite number")
        if not 0 < content["prior"] < 1:
            raise fail("prior", "in (0, 1)")
        for name in ("knots", "values"):
            if not (isinstance(content[name], list) and all(map(is_number, content[name]))):
                raise fail(name, "a list of finite numbers")
        knots, values = (np.array(content[k], np.float64) for k in ("knots", "values"))
        if len(knots) != len(values) or (len(knots) == 0) != (content["method"] == "platt"):
            raise fail("values", "as many as knots, none for platt")
        if (np.diff(knots) <= 0).any():
            raise fail("knots", "ascending")
        if (np.diff(values) > 0).any() or (values < 0).any() or (values > 1).any():
            raise fail("values", "in 0…1 and never rising")
        return cls(
            content["method"],
            float(content["prior"]),
            content["metric"],
            float(content["slope"]),
            float(content["offset"]),
            tuple(float(k) for k in content["knots"]),
            tuple(float(v) for v in content["values"]),
        )


def _platt(
    distance: _Doubles, genuine: _Doubles, impostor: _Doubles, high: float, low: float
) -> tuple[float, float]:
    """s and b that minimise the weighted cross entropy of σ(b − s·d) with targets high and low."""
    weight = genuine + impostor
    mean = float(np.average(distance, weights=weight))
    scale = float(np.sqrt(np.average((distance - mean) ** 2, weights=weight)))
    if scale == 0 or not math.isfinite(scale):
        scale = 1.0
    z = (distance - mean) / scale  # Newton's steps then do not depend on the unit
    target = genuine * high + impostor * low

    def cost(b: float, s: float) -> float:
        logit = b - s * z
        return float(np.sum(weight * np.logaddexp(0, logit) - target * logit))

    b, s = math.log(float(genuine.sum()) / float(impostor.sum())), 0.0
    best = cost(b, s)
    for _ in range(100):
        logit = b - s * z
        e = np.exp(-np.abs(logit))
        p = np.where(logit >= 0, 1, e) / (1 + e)
        residual = weight * p - target
        gradient = float(residual.sum()), float(-(residual * z).sum())
        if max(map(abs, gradient)) < 1e-10:
            break
        curve = weight * p * (1 - p)
        aa, ab = float(curve.sum()) + 1e-12, float(-(curve * z).sum())
        bb = float((curve * z * z).sum()) + 1e-12
        determinant = aa * bb - ab * ab
        step_b = -(bb * gradient[0] - ab * gradient[1]) / determinant
        step_s = -(aa * gradient[1] - ab * gradient[0]) / determinant
        slope = gradient[0] * step_b + gradient[1] * step_s
        size = 1.0
        while size > 1e-10:
            found = cost(b + size * step_b, s + size * step_s)
            if found < best + 1e-4 * size * slope:
                break
            size /= 2
        else:
            break  # no step lowers the cost any more: rounding is all that is left
        b, s, best = b + size * step_b, s + size * step_s, found
    return s / scale, b + s * mean / scale
