"""How well distances tell genuine pairs from impostors: thresholds, error rates and curves.

A pair is accepted when its distance d <= t. The false accept rate FAR(t) is the share of impostor
pairs accepted; the false reject rate FRR(t) is the share of genuine pairs with d > t. All of it
comes from counts of pairs, none from interpolation; docs/verification.md has the definitions.

>>> report = from_distances(genuine=[0.1, 0.4], impostor=[0.3, 0.8, 0.9])
>>> report.eer, report.auc, report.frr(0.0)
(0.41666666666666663, 0.8333333333333334, 0.5)
"""

from siamcuda.verification._bootstrap import Confidence
from siamcuda.verification._calibrator import Calibrator
from siamcuda.verification._distances import from_distances
from siamcuda.verification._evaluate import evaluate
from siamcuda.verification._identification import Identification
from siamcuda.verification._report import (
    Curve,
    HardestPairs,
    Histogram,
    Spread,
    VerificationReport,
)

__all__ = [
    "Calibrator",
    "Confidence",
    "Curve",
    "HardestPairs",
    "Histogram",
    "Identification",
    "Spread",
    "VerificationReport",
    "evaluate",
    "from_distances",
]
