"""``siamcuda search``: the nearest entries of a gallery file for every row of another."""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TextIO

import numpy as np
from tyro.conf import Positional, arg

from siamcuda import Gallery
from siamcuda._commands.inputs import check_outputs, read_matrix, refusing
from siamcuda._commands.parsing import parse
from siamcuda._files import writing_atomically
from siamcuda._tensor_file import load_safetensors
from siamcuda.gallery import Progress
from siamcuda.train.errors import InputError

__all__ = ["Search", "main", "run"]


@dataclass(frozen=True)
class Search:
    """Find the nearest entries of a gallery, or all within a radius, exactly."""

    queries: Annotated[Positional[Path], arg(metavar="QUERIES")]
    """(Q, D), .npy or .safetensors; for hamming packed bits in uint8"""
    gallery: Annotated[Positional[Path], arg(metavar="GALLERY")]
    """(N, D), .npy, or .safetensors as Gallery.save writes it; streamed"""
    k: Annotated[int, arg(aliases=["-k"], metavar="K")] = 10  # how many entries for a query
    # instead of k: all entries nearer than this
    radius: Annotated[float | None, arg(metavar="R")] = None
    # by default what a saved gallery says, else sqeuclidean
    metric: Annotated[
        Literal["sqeuclidean", "euclidean", "cosine", "hamming"] | None,
        arg(metavar="{sqeuclidean,euclidean,cosine,hamming}"),
    ] = None
    # rows of the gallery with NaN or infinities: refuse them, or put them last
    nonfinite: Literal["raise", "warn"] = "raise"
    # .npz (arrays, k entries a row) or .csv (a line for each entry found); default: csv to stdout
    out: Annotated[Path | None, arg(aliases=["-o"], metavar="PATH")] = None


_Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(parse(Search, "search", arguments))


def run(options: Search) -> None:
    """Do what the options ask; raises InputError for what can't be used."""
    if options.out is not None and options.out.suffix not in (".npz", ".csv"):
        raise InputError(f"out: {options.out} must end in .npz or .csv")
    check_outputs([("out", options.out)], [options.queries, options.gallery])
    gallery = _open(options)
    queries = read_matrix(options.queries, "queries")
    with _progress(len(gallery)) as progress, refusing():
        if options.radius is None:
            found = gallery.search(queries, options.k, progress=progress)
            arrays = {"distances": found.distances.numpy(), "ids": found.ids.numpy()}
        else:
            within = gallery.range_search(queries, options.radius, progress=progress)
            arrays = {
                name: part.numpy()
                for name, part in zip(("lims", "distances", "ids"), within, strict=True)
            }
    _warn(options, gallery, int((~queries.isfinite().all(1)).sum()))
    if options.out is None:
        _csv(sys.stdout, arrays)
        return
    with refusing("out: "):
        _write(options.out, arrays)


def _open(options: Search) -> Gallery:
    path = options.gallery
    with refusing("gallery: "):
        if path.is_dir():
            raise ValueError(f"{path} is a folder; a .npy or .safetensors file is expected")
        if path.suffix == ".safetensors":
            # Without its vectors: only whether somebody saved it as a gallery is asked here.
            _, metadata = load_safetensors(path, skip=("vectors",))
            if "format" in metadata:
                gallery = Gallery.load(path, stream=True, nonfinite=options.nonfinite)
                if options.metric not in (None, gallery.metric):
                    raise ValueError(f"{path} was saved for metric {gallery.metric!r}")
                return gallery
        return Gallery(path, metric=options.metric or "sqeuclidean", nonfinite=options.nonfinite)


@contextmanager
def _progress(rows: int) -> Iterator[Progress | None]:
    """A bar on a terminal, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield None
        return
    with tqdm(total=rows, desc="gallery", unit="row", unit_scale=True, disable=None) as bar:

        def step(done: int, _: int) -> None:
            bar.update(done - bar.n)

        yield step


def _warn(options: Search, gallery: Gallery, queries: int) -> None:
    for count, of, path, what in (
        (gallery.nonfinite, len(gallery), options.gallery, "they come after all others"),
        (queries, None, options.queries, "what is found for them means nothing"),
    ):
        if count:
            rows = f"{count} of {of} rows hold" if of else f"{count} rows hold"
            print(f"siamcuda: warning: {path}: {rows} NaN or infinities; {what}", file=sys.stderr)


def _write(out: Path, arrays: dict[str, _Array]) -> None:
    with writing_atomically(out) as file:
        if out.suffix == ".npz":
            # numpy's types take the names of arrays for those of its own options.
            np.savez(file, **arrays)  # type: ignore[arg-type]
        else:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            _csv(text, arrays)
            text.flush()
            text.detach()
    print(f"{out}: {arrays['ids'].size:,} entries")


def _csv(file: TextIO, arrays: dict[str, _Array]) -> None:
    """One line for each entry found; the padding of a small gallery is none."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("query", "rank", "id", "distance"))
    ids, distances = arrays["ids"], arrays["distances"]
    if "lims" in arrays:
        bounds = arrays["lims"].tolist()
        parts = ((ids[a:b], distances[a:b]) for a, b in itertools.pairwise(bounds))
    else:
        parts = ((i, d) for i, d in zip(ids, distances, strict=True))
    for query, (found, far) in enumerate(parts):
        for rank, (entry, distance) in enumerate(zip(found.tolist(), far, strict=True), 1):
            if entry >= 0:
                writer.writerow((query, rank, entry, distance))
