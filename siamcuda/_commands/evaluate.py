"""``siamcuda evaluate``: every pair of embeddings, of files or of a run; a table, a page, plots."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
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
from siamcuda._commands.runs import embed_inputs, is_run, open_run, takes_texts
from siamcuda.report.samples import Samples
from siamcuda.report.summary import asked_rates, evaluated, key_figures, operating_points
from siamcuda.train import recipes
from siamcuda.train.errors import InputError
from siamcuda.verification import Calibrator, VerificationReport, evaluate

__all__ = ["Evaluate", "main", "run"]


#: Where a file may be named; the help need not say that None is one too.
_Path = Annotated[Path | None, arg(metavar="PATH")]


@dataclass(frozen=True)
class Evaluate:
    """Verify every pair of embeddings: print error rates, write a page for people.

    siamcuda evaluate EMBEDDINGS LABELS: files. siamcuda evaluate RUN IMAGES: what a trained run
    makes of images. siamcuda evaluate RUN: the figures that its recipe left.
    """

    places: Annotated[Positional[tuple[Path, ...]], arg(metavar="EMBEDDINGS LABELS|RUN [IMAGES]")]
    """EMBEDDINGS: (N, D) floats, .npy or .safetensors. LABELS: N identities, .npy of integers or
    strings, or text, one a line. RUN: folder of a trained run. IMAGES: a folder with one sub-folder
    an identity"""
    # by default the run's, else sqeuclidean
    metric: Annotated[
        Literal["sqeuclidean", "euclidean", "cosine"] | None,
        arg(metavar="{sqeuclidean,euclidean,cosine}"),
    ] = None
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
    # where a run's encoder runs: cpu, cuda, cuda:1; auto: a GPU if there is one
    device: str = "auto"


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(parse(Evaluate, "evaluate", arguments))


class Compared(NamedTuple):
    """What is compared with what."""

    rows: Tensor
    identities: list[str]
    samples: Samples
    metric: str
    gallery: tuple[Tensor, list[str], Samples] | None = None
    threshold: float | None = None  # of the run


def run(options: Evaluate) -> None:
    """Do what the options ask; raises InputError for what can't be used."""
    if len(options.places) == 1 and options.places[0].is_dir():
        _print_figures(options)
        return
    if options.report is not None or options.png is not None:
        import siamcuda.report.page  # noqa: F401  what is missing is found before the work

    _check(options)
    compared = _of_run(options) if _by_run(options) else _of_files(options)
    samples, gallery = compared.samples, compared.gallery
    others, other_identities, other_samples = gallery or (None, [], None)
    numbered = _numbered(compared.identities, other_identities)
    with refusing():
        report = evaluate(
            compared.rows,
            numbered[: len(compared.rows)],
            options.far,
            metric=compared.metric,
            gallery=others,
            gallery_labels=None if others is None else numbered[len(compared.rows) :],
            thresholds=() if compared.threshold is None else compared.threshold,
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
        written = _write(options, report, samples, other_samples, calibrator)
    finally:  # a disk that is full does not cost the table
        facts = [(f.name, f.text) for f in evaluated(report, samples, other_samples, calibrator)]
        if compared.threshold is not None:
            far, frr = (f"{100 * rate:.3g} %" for rate in report.rates(compared.threshold))
            facts.append(("Stored threshold", f"{compared.threshold:.6g}: FAR {far}, FRR {frr}"))
        tables.print_facts(facts)
        tables.print_key_figures(key_figures(report, calibrator))
        tables.print_points(operating_points(report, asked_rates(report, options.far)))
    for line in written:
        print(line)


def _of_files(options: Evaluate) -> Compared:
    embeddings, labels = options.places
    gallery = None
    rows, identities, samples = _side(embeddings, labels, options.images, "")
    if options.gallery is not None and options.gallery_labels is not None:
        gallery = _side(options.gallery, options.gallery_labels, options.gallery_images, "gallery ")
    return Compared(rows, identities, samples, options.metric or "sqeuclidean", gallery)


def _of_run(options: Evaluate) -> Compared:
    """Embed a folder of identities."""
    folder, images = options.places
    siamese = open_run(folder, options.device)
    metric: str = siamese.distance
    if metric == "l1":
        raise InputError("run: it compares by L1 distance, which evaluate does not have")
    if options.metric not in (None, metric):
        raise InputError(f"metric: {folder} compares by {metric}")
    if takes_texts(siamese):
        raise InputError("run: it takes texts; embed them, and evaluate files")

    from siamcuda.train.data.folders import list_identities

    names, paths, labels = list_identities(images)
    if len(names) == 1:
        raise InputError(f"images: {images} has the identity {names[0]} alone; two are needed")
    outputs = [("report", options.report), ("calibrator", options.calibrator)]
    check_outputs(outputs, paths)
    rows = embed_inputs(siamese, [os.fspath(path) for path in paths])
    if metric == "hamming":  # bits that differ are the squared distance of bits as numbers
        rows = torch.from_numpy(np.unpackbits(rows.numpy(), axis=1)).float()
        metric = "sqeuclidean"
    identities = [names[label] for label in labels.tolist()]
    dtype = str(rows.dtype).removeprefix("torch.")
    samples = Samples(identities, paths, rows.shape[1], dtype, f"{images} by {folder}")
    return Compared(rows, identities, samples, metric, threshold=siamese.threshold)


def _print_figures(options: Evaluate) -> None:
    """Print what the recipe of a run measured; other options ask for images."""
    (folder,) = options.places
    for field in fields(options)[1:]:
        if getattr(options, field.name) != field.default:
            raise InputError(f"{field.name}: needs images: siamcuda evaluate RUN IMAGES")
    if not (folder / "metrics.json").is_file():
        raise InputError(f"run: no training was finished in {folder}: it has no metrics.json")

    from siamcuda.train.storage import load_json

    with refusing("run: "):
        metrics = load_json(folder / "metrics.json")
        config = load_json(next(iter([*recipes.parts(folder), folder])) / recipes.CONFIG)
        try:
            table = recipes.load(str(config.get("recipe"))).table(metrics)
        except (LookupError, AttributeError) as error:
            raise InputError(f"{folder / 'metrics.json'} lacks {error}") from error
    print(table)


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
    if options.report is not None:
        from siamcuda.report import page

        content = page.render(
            report,
            far=options.far,
            samples=samples,
            gallery=gallery,
            calibrator=calibrator,
            title=options.title or f"Verification of {_name(options)}",
        )
        with refusing("report: "):
            page.write(options.report, content)
        written.append(f"page: {options.report}")
    if options.png is not None:
        from siamcuda.report.pngs import write_pngs

        with refusing("png: "):
            options.png.mkdir(parents=True, exist_ok=True)
            paths = write_pngs(options.png, report, far=options.far, calibrator=calibrator)
        written.append(f"plots: {', '.join(p.name for p in paths)} in {options.png}")
    return written


def _by_run(options: Evaluate) -> bool:
    """Whether a run is asked, be it one that is not there."""
    first, second = options.places
    return is_run(first) or (second.is_dir() and not first.is_file())


def _name(options: Evaluate) -> str:
    first, second = options.places
    return f"{second.name} by {first.name}" if _by_run(options) else first.name


def _check(options: Evaluate) -> None:
    if (options.gallery is None) != (options.gallery_labels is None):
        raise InputError("gallery: --gallery and --gallery-labels must be given together")
    if options.gallery_images is not None and options.gallery is None:
        raise InputError("gallery_images: needs --gallery")
    if len(options.places) != 2:
        raise InputError(
            f"places: EMBEDDINGS LABELS or RUN [IMAGES] is expected, got {len(options.places)}"
        )
    if _by_run(options):
        for name in ("gallery", "gallery_labels", "gallery_images", "images"):
            if getattr(options, name) is not None:
                raise InputError(f"{name}: is for files of embeddings, not for a run")
    inputs = [*options.places, options.gallery, options.gallery_labels]
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
