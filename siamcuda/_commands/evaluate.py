"""``siamcuda evaluate``: every pair of a file of embeddings; a table, a page, plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from torch import Tensor
from tyro.conf import Positional, arg

from siamcuda._commands import tables
from siamcuda._commands.inputs import (
    check_folder,
    check_outputs,
    read_images,
    read_labels,
    read_matrix,
    refusing,
)
from siamcuda._commands.parsing import parse
from siamcuda.report.samples import Samples
from siamcuda.report.summary import asked_rates, evaluated, key_figures, operating_points
from siamcuda.train.errors import InputError
from siamcuda.verification import Calibrator, VerificationReport, evaluate

__all__ = ["Evaluate", "main", "run"]


#: Where a file may be named; the help need not say that None is one too.
_Path = Annotated[Path | None, arg(metavar="PATH")]


@dataclass(frozen=True)
class Evaluate:
    """Verify every pair of embeddings: print error rates, write a page for people."""

    embeddings: Annotated[Positional[Path], arg(metavar="EMBEDDINGS")]
    """(N, D) floats, .npy or .safetensors"""
    labels: Annotated[Positional[Path], arg(metavar="LABELS")]
    """N identities: .npy of integers or strings, or text, one a line"""
    metric: Literal["sqeuclidean", "euclidean", "cosine"] = "sqeuclidean"
    far: tuple[float, ...] = (1e-2, 1e-3, 1e-4)  # false accept rates to find thresholds for
    gallery: _Path = None  # compare with these instead of with each other
    gallery_labels: _Path = None  # their identities
    images: _Path = None  # a picture a row: a folder, sorted, or a text file of paths
    gallery_images: _Path = None  # the same for the gallery
    bootstrap: int = 0  # samples for confidence intervals, 0 for none; 1000 is usual
    confidence: float = 0.95  # level of the intervals
    seed: int = 0  # of the samples
    identification: bool = True  # also rank every query's mate
    hardest: int = 16  # pairs to list of each kind
    report: _Path = None  # write one HTML page
    png: _Path = None  # write its plots into this folder
    calibrator: _Path = None  # fit distance -> similarity in 0...1, write it as JSON
    calibration: Literal["platt", "isotonic"] = "platt"  # how to fit
    prior: float = 0.5  # chance of a genuine pair that the similarity takes for granted
    title: Annotated[str | None, arg(metavar="TEXT")] = None  # heading of the page


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(parse(Evaluate, "evaluate", arguments))


def run(options: Evaluate) -> None:
    """Do what the options ask; raises InputError for what can't be used."""
    if options.report is not None or options.png is not None:
        import siamcuda.report.page  # noqa: F401  what is missing is found before the work

    _check(options)
    rows, identities, samples = _side(options.embeddings, options.labels, options.images, "")
    others = other_identities = gallery = None
    if options.gallery is not None and options.gallery_labels is not None:
        others, other_identities, gallery = _side(
            options.gallery, options.gallery_labels, options.gallery_images, "gallery "
        )
    numbered = _numbered(identities, other_identities or [])
    with refusing():
        report = evaluate(
            rows,
            numbered[: len(rows)],
            options.far,
            metric=options.metric,
            gallery=others,
            gallery_labels=None if others is None else numbered[len(rows) :],
            hardest=options.hardest,
            identification=options.identification,
            bootstrap=options.bootstrap,
            confidence=options.confidence,
            seed=options.seed,
        )
        calibrator = None
        if options.calibrator is not None:
            calibrator = Calibrator.fit(report, options.calibration, prior=options.prior)
    try:
        written = _write(options, report, samples, gallery, calibrator)
    finally:  # a disk that is full does not cost the table
        facts = evaluated(report, samples, gallery, calibrator)
        tables.print_facts([(f.name, f.text) for f in facts])
        tables.print_key_figures(key_figures(report, calibrator))
        tables.print_points(operating_points(report, asked_rates(report, options.far)))
    for line in written:
        print(line)


def _write(
    options: Evaluate,
    report: VerificationReport,
    samples: Samples,
    gallery: Samples | None,
    calibrator: Calibrator | None,
) -> list[str]:
    """Write the files that were asked for; return a line on each."""
    written = []
    if calibrator is not None and options.calibrator is not None:
        with refusing("calibrator: "):
            calibrator.save(options.calibrator)
        written.append(f"calibration: {options.calibrator}")
    if options.report is not None or options.png is not None:
        from siamcuda.report import page
    if options.report is not None:
        content = page.render(
            report,
            far=options.far,
            samples=samples,
            gallery=gallery,
            calibrator=calibrator,
            title=options.title or f"Verification of {options.embeddings.name}",
        )
        with refusing("report: "):
            page.write(options.report, content)
        written.append(f"page: {options.report}")
    if options.png is not None:
        with refusing("png: "):
            options.png.mkdir(parents=True, exist_ok=True)
            paths = page.write_pngs(options.png, report, far=options.far, calibrator=calibrator)
        written.append(f"plots: {', '.join(p.name for p in paths)} in {options.png}")
    return written


def _check(options: Evaluate) -> None:
    if (options.gallery is None) != (options.gallery_labels is None):
        raise InputError("gallery: --gallery and --gallery-labels must be given together")
    if options.gallery_images is not None and options.gallery is None:
        raise InputError("gallery_images: needs --gallery")
    inputs = [options.embeddings, options.labels, options.gallery, options.gallery_labels]
    outputs = [("report", options.report), ("calibrator", options.calibrator)]
    check_outputs(outputs, [path for path in inputs if path is not None])
    if options.png is not None:
        place = options.png  # made when there is something to put in
        while not place.exists():
            place = place.parent
        check_folder(place, "png")


def _side(
    embeddings: Path, labels: Path, images: Path | None, name: str
) -> tuple[Tensor, list[str], Samples]:
    rows = read_matrix(embeddings, f"{name}embeddings" if not name else name.strip())
    identities = read_labels(labels, len(rows), f"{name}labels")
    pictures = None if images is None else read_images(images, len(rows), f"{name}images")
    dtype = str(rows.dtype).removeprefix("torch.")
    return rows, identities, Samples(identities, pictures, rows.shape[1], dtype, embeddings.name)


def _numbered(*labels: list[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Count identities from 0: evaluate takes integers."""
    names: dict[str, int] = {}
    together = [names.setdefault(label, len(names)) for part in labels for label in part]
    return np.array(together, dtype=np.int64)
