"""``siamcuda search``: the nearest entries of a gallery, of vectors or of what a run embeds."""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TextIO

import numpy as np
import torch
from torch import Tensor
from tyro.conf import Positional, arg

from siamcuda import Gallery
from siamcuda._commands.inputs import check_outputs, read_labels, read_matrix, refusing
from siamcuda._commands.parsing import parse
from siamcuda._commands.runs import (
    embed_inputs,
    gallery_metric,
    is_run,
    list_inputs,
    open_run,
    progress_bar,
)
from siamcuda._files import writing_atomically
from siamcuda._tensor_file import load_safetensors
from siamcuda.train.errors import InputError

__all__ = ["Search", "main", "run"]


@dataclass(frozen=True)
class Search:
    """Find the nearest entries of a gallery, or all within a radius, exactly.

    siamcuda search QUERIES GALLERY: files of vectors. siamcuda search RUN QUERY GALLERY: what a
    trained run makes of images, or of sentences.
    """

    places: Annotated[Positional[tuple[Path, ...]], arg(metavar="[RUN] QUERIES GALLERY")]
    """QUERIES (Q, D) .npy or .safetensors, packed bits in uint8 for hamming; with RUN an image, a
    folder or a list of images. GALLERY (N, D) .npy, or .safetensors as Gallery.save writes it,
    streamed; with RUN also what QUERIES may be. For runs that take texts a sentence a line"""
    k: Annotated[int, arg(aliases=["-k"], metavar="K")] = 10  # how many entries for a query
    # instead of k: all entries nearer than this
    radius: Annotated[float | None, arg(metavar="R")] = None
    # by default what the run or a saved gallery says, else sqeuclidean
    metric: Annotated[
        Literal["sqeuclidean", "euclidean", "cosine", "hamming"] | None,
        arg(metavar="{sqeuclidean,euclidean,cosine,hamming}"),
    ] = None
    # rows of the gallery with NaN or infinities: refuse them, or put them last
    nonfinite: Literal["raise", "warn"] = "raise"
    # with RUN and a file of vectors: the path, or sentence, of each row, as embed --names wrote it
    names: Annotated[Path | None, arg(metavar="PATH")] = None
    # .npz (arrays, k entries a row) or .csv (a line for each entry found); default: csv to stdout
    out: Annotated[Path | None, arg(aliases=["-o"], metavar="PATH")] = None
    # where a run's encoder runs: cpu, cuda, cuda:1; auto: a GPU if there is one
    device: str = "auto"


_Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(parse(Search, "search", arguments))


class _Asked(NamedTuple):
    """A search, however it was asked for."""

    queries: Tensor
    gallery: Gallery
    labels: Labels


class Labels(NamedTuple):
    """What rows are called, and what their distances mean, where that is known."""

    queries: Sequence[str] | None = None
    entries: Sequence[str] | None = None
    similarity: Callable[[Tensor], Tensor] | None = None


def run(options: Search) -> None:
    """Do what the options ask; raises InputError for what can't be used."""
    if options.out is not None and options.out.suffix not in (".npz", ".csv"):
        raise InputError(f"out: {options.out} must end in .npz or .csv")
    check_outputs([("out", options.out)], options.places)
    if len(options.places) == 3:
        asked = _of_run(options, *options.places)
    elif len(options.places) == 2:
        asked = _of_files(options, *options.places)
    else:
        raise InputError(
            f"places: QUERIES GALLERY or RUN QUERY GALLERY is expected, got {len(options.places)}"
        )
    queries, gallery, labels = asked
    with progress_bar(len(gallery), "gallery", "row") as progress, refusing():
        if options.radius is None:
            found = gallery.search(queries, options.k, progress=progress)
            arrays = {"distances": found.distances.numpy(), "ids": found.ids.numpy()}
        else:
            within = gallery.range_search(queries, options.radius, progress=progress)
            arrays = {
                name: part.numpy()
                for name, part in zip(("lims", "distances", "ids"), within, strict=True)
            }
    if labels.similarity is not None:
        arrays["similarities"] = labels.similarity(torch.from_numpy(arrays["distances"])).numpy()
    _warn(options, gallery, int((~queries.isfinite().all(1)).sum()))
    if options.out is None:
        _csv(sys.stdout, arrays, labels)
        return
    with refusing("out: "):
        _write(options.out, arrays, labels)


