"""Images as examples: in memory, in .npy files, and in folders of files of any size and kind."""

from __future__ import annotations

import io
import pickle
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("PIL")
pytest.importorskip("safetensors")

from PIL import Image, ImageFile
from torch.utils.data import DataLoader

from siamcuda.train.augment import Augmentation, ImageViews, random_views, resize
from siamcuda.train.data import Decoder, ImageArray, ImageFiles, ImageFolder, load_arrays
from siamcuda.train.errors import InputError

KINDS = ("png", "jpg", "bmp", "gif", "ppm", "tiff", "webp")


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three people x two pictures, each of another size and kind."""
    for number in range(6):
        person = tmp_path / f"p{(1, 2, 10)[number // 2]}"
        person.mkdir(exist_ok=True)
        picture = Image.fromarray(noise(20 + number, 30 - number, seed=number))
        picture.save(person / f"{number}.{KINDS[number]}")
    return tmp_path


# --- in memory ------------------------------------------------------------------------------------


def test_subsets_of_an_array_keep_what_they_say() -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None].expand(5, 2, 3)
    data = ImageArray(images, torch.tensor([0, 1, 1, 2, 0]), ("a", "b", "c"))
    part = data.of(["c", "a"])
    assert part.images[:, 0, 0].tolist() == [3, 0, 4]
    assert part.labels.tolist() == [0, 1, 1]
    assert part.names == ("c", "a")
    rows = data.at(torch.tensor([4, 3]))
    assert (rows.labels.tolist(), rows.names) == ([0, 2], ("a", "b", "c"))
    assert data.load(torch.tensor([1])).shape == (1, 1, 2, 3)
    assert len(data.of([])) == 0
    with pytest.raises(InputError, match="no class is called 'd'"):
        data.of(["d"])
    named = ImageArray(images, data.labels, ("Anna", "Berta", "Cleo"))
    with pytest.raises(InputError, match="did you mean 'Berta'"):
        named.of(["berta"])


def test_colour_arrays_load_as_they_are() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    data = ImageArray(images, torch.zeros(4, dtype=torch.int64), ("a",))
    assert torch.equal(data.load(torch.tensor([2, 0])), images[[2, 0]])


def test_a_digest_tells_pixels_labels_names_and_shapes_apart() -> None:
    images = torch.randint(0, 256, (4, 6, 6), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 1])
    data = ImageArray(images, labels, ("a", "b"))
    other = images.clone()
    other[3, 5, 5] ^= 1
    digests = [
        data.digest(),
        ImageArray(other, labels, ("a", "b")).digest(),
        ImageArray(images, labels.flip(0), ("a", "b")).digest(),
        ImageArray(images, labels, ("a", "c")).digest(),
        ImageArray(images.reshape(4, 4, 9), labels, ("a", "b")).digest(),
        data.at(torch.arange(3)).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert pickle.loads(pickle.dumps(data)).digest() == data.digest()
    turned = ImageArray(images.mT.contiguous().mT, labels, ("a", "b"))
    assert turned.digest() == data.digest()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 3), torch.zeros(2, dtype=torch.int64), "uint8 is expected"),
        (torch.zeros(2, 9, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "uint8 is exp"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2), r"\(2,\) int64 is expected"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.tensor([0]), r"\(2,\) int64 is expected"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.tensor([0, 1]), "positions in 1 names"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.tensor([0, -1]), "positions in 1 names"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    images: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ImageArray(images, labels, ("a",))


# --- .npy -----------------------------------------------------------------------------------------


def test_npy_files_are_read_in_every_layout(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    colour = noise(5, 6 * 7, 3).reshape(5, 6, 7, 3)
    np.save(path, colour)
    last = load_arrays(path, [3, 10, 3, 3, 2])
    assert last.images.shape == (5, 3, 6, 7)
    assert last.names == ("2", "3", "10")
    assert last.labels.tolist() == [1, 2, 1, 1, 0]
    assert load_arrays(path, torch.tensor([3, 10, 3, 3, 2])).digest() == last.digest()
    np.save(path, colour.transpose(0, 3, 1, 2))  # in Fortran order, as NumPy writes it
    assert torch.equal(load_arrays(path, [0] * 5).images, last.images)
    np.save(path, colour[..., 0])
    np.save(tmp_path / "labels.npy", np.array(["x", "y", "x", "y", "x"]))
    grey = load_arrays(path, tmp_path / "labels.npy")
    assert torch.equal(grey.images, last.images[:, 0])
    assert grey.names == ("x", "y")
    (tmp_path / "labels.txt").write_text("1\n0\n1\n0\n0\n")
    named = load_arrays(path, tmp_path / "labels.txt", names=["no", "yes"])
    assert (named.labels.tolist(), named.names) == ([1, 0, 1, 0, 0], ("no", "yes"))


def test_npy_files_that_cannot_be_images_are_named(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    for array, message in (
        (np.zeros((2, 3, 3)), "uint8"),
        (np.zeros((2, 9), np.uint8), "uint8"),
        (np.zeros((2, 5, 5, 5), np.uint8), "no axis"),
        (np.array([{}], object), r"cannot read the images .*images\.npy"),
    ):
        np.save(path, array)
        with pytest.raises(InputError, match=message):
            load_arrays(path, [0, 0])
    np.save(path, np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(InputError, match="3 labels for 2 images"):
        load_arrays(path, [0, 0, 0])
    with pytest.raises(InputError, match="labels are positions"):
        load_arrays(path, ["a", "b"], names=["a", "b"])
    with pytest.raises(InputError, match="positions in 1 names"):
        load_arrays(path, [0, 1], names=["a"])
    with pytest.raises(InputError, match=r"absent\.npy"):
        load_arrays(tmp_path / "absent.npy", [])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"cannot read the images .*images\.npy"):
        load_arrays(path, [0, 0])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_broken_npy_header_gives_an_error_or_the_same_count(scratch: Path, data: Any) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 3, 3), np.uint8))
    content = bytearray(buffer.getvalue())
    content[data.draw(st.integers(0, 140))] = data.draw(st.integers(0, 255))
    path = scratch / "broken.npy"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = load_arrays(path, [0, 0])
        except InputError as error:
            assert "broken.npy" in str(error)  # noqa: PT017  it may also work
        else:
            assert len(found) == 2


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_is_listed_in_natural_order_and_decoded_lazily(folder: Path) -> None:
    (folder / ".hidden").mkdir()
    (folder / "p2" / ".cache.png").write_bytes(b"no image")
    (folder / "p2" / "notes.txt").write_text("no image")
    data = ImageFolder(folder, (24, 16), channels=3)
    assert data.names == ("p1", "p2", "p10")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [path.name[0] for path in data.paths] == list("012345")
    images = data.load(torch.tensor([5, 0, 0]))
    assert (images.shape, images.dtype) == ((3, 3, 24, 16), torch.uint8)
    assert torch.equal(images[1], images[2])
    assert data.load(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 24, 16)
    assert torch.equal(data.in_memory().images[[5, 0, 0]], images)
    part = data.of(["p10", "p1"])
    assert [path.name[0] for path in part.paths] == list("4501")
    assert part.labels.tolist() == [0, 0, 1, 1]
    assert data.at(torch.tensor([3])).labels.tolist() == [1]


def test_workers_decode_the_same_bits(folder: Path) -> None:
    data = ImageFolder(folder, (20, 20))
    copy = pickle.loads(pickle.dumps(data))
    assert copy.digest() == data.digest()

    class Rows(torch.utils.data.Dataset[torch.Tensor]):
        def __getitem__(self, index: int) -> torch.Tensor:
            return copy.load(torch.tensor([index, 5 - index]))

        def __len__(self) -> int:
            return 6

    batches = list(DataLoader(Rows(), batch_size=None, num_workers=2))
    for index, batch in enumerate(batches):
        assert torch.equal(batch, data.load(torch.tensor([index, 5 - index])))
    data.paths[3].write_bytes(b"")
    with pytest.raises(InputError, match=r"3\.gif: the file is empty"):
        list(DataLoader(Rows(), batch_size=None, num_workers=1))


def test_a_folder_digest_follows_content_and_settings(folder: Path) -> None:
    digests = {
        ImageFolder(folder, (20, 20)).digest(),
        ImageFolder(folder, (20, 21)).digest(),
        ImageFolder(folder, (20, 20), channels=3).digest(),
        ImageFolder(folder, (20, 20), fit="crop").digest(),
        ImageFolder(folder, (20, 20)).of(["p1", "p2"]).digest(),
    }
    assert len(digests) == 5
    assert ImageFolder(folder, (20, 20)).digest() in digests
    bitmap = folder / "p2" / "2.bmp"
    content = bytearray(bitmap.read_bytes())
    content[-1] ^= 1
    bitmap.write_bytes(content)
    assert ImageFolder(folder, (20, 20)).digest() not in digests


def test_folders_that_cannot_work_are_named_at_once(tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(InputError) as caught:
            ImageFolder(tmp_path / "data", (8, 8))
        return str(caught.value)

    assert "no such folder" in message()
    (tmp_path / "data").write_text("")
    assert "no such folder" in message()
    (tmp_path / "data").unlink()
    (tmp_path / "data" / "a").mkdir(parents=True)
    assert "a holds no image" in message()
    Image.new("L", (3, 3)).save(tmp_path / "data" / "a" / "1.PNG")
    assert "has the identity a alone" in message()
    (tmp_path / "data" / "b").mkdir()
    assert "b holds no image" in message()
    (tmp_path / "flat").mkdir()
    with pytest.raises(InputError, match="flat has no sub-folders"):
        ImageFolder(tmp_path / "flat", (8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 4)}, "size: "),
        ({"size": (4,)}, "size: "),
        ({"channels": 2}, "channels: 1"),
        ({"fit": "squash"}, "fit: 'squash' is none of pad, crop, stretch"),
    ],
)
def test_settings_of_a_decoder_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Decoder(**options)
    with pytest.raises(InputError, match=r"size: .* is needed"):
        ImageFiles((), torch.zeros(0, dtype=torch.int64), (), Decoder())


def test_a_file_that_went_away_or_broke_is_named(folder: Path) -> None:
    data = ImageFolder(folder, (20, 20))
    victim = folder / "p2" / "3.gif"
    for content, reason in (
        (b"", "the file is empty"),
        (b"text", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "not an image"),
        (None, "No such file"),
    ):
        if content is None:
            victim.unlink()
        else:
            victim.write_bytes(content)
        with pytest.raises(InputError, match=rf"cannot read the image .*3\.gif: {reason}"):
            data.load(torch.tensor([0, 3]))
    with pytest.raises(InputError, match=r"3\.gif: No such file"):
        data.digest()


# --- decoding -------------------------------------------------------------------------------------


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_an_image_of_the_size_keeps_its_bits(tmp_path: Path) -> None:
    grey, colour = noise(9, 7, 1), noise(9, 7, 3)
    one = save(Image.fromarray(grey), tmp_path / "grey.png")
    three = save(Image.fromarray(colour), tmp_path / "colour.png")
    for fit in ("pad", "crop", "stretch"):
        assert np.array_equal(Decoder((9, 7), 1, fit).read(one)[0], grey)
        assert np.array_equal(Decoder((9, 7), 3, fit).read(three), colour.transpose(2, 0, 1))
    assert np.array_equal(Decoder().read(one)[0], grey)
    rgb = Decoder(channels=3).read(one)
    assert all(np.array_equal(plane, grey) for plane in rgb)


def test_fits_pad_crop_and_stretch(tmp_path: Path) -> None:
    """A wide image: dark left half, bright right half."""
    picture = np.full((10, 40), 40, np.uint8)
    picture[:, 20:] = 200
    path = save(Image.fromarray(picture), tmp_path / "wide.png")
    pad = Decoder((20, 20), 1, "pad").read(path)[0]
    assert {int(value) for value in pad[[0, 19]].flatten()} == {120}  # bars of the border's mean
    assert (int(pad[10, 1]), int(pad[10, 18])) == (40, 200)
    crop = Decoder((10, 10), 1, "crop").read(path)[0]
    assert torch.equal(crop, torch.from_numpy(picture[:, 15:25].copy()))
    stretch = Decoder((10, 10), 1, "stretch").read(path)[0]
    assert (int(stretch[0, 1]), int(stretch[9, 8])) == (40, 200)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_extreme_shapes_come_to_the_size(tmp_path: Path, fit: Any) -> None:
    for number, (height, width) in enumerate([(1, 400), (400, 1), (1, 1), (3, 2)]):
        path = save(Image.fromarray(noise(height, width, 1)), tmp_path / f"{number}.png")
        assert Decoder((5, 7), 3, fit).read(path).shape == (3, 5, 7)


def test_orientation_is_honoured(tmp_path: Path) -> None:
    picture = np.zeros((8, 16), np.uint8)
    picture[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: left becomes top
    path = save(Image.fromarray(picture), tmp_path / "turned.png", exif=exif)
    upright = Decoder().read(path)[0]
    assert upright.shape == (16, 8)
    assert int(upright[:8].min()) == 255
    assert int(upright[8:].max()) == 0


def test_sixteen_bits_palettes_alpha_and_ink(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    for name in ("deep.png", "deep.tiff", "deep.pgm"):
        image = Image.fromarray(deep) if name != "deep.pgm" else Image.fromarray(deep.astype("i4"))
        path = save(image, tmp_path / name)
        assert Decoder().read(path).flatten().tolist() == [0, 1, 128, 255]
        assert Decoder(channels=3).read(path)[2].flatten().tolist() == [0, 1, 128, 255]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    path = save(palette, tmp_path / "palette.png")
    assert Decoder(channels=3).read(path)[:, 0].T.tolist() == [[255, 0, 0], [0, 0, 255]]
    path = save(palette, tmp_path / "clear.png", transparency=0)
    assert Decoder(channels=3).read(path)[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 255]]
    ink = np.zeros((1, 3, 4), np.uint8)
    ink[0, :, 3] = [0, 128, 255]
    path = save(Image.fromarray(ink, "RGBA"), tmp_path / "ink.png")
    assert Decoder().read(path).flatten().tolist() == [255, 127, 0]  # black ink on white
    path = save(Image.new("LA", (2, 2), (0, 0)), tmp_path / "la.png")
    assert int(Decoder().read(path).min()) == 255
    path = save(Image.new("1", (3, 3), 1), tmp_path / "bit.png")
    assert int(Decoder().read(path).min()) == 255
    path = save(Image.new("CMYK", (3, 3), (0, 0, 0, 0)), tmp_path / "ink.jpg")
    assert int(Decoder().read(path).min()) >= 254


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    for number, array in enumerate([np.ones((2, 2), "f4"), np.full((2, 2), 70000, "i4")]):
        path = save(Image.fromarray(array), tmp_path / f"{number}.tiff")
        with pytest.raises(InputError, match=rf"{number}\.tiff: pixels of 32 bits"):
            Decoder().read(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # whatever the program set elsewhere
    bomb = tmp_path / "bomb.png"
    header = io.BytesIO()
    Image.new("1", (1, 1)).save(header, "png")
    content = bytearray(header.getvalue())
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    bomb.write_bytes(content)
    with pytest.raises(InputError, match=r"bomb\.png: 30000x30000 pixels are more than"):
        Decoder().read(bomb)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), kind=st.sampled_from(KINDS))
@pytest.mark.filterwarnings("ignore")
def test_a_broken_image_is_named_or_decoded_never_worse(
    scratch: Path, data: Any, kind: str
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(12, 10)).save(buffer, {"jpg": "jpeg"}.get(kind, kind))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    path = scratch / f"broken.{kind}"
    path.write_bytes(content[:length])
    try:
        image = Decoder((8, 8), 3).read(path)
    except InputError as error:
        assert f"broken.{kind}" in str(error)  # noqa: PT017  it may also work
    else:
        assert image.shape == (3, 8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_in_the_middle_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"cut.{kind}"
    Image.fromarray(noise(40, 40)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(InputError, match=rf"cannot read the image .*cut\.{kind}"):
        Decoder((20, 20)).read(path)


# --- views ----------------------------------------------------------------------------------------


def test_views_of_grey_images_keep_their_bits_with_a_channel() -> None:
    """What (N, H, W) gives, (N, 1, H, W) and an ImageViews give too."""
    images = torch.randint(0, 256, (5, 56, 46), dtype=torch.uint8)
    seeds = [torch.Generator().manual_seed(3) for _ in range(3)]
    views = ImageViews((28, 23))
    expected = random_views(images, (28, 23), Augmentation(), seeds[0])
    assert torch.equal(random_views(images[:, None], (28, 23), Augmentation(), seeds[1]), expected)
    assert torch.equal(pickle.loads(pickle.dumps(views))(images, seeds[2]), expected)
    assert torch.equal(views(images[:, None], None), resize(images, (28, 23)))


def test_views_of_colour_keep_grey_grey() -> None:
    images = torch.randint(0, 256, (4, 1, 20, 20), dtype=torch.uint8)
    still = Augmentation(noise=0, erase=0)
    both = [
        random_views(batch, (16, 16), still, torch.Generator().manual_seed(1))
        for batch in (images, images.expand(4, 3, 20, 20))
    ]
    torch.testing.assert_close(both[1], both[0].expand(4, 3, 16, 16))
    noisy = random_views(
        images.expand(4, 3, 20, 20), (16, 16), Augmentation(), torch.Generator().manual_seed(1)
    )
    assert not torch.equal(noisy[:, 0], noisy[:, 1])


def test_each_image_of_a_pair_gets_a_view_of_its_own() -> None:
    image = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    pairs = image.expand(2, 2, 3, 20, 20)
    views = ImageViews((10, 12))
    drawn = views(pairs, torch.Generator())
    assert drawn.shape == (2, 2, 3, 10, 12)
    assert len({view.numpy().tobytes() for view in drawn.flatten(0, 1)}) == 4
    plain = views(pairs, None)
    assert torch.equal(plain[0, 0], plain[1, 1])
    assert 0 <= float(plain.min()) <= float(plain.max()) <= 1
    for wrong in (torch.zeros(2, 3, 3), torch.zeros(3, 3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"uint8 \(B, H, W\)"):
            views(wrong, None)
