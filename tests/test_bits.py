"""Packed bits: codes and Hamming distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import siamcuda


def random_bits(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_pack_bits_agrees_with_numpy():
    values = torch.randn(4, 3, 21, generator=torch.Generator().manual_seed(1))
    expected = np.packbits(values.numpy() > 0, axis=-1)
    assert torch.equal(siamcuda.pack_bits(values), torch.from_numpy(expected))
    with pytest.raises(ValueError, match="real values"):
        siamcuda.pack_bits(torch.tensor(1.0))


@pytest.mark.parametrize("width", [0, 1, 7, 8, 9, 64, 129])
def test_hamming(width, backend):
    x1, x2 = random_bits(2, 33, width), random_bits(3, 33, width)
    expected = (np.unpackbits(x1, axis=1) != np.unpackbits(x2, axis=1)).sum(1)
    x1, x2 = x1.to(backend.device), x2.to(backend.device)
    found = siamcuda.hamming(x1, x2)
    assert found.dtype == torch.int32
    assert found.tolist() == expected.tolist()
    assert torch.equal(siamcuda.reference.hamming(x1, x2), found)


def test_hamming_broadcasts_and_reads_any_layout():
    x1, x2 = random_bits(4, 5, 1, 6), random_bits(5, 4, 6)
    expected = siamcuda.reference.hamming(x1, x2)
    assert torch.equal(siamcuda.hamming(x1, x2), expected)
    wide = random_bits(6, 6, 9).t()
    assert torch.equal(siamcuda.hamming(wide, x2[0]), siamcuda.reference.hamming(wide, x2[0]))
    assert torch.equal(siamcuda.hamming(x2[:, ::2], x2[:1, ::2]),
                       siamcuda.reference.hamming(x2[:, ::2], x2[:1, ::2]))  # fmt: skip
    assert siamcuda.hamming(x2[:0], x2[:0]).shape == (0,)


def test_hamming_in_torch():
    x1, x2 = random_bits(7, 5, 6), random_bits(8, 5, 6)
    torch.library.opcheck(torch.ops.siamcuda.hamming.default, (x1, x2))
    compiled = torch.compile(siamcuda.hamming, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x1, x2), siamcuda.hamming(x1, x2))


@pytest.mark.parametrize(
    ("x1", "x2", "error", "message"),
    [
        (torch.zeros(2, 3), random_bits(9, 2, 3), TypeError, "x1 must be packed bits in uint8"),
        (random_bits(9, 2, 3), random_bits(9, 2, 4), ValueError, "as many bytes a row"),
        (random_bits(9, 2, 3), random_bits(9, 5, 3), ValueError, "can't be broadcast"),
        (torch.tensor(1).byte(), random_bits(9, 3), ValueError, r"x1 must have shape \(\.\.\."),
    ],
)
def test_bad_input(x1, x2, error, message):
    with pytest.raises(error, match=message):
        siamcuda.hamming(x1, x2)
