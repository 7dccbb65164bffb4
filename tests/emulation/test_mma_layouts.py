"""The fragment layouts of csrc/cuda/mma_layout.h against those of CuTe.

The emulator's mma.sync is made from the same header as the kernels, so that a wrong layout would be
wrong on both sides and cancel. CuTe states each layout as a function from (lane, value) to an index
in the matrix, in headers that PyPI's nvidia-cutlass carries; they are read here as text.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import native
import pytest

Tree: TypeAlias = "int | tuple[Tree, ...]"
#: (lane, register, element of the register) -> (row, column)
Places: TypeAlias = dict[tuple[int, int, int], tuple[int, int]]

# --- CuTe's layouts -------------------------------------------------------------------------------


def parse(text: str) -> tuple[str, list[object]]:
    """``Name<a, b<c>>`` as ("Name", ["a", ("b", ["c"])])."""
    tokens = re.findall(r"[A-Za-z_]\w*|_\d+|[<>,]", text)

    def read() -> object:
        name = tokens.pop(0)
        if not tokens or tokens[0] != "<":
            return name
        arguments = []
        while tokens.pop(0) != ">":
            arguments.append(read())
            if tokens[0] == ">":
                tokens.pop(0)
                break
        return (name, arguments)

    found = read()
    assert isinstance(found, tuple), text
    return found


def tree(node: object) -> Tree:
    """Shape<_4, Shape<_2, _8>> as (4, (2, 8))."""
    if isinstance(node, str):
        return int(node.removeprefix("_"))
    assert isinstance(node, tuple), node
    return tuple(tree(child) for child in node[1])


def leaves(node: Tree) -> Iterator[int]:
    if isinstance(node, int):
        yield node
    else:
        for child in node:
            yield from leaves(child)


class Layout:
    """CuTe's Layout<Shape<threads, values>, Stride<...>>: an index runs leftmost first."""

    def __init__(self, text: str) -> None:
        name, (shape, stride) = parse(text)
        assert name == "Layout", text
        self.shape, self.stride = tree(shape), tree(stride)

    def __call__(self, *indices: int) -> int:
        assert isinstance(self.shape, tuple)
        assert isinstance(self.stride, tuple)
        total = 0
        for index, shape, stride in zip(indices, self.shape, self.stride, strict=True):
            for size, step in zip(leaves(shape), leaves(stride), strict=True):
                total += index % size * step
                index //= size
            assert index == 0
        return total


def test_layouts_are_read() -> None:
    layout = Layout(
        "Layout<Shape <Shape <_4,_8>,Shape <_2, _2>>, Stride<Stride<_16,_1>,Stride<_8,_64>>>"
    )
    assert layout.shape == ((4, 8), (2, 2))
    assert layout(0, 0) == 0
    assert layout(5, 3) == 16 + 1 + 8 + 64


@pytest.fixture(scope="module")
def headers() -> Path:
    found = importlib.util.find_spec("cutlass_library")
    folders = list(found.submodule_search_locations or []) if found else []
    for folder in folders:
        path = Path(folder) / "source" / "include" / "cute" / "atom"
        if path.is_dir():
            return path
    if os.environ.get("SIAMCUDA_CUDA") == "1":
        pytest.fail("SIAMCUDA_CUDA=1, but nvidia-cutlass is not installed", pytrace=False)
    pytest.skip("nvidia-cutlass is not installed")


def trait(header: Path, name: str, member: str) -> Layout:
    """A member of ``struct MMA_Traits<name>`` or ``Copy_Traits<name>``, its bases followed."""
    text = re.sub(r"//.*", "", header.read_text())
    match = re.search(
        rf"struct \w+_Traits<{name}>(?:\s*:\s*\w+<(\w+)>)?\s*{{(.*?)^}};", text, re.S | re.M
    )
    assert match is not None, name
    found = re.search(rf"using {member}\s*=\s*(.*?);", match[2], re.S)
    if found is None:
        assert match[1], f"{name} has no {member}"
        return trait(header, match[1], member)
    value = found[1]
    if not value.startswith("Layout"):  # an alias above
        alias = re.search(rf"using {value}\s*=\s*(.*?);", text, re.S)
        assert alias is not None, value
        value = alias[1]
    return Layout(value)


# --- ours -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours() -> dict[tuple[str, str], Places]:
    places: dict[tuple[str, str], Places] = {}
    for line in native.run([native.build("mma_layouts") / "mma_layouts"]).splitlines():
        kind, operand, *numbers = line.split()
        lane, register, element, row, column = map(int, numbers)
        places.setdefault((kind, operand), {})[lane, register, element] = (row, column)
    return places


ATOMS = [
    ("tf32", "SM80_16x8x8_F32TF32TF32F32_TN", 8, 1),
    ("half", "SM80_16x8x16_F32BF16BF16F32_TN", 16, 2),
    ("half", "SM80_16x8x16_F32F16F16F32_TN", 16, 2),
]


@pytest.mark.parametrize(("kind", "atom", "depth", "elements"), ATOMS, ids=[a[1] for a in ATOMS])
@pytest.mark.parametrize("operand", ["a", "b", "c"])
def test_mma_fragments(
    ours: dict[tuple[str, str], Places],
    headers: Path,
    kind: str,
    atom: str,
    depth: int,
    elements: int,
    operand: str,
) -> None:
    layout = trait(headers / "mma_traits_sm80.hpp", atom, f"{operand.upper()}Layout")
    # CuTe numbers A by (m, k), B by (n, k) and C by (m, n), the first of each running fastest.
    first = {"a": 16, "b": 8, "c": 16}[operand]
    count = {"a": 16 * depth, "b": 8 * depth, "c": 16 * 8}[operand] // 32
    per_register = 1 if operand == "c" else elements
    places = ours[kind, operand]
    assert len(places) == 32 * count
    for (lane, register, element), (row, column) in places.items():
        index = layout(lane, register * per_register + element)
        expected = (index % first, index // first)
        assert (row, column) == (expected[::-1] if operand == "b" else expected)
    assert len(set(places.values())) == len(places)


def test_ldmatrix(ours: dict[tuple[str, str], Places], headers: Path) -> None:
    source = trait(headers / "copy_traits_sm75.hpp", "SM75_U32x4_LDSM_N", "SrcLayout")
    destination = trait(headers / "copy_traits_sm75.hpp", "SM75_U32x4_LDSM_N", "DstLayout")
    from_bit = {source(lane, bit): (lane, bit) for lane in range(32) for bit in range(128)}
    for (lane, register, _), (source_lane, byte) in ours["ldmatrix", "x4"].items():
        for bit in range(32):
            assert from_bit[destination(lane, 32 * register + bit)] == (source_lane, 8 * byte + bit)
