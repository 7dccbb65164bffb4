"""``siamcuda embed RUN IMAGES``: the embeddings of images, or of sentences, in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import Positional, arg

from siamcuda._commands.inputs import check_outputs, refusing
from siamcuda._commands.parsing import parse
from siamcuda._commands.runs import embed_inputs, gallery_metric, list_inputs, open_run, takes_texts
from siamcuda._files import write_atomically, writing_atomically
from siamcuda.gallery import Gallery
from siamcuda.train.errors import InputError

__all__ = ["Embed", "main", "run"]


@dataclass(frozen=True)
class Embed:
    """Embed images, or sentences, by a trained run."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """folder of a trained run"""
    inputs: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGES [IMAGES ...]")]
    """image files, folders (with sub-folders, sorted) or text files of paths, a path a line; for a
    run that takes texts: text files, a sentence a line"""
    # .npy: (N, D) float32, for hamming packed bits in uint8; .safetensors: a gallery, with metric
    out: Annotated[Path, arg(aliases=["-o"], metavar="PATH")]
    # also write the path, or the sentence, of each row, a line each
    names: Annotated[Path | None, arg(metavar="PATH")] = None
    batch: int = 256  # how many at a time
    device: str = "auto"  # where the encoder runs: cpu, cuda, cuda:1; auto: a GPU if there is one


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(parse(Embed, "embed", arguments))


def run(options: Embed) -> None:
    """Do what the options ask; raises InputError for what can't be used."""
    if not options.inputs:
        raise InputError("inputs: name what to embed: image files, folders or lists")
    if options.out.suffix not in (".npy", ".safetensors"):
        raise InputError(f"out: {options.out} must end in .npy or .safetensors")
    outputs = [("out", options.out), ("names", options.names)]
    check_outputs(outputs, options.inputs)
    if options.names is not None and options.names.resolve() == options.out.resolve():
        raise InputError(f"names: {options.names} is the file of the embeddings")
    siamese = open_run(options.run, options.device)
    metric = gallery_metric(siamese) if options.out.suffix == ".safetensors" else None
    names = list_inputs(siamese, options.inputs, "inputs")
    if not takes_texts(siamese):
        check_outputs(outputs, [Path(name) for name in names])
    if options.names is not None:
        broken = next((name for name in names if "\n" in name or "\r" in name), None)
        if broken is not None:
            raise InputError(f"names: a line cannot hold the name {broken!r}")
    embeddings = embed_inputs(siamese, names, options.batch)
    with refusing("out: "):
        if metric is not None:
            Gallery(embeddings, metric=metric).save(options.out)
        else:
            with writing_atomically(options.out) as file:
                np.save(file, embeddings.numpy())
    if options.names is not None:
        with refusing("names: "):
            text = "".join(f"{name}\n" for name in names)
            write_atomically(options.names, text.encode("utf-8", "surrogateescape"))
    rows, columns = embeddings.shape
    kind = str(embeddings.dtype).removeprefix("torch.")
    print(f"{options.out}: {rows:,} rows of {columns:,} {kind}")
