"""A trained run and what it is asked about: found, checked and embedded, or refused in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from siamcuda._commands.inputs import read_lines, refusing
from siamcuda.gallery import Progress
from siamcuda.train import recipes
from siamcuda.train.errors import InputError

if TYPE_CHECKING:
    from siamcuda.train.siamese import Siamese

__all__ = [
    "embed_inputs",
    "gallery_metric",
    "is_run",
    "list_images",
    "list_inputs",
    "open_run",
    "progress_bar",
    "takes_texts",
]


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run folder, trained or not, rather than a folder of images."""
    return recipes.is_run(path) or (path / "checkpoint.safetensors").is_file()


def open_run(folder: Path, device: str = "cpu") -> Siamese:
    """Load a trained system to a device; InputError names what is missing or broken."""
    try:
        from siamcuda.train.encoders import ENCODERS
        from siamcuda.train.placement import find_device
        from siamcuda.train.siamese import CHECKPOINT, Siamese
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("siamcuda"):
            raise
        raise InputError(
            f"run: a run folder needs {error.name}: pip install 'siamcuda[train]'"
        ) from error
    trained = [part for part in recipes.parts(folder) if (part / CHECKPOINT).is_file()]
    if trained and not (folder / CHECKPOINT).exists():
        raise InputError(f"run: {folder} has {len(trained)} trained parts: give one ({trained[0]})")
    place = find_device(device)
    siamese = Siamese.load(folder)
    entry = ENCODERS.get(siamese.spec.encoder.name)
    if entry is not None and entry.takes == "pairs":
        raise InputError(f"run: the encoder of {folder} scores pairs and has no embeddings")
    return siamese.to(place)


def takes_texts(siamese: Siamese) -> bool:
    """Whether the encoder takes sentences, not images."""
    from siamcuda.train.encoders import Tokenizer

    return isinstance(siamese.spec.inputs, Tokenizer)


def gallery_metric(siamese: Siamese) -> str:
    """The metric of an exact search by the run's distance."""
    if siamese.distance == "l1":
        raise InputError(
            "run: it compares by L1 distance, which exact search does not have; train with an "
            "L2 or cosine distance to search"
        )
    return siamese.distance


def list_images(places: Sequence[Path], name: str) -> list[Path]:
    """Image files: those given, those of folders with their sub-folders, and the lines of lists.

    A folder gives its files sorted, hidden ones passed over. A file that has no ending of an image
    is a list, with a path relative to it a line.
    """
    from siamcuda.train.data.pictures import IMAGE_TYPES

    found: list[Path] = []
    for place in places:
        if place.is_dir():
            images = sorted(
                path
                for path in place.rglob("*")
                if path.suffix.lower() in IMAGE_TYPES
                and not any(part.startswith(".") for part in path.relative_to(place).parts)
            )
            if not images:
                raise InputError(f"{name}: {place} holds no image ({', '.join(IMAGE_TYPES)})")
            found += images
        elif place.suffix.lower() in IMAGE_TYPES:
            found.append(place)
        else:
            with refusing(f"{name}: "):
                found += [place.parent / line for line in read_lines(place)]
    absent = next((path for path in found if not path.is_file()), None)
    if absent is not None:
        raise InputError(f"{name}: no such image: {absent}")
    if not found:
        raise InputError(f"{name}: there is nothing to embed")
    return found


def list_inputs(siamese: Siamese, places: Sequence[Path], name: str) -> list[str]:
    """What the run takes: paths of images, or the lines of text files."""
    if not takes_texts(siamese):
        return [os.fspath(path) for path in list_images(places, name)]
    with refusing(f"{name}: "):
        texts = [line for place in places for line in read_lines(place)]
    if not texts:
        raise InputError(f"{name}: there is nothing to embed")
    return texts


def embed_inputs(siamese: Siamese, inputs: Sequence[str], batch: int = 256) -> Tensor:
    """Embed what :func:`list_inputs` gave, with a bar on a terminal: (N, D)."""
    if batch < 1:
        raise InputError(f"batch: must be at least 1, got {batch}")
    texts = takes_texts(siamese)
    with progress_bar(len(inputs), "embedding", "text" if texts else "image") as progress:
        if not texts:
            paths = [Path(name) for name in inputs]
            return siamese.embed_images(paths, batch=batch, progress=progress)
        parts = []
        for first in range(0, len(inputs), batch):
            parts.append(siamese.embed_texts(inputs[first : first + batch], batch=batch))
            progress(min(first + batch, len(inputs)), len(inputs))
    return torch.cat(parts)


@contextmanager
def progress_bar(total: int, what: str, unit: str) -> Iterator[Progress]:
    """A bar on a terminal, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda done, of: None
        return
    with tqdm(
        total=total, desc=what, unit=unit, unit_scale=True, disable=None, file=sys.stderr
    ) as bar:

        def step(done: int, _: int) -> None:
            bar.update(done - bar.n)

        yield step
