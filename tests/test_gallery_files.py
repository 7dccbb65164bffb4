"""Galleries in files: streamed with bounded memory, saved whole or not at all, never unpickled."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch

import siamcuda
from siamcuda import Gallery, _stores


def random_rows(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 100 rows or so, so that small files have many."""
    monkeypatch.setattr(_stores, "_PART_BYTES", 100 * 17 * 4)
    monkeypatch.setattr(_stores, "MANY_QUERIES", 20)


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize("count", [3, 40])
def test_a_streamed_gallery_answers_like_one_in_memory(tmp_path, small_parts, dtype, metric, count):
    rows, queries = random_rows(1, 1234, 17).to(dtype), random_rows(2, count, 17).to(dtype)
    rows[700] = rows[3]
    np.save(tmp_path / "rows.npy", rows.numpy())
    expected = Gallery(rows, metric=metric)
    gallery = Gallery(tmp_path / "rows.npy", metric=metric)
    assert len(gallery) == 1234
    assert gallery.nonfinite is None
    seen = []
    found = gallery.search(queries, 30, progress=lambda *done: seen.append(done))
    same(found, expected.search(queries, 30))
    assert gallery.nonfinite == 0
    assert seen[-1] == (1234, 1234)
    assert len(seen) > 5
    radius = float(found.distances[0, 20])
    same(gallery.range_search(queries, radius), expected.range_search(queries, radius))


def test_hamming_streams(tmp_path, small_parts):
    bits = siamcuda.pack_bits(random_rows(3, 9000, 100))
    np.save(tmp_path / "bits.npy", bits.numpy())
    gallery = Gallery(str(tmp_path / "bits.npy"), metric="hamming")
    expected = Gallery(bits, metric="hamming")
    same(gallery.search(bits[:5], 9), expected.search(bits[:5], 9))
    same(gallery.range_search(bits[:5], 30), expected.range_search(bits[:5], 30))


def test_raw_memory_maps_stream(tmp_path, small_parts):
    rows = random_rows(4, 800, 17).numpy()
    path = tmp_path / "raw.bin"
    path.write_bytes(b"header!!" + rows.tobytes())
    whole = np.memmap(path, dtype=np.float32, mode="r", offset=8, shape=(800, 17))
    expected = Gallery(rows).search(rows[:4], 5)
    for source, first in ((whole, 0), (whole[100:], 100)):
        gallery = Gallery(source)
        assert "streamed from" in repr(gallery)
        found = gallery.search(rows[:4] if not first else rows[100:104], 5)
        if not first:
            assert (found.ids == expected.ids).all()
        else:
            assert found.ids[:, 0].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="C-contiguous"):
        Gallery(whole[:, :5])
    # A private copy may hold what its file does not: it is searched in memory.
    private = np.memmap(path, dtype=np.float32, mode="c", offset=8, shape=(800, 17))
    private[0] = 5
    assert Gallery(private).search(np.full((1, 17), 5, np.float32), 1).distances == 0


def test_memory_is_bounded(tmp_path, small_parts, monkeypatch):
    """What a search holds of a file at a time: two parts."""
    rows = random_rows(5, 5000, 17)
    np.save(tmp_path / "rows.npy", rows.numpy())
    sizes = []
    plain = torch.empty

    def counted(*args, **options):
        made = plain(*args, **options)
        sizes.append(made.numel() * made.element_size())
        return made

    monkeypatch.setattr(torch, "empty", counted)
    Gallery(tmp_path / "rows.npy").search(rows[:2], 3)
    assert sizes
    assert sum(sizes) <= 2 * _stores._PART_BYTES


def test_interrupting_a_search_leaves_the_gallery_as_it_was(tmp_path, small_parts):
    rows = random_rows(6, 2000, 17)
    np.save(tmp_path / "rows.npy", rows.numpy())
    gallery = Gallery(tmp_path / "rows.npy")

    def stop(done, total):
        if done > 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gallery.search(rows[:3], 2, progress=stop)
    assert gallery.search(rows[:3], 1).ids[:, 0].tolist() == [0, 1, 2]


# --- files that are not as they should be ---------------------------------------------------------


def write(path, rows):
    np.save(path, rows)
    return path


def test_bad_files(tmp_path):
    rows = random_rows(7, 50, 8).numpy()
    good = write(tmp_path / "good.npy", rows)
    cut = tmp_path / "cut.npy"
    cut.write_bytes(good.read_bytes()[:-5])
    noise = tmp_path / "noise.npy"
    noise.write_bytes(b"not an array at all")
    empty = tmp_path / "empty.npy"
    empty.write_bytes(b"")
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([[object()]]), allow_pickle=True)
    cases = [
        (cut, ValueError, "cut.npy: truncated: 50 rows of 8 torch.float32 need"),
        (noise, ValueError, "noise.npy: not a .npy file"),
        (empty, ValueError, "empty.npy: not a .npy file"),
        (objects, TypeError, "never unpickled"),
        (write(tmp_path / "f.npy", np.asfortranarray(rows)), ValueError, "Fortran order"),
        (write(tmp_path / "i.npy", rows.astype(np.int32)), TypeError, "i.npy: float16"),
        (write(tmp_path / "b.npy", rows.astype(">f4")), TypeError, "little-endian"),
        (write(tmp_path / "u.npy", rows.astype(np.uint8)), TypeError, "vectors: float16"),
        (write(tmp_path / "one.npy", rows[0]), ValueError, "a matrix is expected"),
    ]
    for path, error, message in cases:
        with pytest.raises(error, match=message):
            Gallery(path)
    with pytest.raises(FileNotFoundError):
        Gallery(tmp_path / "nowhere.npy")


