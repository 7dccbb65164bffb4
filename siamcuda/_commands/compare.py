"""``siamcuda compare RUN A B``: whether two images, or two sentences, show the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from siamcuda._commands.parsing import parse
from siamcuda._commands.runs import embed_inputs, open_run, takes_texts
from siamcuda.train.errors import InputError

__all__ = ["Compare", "main", "run"]


@dataclass(frozen=True)
class Compare:
    """Compare two images, or two sentences, by a trained run."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """folder of a trained run"""
    a: Annotated[Positional[str], arg(metavar="A")]
    """an image file; a sentence where the run takes texts"""
    b: Annotated[Positional[str], arg(metavar="B")]
    """another"""
    json: Annotated[bool, FlagCreatePairsOff] = False  # one JSON object instead of text


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(parse(Compare, "compare", arguments))


def run(options: Compare) -> None:
    """Do what the options ask; raises InputError for what can't be used."""
    siamese = open_run(options.run)
    if takes_texts(siamese):
        if not (options.a.strip() and options.b.strip()):
            raise InputError(f"{'b' if options.a.strip() else 'a'}: the sentence is empty")
    else:
        _check_image(options.a, "a")
        _check_image(options.b, "b")
    embeddings = embed_inputs(siamese, [options.a, options.b])
    (found,) = siamese.compare(embeddings[:1], embeddings[1:])
    facts: dict[str, Any] = {
        "distance": found.distance,
        "metric": siamese.distance,
        "similarity": found.similarity,
        "same": found.same,
        "threshold": siamese.threshold,
        "far": siamese.far,
    }
    if options.json:
        print(json.dumps(facts))
        return
    print(f"distance    {found.distance:.6g} ({siamese.distance})")
    calibrated = "not known: the run has no calibrator"
    print(f"similarity  {calibrated if found.similarity is None else f'{found.similarity:.4f}'}")
    if found.same is None:
        print("same        not known: the run has no threshold")
        return
    chosen = "" if siamese.far is None else f", chosen for a FAR of {100 * siamese.far:g} %"
    print(f"same        {'yes' if found.same else 'no'}: threshold {siamese.threshold:.6g}{chosen}")


def _check_image(given: str, name: str) -> None:
    path = Path(given)
    if path.is_dir():
        raise InputError(f"{name}: {path} is a folder, an image file is expected")
    if not path.is_file():
        raise InputError(f"{name}: no such image: {path}")