def _of_files(options: Search, queries: Path, gallery: Path) -> _Asked:
    if is_run(queries):
        raise InputError(f"places: {queries} is a run: a query and a gallery are to follow it")
    if options.names is not None:
        raise InputError("names: needs a run")
    opened = _open(options, gallery, options.metric)
    return _Asked(read_matrix(queries, "queries"), opened, Labels())


def _of_run(options: Search, folder: Path, query: Path, place: Path) -> _Asked:
    """Embed the queries, and the gallery where it is no file of embeddings."""
    siamese = open_run(folder, options.device)
    metric = gallery_metric(siamese)
    if options.metric not in (None, metric):
        raise InputError(f"metric: {folder} compares by {metric}")
    queries = list_inputs(siamese, [query], "query")
    if place.suffix in (".npy", ".safetensors"):
        embedded = embed_inputs(siamese, queries)
        gallery, entries = _open(options, place, metric), None
        if gallery.columns != embedded.shape[1]:
            raise InputError(
                f"gallery: {place} has {gallery.columns} columns, the run's embeddings have "
                f"{embedded.shape[1]}"
            )
        if options.names is not None:
            entries = read_labels(options.names, len(gallery), "names")
    else:
        if options.names is not None:
            raise InputError(f"names: {place} has names of its own")
        entries = list_inputs(siamese, [place], "gallery")
        embedded = embed_inputs(siamese, [*queries, *entries])
        embedded, rows = embedded[: len(queries)], embedded[len(queries) :]
        with refusing("gallery: "):
            gallery = Gallery(rows, metric=metric, nonfinite=options.nonfinite)
    return _Asked(embedded, gallery, Labels(queries, entries, siamese.calibrator))


def _open(options: Search, path: Path, metric: str | None) -> Gallery:
    with refusing("gallery: "):
        if path.is_dir():
            raise ValueError(f"{path} is a folder; a .npy or .safetensors file is expected")
        if path.suffix == ".safetensors":
            # Without its vectors: only whether somebody saved it as a gallery is asked here.
            _, metadata = load_safetensors(path, skip=("vectors",))
            if "format" in metadata:
                gallery = Gallery.load(path, stream=True, nonfinite=options.nonfinite)
                if metric not in (None, gallery.metric):
                    raise ValueError(f"{path} was saved for metric {gallery.metric!r}")
                return gallery
        return Gallery(path, metric=metric or "sqeuclidean", nonfinite=options.nonfinite)


def _warn(options: Search, gallery: Gallery, queries: int) -> None:
    for count, of, path, what in (
        (gallery.nonfinite, len(gallery), options.places[-1], "they come after all others"),
        (queries, None, options.places[-2], "what is found for them means nothing"),
    ):
        if count:
            rows = f"{count} of {of} rows hold" if of else f"{count} rows hold"
            print(f"siamcuda: warning: {path}: {rows} NaN or infinities; {what}", file=sys.stderr)


def _write(out: Path, arrays: dict[str, _Array], labels: Labels) -> None:
    with writing_atomically(out) as file:
        if out.suffix == ".npz":
            named = {"queries": labels.queries, "entries": labels.entries}
            arrays |= {name: np.array(part) for name, part in named.items() if part is not None}
            # numpy's types take the names of arrays for those of its own options.
            np.savez(file, **arrays)  # type: ignore[arg-type]
        else:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            _csv(text, arrays, labels)
            text.flush()
            text.detach()
    print(f"{out}: {arrays['ids'].size:,} entries")


def _csv(file: TextIO, arrays: dict[str, _Array], labels: Labels) -> None:
    """One line for each entry found; the padding of a small gallery is none."""
    columns = [arrays[name] for name in ("ids", "distances", "similarities") if name in arrays]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("query", "rank", "id", "distance", "similarity")[: 2 + len(columns)])
    queries, entries = labels.queries, labels.entries
    if "lims" in arrays:
        bounds = list(itertools.pairwise(arrays["lims"].tolist()))
        found = [[part[a:b] for part in columns] for a, b in bounds]
    else:
        found = [list(parts) for parts in zip(*columns, strict=True)]
    for query, (ids, *values) in enumerate(found):
        for rank, (entry, *numbers) in enumerate(zip(ids.tolist(), *values, strict=True), 1):
            if entry >= 0:
                shown = query if queries is None else queries[query]
                what = entry if entries is None else entries[entry]
                writer.writerow((shown, rank, what, *numbers))
