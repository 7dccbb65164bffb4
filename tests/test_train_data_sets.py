"""Omniglot, signatures, printed letters, photographs: on small files, and real where installed."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("safetensors")

from PIL import Image

from siamcuda.train.data import (
    PHOTOGRAPHS,
    Warp,
    draw_letters,
    find_fonts,
    find_letters,
    load_omniglot,
    load_photographs,
    load_signatures,
    load_stereo,
    load_textures,
    photographs,
)
from siamcuda.train.errors import InputError


def draw(path: Path, grey: int = 0, size: tuple[int, int] = (9, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).save(path)


# --- Omniglot -------------------------------------------------------------------------------------


def test_characters_of_omniglot_are_classes(tmp_path: Path) -> None:
    for alphabet, characters in (("Latin", 2), ("Greek", 1)):
        for character in range(1, characters + 1):
            for drawer in (1, 2, 10):
                name = f"{alphabet}/character{character:02d}/0{character}_{drawer}.png"
                path = tmp_path / "images_background" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("1", (105, 105), 1).save(path)
    data = load_omniglot(tmp_path, size=(28, 28))
    assert data.names == ("Greek/character01", "Latin/character01", "Latin/character02")
    assert data.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert [path.stem for path in data.paths[:3]] == ["01_1", "01_2", "01_10"]
    images = data.load(torch.arange(9))
    assert images.shape == (9, 1, 28, 28)
    assert int(images.min()) == 255
    with pytest.raises(InputError, match=r"images_evaluation \(unpack images_evaluation\.zip"):
        load_omniglot(tmp_path, "evaluation")
    with pytest.raises(InputError, match="part: 'test' is neither"):
        load_omniglot(tmp_path, "test")  # type: ignore[arg-type]
    (tmp_path / "images_background" / "Thai").mkdir()
    with pytest.raises(InputError, match="Thai has no sub-folders; one sub-folder a character"):
        load_omniglot(tmp_path)


# --- signatures -----------------------------------------------------------------------------------


def cedar(folder: Path) -> None:
    for writer in (1, 2, 10):
        for number in (1, 2, 3):
            draw(folder / "full_org" / f"original_{writer}_{number}.png", writer)
        for number in (1, 2):
            draw(folder / "full_forg" / f"forgeries_{writer}_{number}.png", 100 + writer)
    (folder / "full_org" / "Thumbs.db").write_text("")


def tree(folder: Path) -> None:
    for writer in (1, 2, 10):
        for number in (1, 2, 3):
            draw(folder / str(writer) / "genuine" / f"{number}.png", writer)
        for number in (1, 2):
            draw(folder / str(writer) / "Forged" / f"{number}.png", 100 + writer)


@pytest.mark.parametrize("lay", [cedar, tree])
def test_signatures_are_read_in_both_layouts(tmp_path: Path, lay: object) -> None:
    assert callable(lay)
    lay(tmp_path)
    data = load_signatures(tmp_path, (7, 9))
    assert data.writers == ("1", "2", "10")
    assert data.names == ("1", "1 (forged)", "2", "2 (forged)", "10", "10 (forged)")
    assert len(data) == 15
    assert torch.equal(data.load(torch.arange(15))[:, 0, 0, 0] >= 100, data.forged)
    assert data.genuine().names == data.writers
    assert len(data.genuine()) == 9
    pairs = data.pairs()
    assert len(pairs.left) == 3 * (3 + 3 * 2)
    assert int(pairs.labels.sum()) == 3 * 3 * 2
    assert not bool(data.forged[pairs.left].any())
    assert torch.equal(data.forged[pairs.right], pairs.labels == 1)
    values = data.load(torch.arange(15))[:, 0, 0, 0].int() % 100
    assert torch.equal(values[pairs.left], values[pairs.right])  # of one writer
    part = data.by(["10", "1"])
    assert part.names == ("10", "10 (forged)", "1", "1 (forged)")
    assert part.writers == ("1", "10")
    assert len(part.pairs().left) == 2 * 9
    assert pickle.loads(pickle.dumps(part)).digest() == part.digest()
    with pytest.raises(InputError, match="no writer is called '3'"):
        data.by(["3"])


def test_signatures_that_do_not_tell_their_writer_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_signatures(tmp_path / "absent", (7, 9))
    cedar(tmp_path / "a")
    draw(tmp_path / "a" / "full_org" / "scan.png")
    with pytest.raises(InputError, match=r"scan\.png: original_WRITER_NUMBER"):
        load_signatures(tmp_path / "a", (7, 9))
    tree(tmp_path / "b")
    draw(tmp_path / "b" / "2" / "odd" / "1.png")
    with pytest.raises(InputError, match="odd: a writer's sub-folders are called genuine and"):
        load_signatures(tmp_path / "b", (7, 9))
    draw(tmp_path / "c" / "1" / "forged" / "1.png")
    with pytest.raises(InputError, match="no signature is genuine"):
        load_signatures(tmp_path / "c", (7, 9)).pairs()


# --- letters --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fonts() -> tuple[Path, ...]:
    pytest.importorskip("matplotlib")
    pytest.importorskip("fontTools")
    return find_fonts()


def test_letters_follow_their_seed(fonts: tuple[Path, ...]) -> None:
    letters = ["A", "ж", "λ"]
    one = draw_letters(letters, size=24, seed=1)
    assert one.images.shape == (3 * len(fonts), 24, 24)
    assert one.names == ("A", "ж", "λ")
    assert one.labels.tolist() == [label for label in range(3) for _ in fonts]
    assert one.digest() == draw_letters(letters, size=24, seed=1).digest()
    assert one.digest() != draw_letters(letters, size=24, seed=2).digest()
    assert len({image.numpy().tobytes() for image in one.images}) == len(one)
    ink = one.images.flatten(1).float().mean(1) / 255
    assert 0.03 < float(ink.min()) <= float(ink.max()) < 0.5
    twice = draw_letters(letters, fonts[:2], size=24, views=3)
    assert twice.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6


def test_a_letter_that_is_not_warped_is_as_drawn(fonts: tuple[Path, ...]) -> None:
    still = Warp(rotate=0, scale=0, shear=0, shift=0, bend=0)
    data = draw_letters(["l"], fonts[:1], size=32, views=2, warp=still)
    assert torch.equal(data.images[0], data.images[1])
    rows, columns = torch.nonzero(data.images[0] > 128, as_tuple=True)
    assert abs(int(rows.min()) + int(rows.max()) - 31) <= 2  # in the middle
    assert abs(int(columns.min()) + int(columns.max()) - 31) <= 2
    assert int(rows.max() - rows.min()) > 3 * int(columns.max() - columns.min())


def test_letters_that_look_the_same_are_one_class(fonts: tuple[Path, ...]) -> None:
    letters = find_letters(fonts)
    assert len(letters) > 1000
    assert {"A", "B", "Ж", "Ω"} <= set(letters)
    assert not {"Α", "А"} & set(letters)  # noqa: RUF001  Greek and Cyrillic
    assert list(letters) == sorted(letters)


def test_letters_that_cannot_be_drawn_are_named(tmp_path: Path, fonts: tuple[Path, ...]) -> None:
    with pytest.raises(InputError, match=r"no font has '漢' \(U\+6F22\)"):
        draw_letters(["漢"], fonts)
    with pytest.raises(InputError, match="each once"):
        draw_letters(["a", "a"], fonts)
    with pytest.raises(InputError, match="each once"):
        draw_letters(["ab"], fonts)
    with pytest.raises(InputError, match=r"size \(>= 8\)"):
        draw_letters(["a"], fonts, size=2)
    with pytest.raises(InputError, match="bend: must be finite"):
        Warp(bend=float("nan"))
    broken = tmp_path / "broken.ttf"
    for content in (b"", b"no font", fonts[0].read_bytes()[:1000]):
        broken.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read the font .*broken\.ttf"):
            draw_letters(["a"], [broken])


# --- photographs ----------------------------------------------------------------------------------


def test_pictures_are_whole_where_they_are_installed() -> None:
    if importlib.util.find_spec("skimage") is None:
        with pytest.raises(InputError, match="not installed: pip install --no-deps scikit-image"):
            load_textures()
        pytest.skip("scikit-image is not installed")
    before = set(sys.modules)
    pictures = load_photographs()
    assert len(pictures) == len(PHOTOGRAPHS)
    assert all(p.ndim == 3 and len(p) == 3 and min(p.shape[1:]) >= 300 for p in pictures.values())
    assert all(texture.shape == (1, 512, 512) for texture in load_textures().values())
    left, right, disparity = load_stereo()
    assert not {name for name in set(sys.modules) - before if name.startswith("skimage")}
    assert left.shape == right.shape == (3, *disparity.shape)
    known = ~disparity.isnan()
    assert float(known.float().mean()) > 0.9
    rows, columns = torch.nonzero(known, as_tuple=True)

    def mismatch(sign: int) -> float:
        others = columns + sign * disparity[rows, columns].round().long()
        there = (others >= 0) & (others < left.shape[2])
        here = left[:, rows[there], columns[there]].float()
        return float((here - right[:, rows[there], others[there]].float()).abs().mean())

    assert mismatch(-1) < 10 < 40 < mismatch(1)  # the direction that the docstring gives


def test_a_broken_disparity_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "_find", lambda name: tmp_path / name)
    for side in ("left", "right"):
        draw(tmp_path / f"motorcycle_{side}.png", 9)
    path = tmp_path / "motorcycle_disp.npz"
    np.savez(path, np.where(np.eye(7, 9) > 0, np.inf, 2.5))
    stereo = load_stereo()
    assert (stereo.left.shape, stereo.disparity.dtype) == ((3, 7, 9), torch.float32)
    assert int(stereo.disparity.isnan().sum()) == 7
    for broken in (b"", b"text", path.read_bytes()[:200]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"cannot read .*motorcycle_disp\.npz"):
            load_stereo()
    np.savez(path, np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"its shape \(2, 2\) isn't that of the pictures"):
        load_stereo()
    np.savez(path, np.array([{}], object))
    with pytest.raises(InputError, match=r"cannot read .*motorcycle_disp\.npz"):
        load_stereo()
