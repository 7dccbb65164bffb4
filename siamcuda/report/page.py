r"""One page that says how well an encoder verifies: a single HTML file, nothing to fetch.

>>> from siamcuda.verification import from_distances
>>> page = render(from_distances(genuine=[0.1, 0.4], impostor=[0.3, 0.8, 0.9]), far=0.5)
>>> "Equal error rate" in page and "41.7\u00a0%" in page
True
"""

from __future__ import annotations

import datetime
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from siamcuda._files import write_atomically
from siamcuda._info import __version__
from siamcuda.report import summary
from siamcuda.report.drawing import to_svg
from siamcuda.report.figures import DARK, LIGHT, draw
from siamcuda.report.pairs import hardest_pairs
from siamcuda.report.samples import Samples
from siamcuda.verification import Calibrator, VerificationReport

__all__ = ["render", "write", "write_page"]

_HERE = Path(__file__).parent


def render(
    report: VerificationReport,
    *,
    far: float | Iterable[float] | None = None,
    samples: Samples | None = None,
    gallery: Samples | None = None,
    calibrator: Calibrator | None = None,
    title: str = "Verification report",
) -> str:
    """Return the page as text.

    Args:
        report: of :func:`siamcuda.verification.evaluate` or ``from_distances``.
        far: false accept rates to show, those that ``evaluate`` was asked for; by default those of
            the confidence intervals, else 1 %, 0.1 % and 0.01 %.
        samples: what the rows are: labels, pictures, where they came from.
        gallery: the same of the gallery's rows, if ``evaluate`` was given one.
        calibrator: adds similarity against distance, reliability and the actual Cllr.
        title: heading of the page.
    """
    rates = summary.asked_rates(report, far)
    plots, without = draw(report, rates, calibrator)
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,  # labels and file names are anybody's text
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        css=Markup((_HERE / "page.css").read_text()),
        light=LIGHT,
        dark=DARK,
        headline=summary.headline(report, samples, gallery),
        facts=summary.evaluated(report, samples, gallery, calibrator),
        key_figures=summary.key_figures(report, calibrator),
        points=summary.operating_points(report, rates),
        level=report.confidence.level if report.confidence else None,
        plots=plots,
        svg=lambda plot: Markup(to_svg(plot.figure, plot.name, plot.alt, LIGHT)),
        impostor_pairs=hardest_pairs(report.hardest_impostor, samples, gallery),
        genuine_pairs=hardest_pairs(report.hardest_genuine, samples, gallery),
        pictures=any(s is not None and s.images is not None for s in (samples, gallery)),
        sides=("embedding", "embedding" if gallery is None else "gallery"),
        missing=[*summary.missing(report, samples, calibrator), *without],
        version=__version__,
        date=datetime.datetime.now().astimezone().date().isoformat(),
    )


def write_page(path: str | Path, report: VerificationReport, **options: Any) -> None:
    """Write the page of :func:`render`, with its options, to a file: whole or not at all."""
    write(Path(path), render(report, **options))


def write(path: Path, page: str) -> None:
    """Write what :func:`render` returned."""
    write_atomically(path, page.encode(errors="replace"))


def _printable(value: object) -> object:
    """Text without what is no text: control characters and halves of surrogate pairs."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in value)