def test_a_file_that_shrinks_while_it_is_searched(tmp_path, small_parts):
    rows = random_rows(8, 3000, 17)
    path = write(tmp_path / "rows.npy", rows.numpy())
    gallery = Gallery(path)

    def shrink(done, total):
        if 300 < done < 600:
            with path.open("r+b") as file:
                file.truncate(100_000)

    with pytest.raises(ValueError, match=r"became shorter while it was read: row \d+ of 3000"):
        gallery.search(rows[:3], 2, progress=shrink)
    with pytest.raises(ValueError, match="truncated"):
        gallery.search(rows[:3], 2)
    write(path, rows.numpy())
    assert gallery.search(rows[:3], 1).ids[:, 0].tolist() == [0, 1, 2]


def test_nan_in_a_file_is_an_error_that_names_the_row(tmp_path, small_parts):
    rows = random_rows(9, 900, 17)
    rows[777, 3] = math.nan
    path = write(tmp_path / "rows.npy", rows.numpy())
    with pytest.raises(ValueError, match="row 777 holds NaN"):
        Gallery(path).search(rows[:1], 1)
    tolerant = Gallery(path, nonfinite="warn")
    expected = Gallery(rows, nonfinite="allow").search(rows[:2], 900)
    same([torch.nan_to_num(t) for t in tolerant.search(rows[:2], 900)],
         [torch.nan_to_num(t) for t in expected])  # fmt: skip
    assert tolerant.nonfinite == 1


def test_streamed_galleries_do_not_change(tmp_path):
    gallery = Gallery(write(tmp_path / "rows.npy", np.zeros((5, 3), np.float32)))
    for call in (
        lambda: gallery.add(torch.zeros(1, 3)),
        lambda: gallery.remove([0]),
    ):
        with pytest.raises(ValueError, match="streamed from a file can't be changed"):
            call()
    with pytest.raises(ValueError, match="is streamed from"):
        gallery.save(tmp_path / "copy.safetensors")


# --- saving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
def test_what_is_saved_comes_back(tmp_path, dtype, metric):
    rows, queries = random_rows(10, 200, 9).to(dtype), random_rows(11, 5, 9).to(dtype)
    gallery = Gallery(rows, ids=torch.arange(200) * 3, metric=metric)
    gallery.remove([9])
    path = tmp_path / "gallery.safetensors"
    gallery.save(path)
    expected = gallery.search(queries, 20)
    for stream in (False, True):
        loaded = Gallery.load(path, stream=stream)
        assert (loaded.metric, loaded.columns, len(loaded)) == (metric, 9, 199)
        same(loaded.search(queries, 20), expected)
    tensors = safetensors.torch.load_file(path)  # the format's own library agrees
    assert torch.equal(tensors["ids"], gallery.ids)
    assert tensors["vectors"].shape == (199, 9)


def test_what_the_library_writes_can_be_streamed(tmp_path):
    rows = random_rows(12, 60, 5).bfloat16()
    safetensors.torch.save_file({"vectors": rows}, tmp_path / "rows.safetensors")
    found = Gallery(tmp_path / "rows.safetensors").search(rows[:3], 2)
    same(found, Gallery(rows).search(rows[:3], 2))


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "gallery.safetensors"
    Gallery(torch.zeros(3, 2)).save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Gallery(torch.ones(9, 2)).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["gallery.safetensors"]


def test_bad_saved_galleries(tmp_path):
    path = tmp_path / "g.safetensors"
    Gallery(torch.zeros(30, 2), ids=range(30)).save(path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])

    def rewritten(change):
        new = json.loads(json.dumps(header))
        change(new)
        text = json.dumps(new).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    cases = [
        (data[:-1], "truncated"),
        (data[:4], "not a safetensors file"),
        ((2**60).to_bytes(8, "little") + data[8:], "not a safetensors file"),
        (b"\x10" + b"\0" * 7 + b"{" * 16, "not a safetensors file that can be read"),
        (rewritten(lambda h: h.pop("__metadata__")), "not a gallery"),
        (rewritten(lambda h: h["__metadata__"].update(metric="l7")), "unknown metric 'l7'"),
        (rewritten(lambda h: h["__metadata__"].update(count="31")), "the header says 31 x 2"),
        (rewritten(lambda h: h["vectors"].update(shape=[31, 2])), "not described as it must be"),
        (rewritten(lambda h: h["vectors"].update(dtype="C64")), "not described as it must be"),
        (rewritten(lambda h: h.pop("vectors")), "holds no tensor 'vectors'"),
        (rewritten(lambda h: h["ids"].update(dtype="F64")), "ids don't fit the vectors"),
    ]
    for content, message in cases:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Gallery.load(path)
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        Gallery(torch.zeros(1, 1)).save(tmp_path / "g.pt")
