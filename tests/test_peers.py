"""bench/peers.py: every way to write a loss gives the number that it is compared with."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import siamcuda
from bench import peers

#: Equal classes, in no order; and any, a row without a positive among them.
EQUAL = torch.tensor([2, 0, 1, 3, 0, 2, 3, 1, 1, 0, 3, 2])
ANY = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 3, 3, 0, 1])

needs_oml = "open-metric-learning replaces torch and numpy when installed: see docs/migrating.md"


def prepared(peer, labels):
    """The step; a peer that make test installs must be there."""
    step = peer.prepare(labels, **peer.options)
    if step is None and peer.family == peers.OPEN:
        pytest.skip(needs_oml)
    assert step is not None, f"{peer.family} is missing: pip install 'siamcuda[peers]'"
    return step


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.id)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-4)], ids=str
)
def test_same_number(peer, dtype, tolerance):
    ours = getattr(siamcuda, peer.op)
    for labels in (EQUAL,) if peer.equal_classes else (EQUAL, ANY):
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(len(labels), 6, generator=generator, dtype=dtype) * 0.4
        x.requires_grad_()
        theirs = prepared(peer, labels)(x)
        value = ours(x, labels, **peer.options, **peer.ours)
        options = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(theirs, value, **options)
        (got,), (want,) = (torch.autograd.grad(loss, x) for loss in (theirs, value))
        assert bool(want.any())
        torch.testing.assert_close(got, want, **options)


@pytest.mark.parametrize(
    "peer", [peer for peer in peers.PEERS if peer.one_graph], ids=lambda peer: peer.id
)
def test_compiles_in_one_graph(peer):
    torch._dynamo.reset()
    x = (torch.randn(len(EQUAL), 6) * 0.4).requires_grad_()
    step = prepared(peer, EQUAL)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        (compiled(x), *torch.autograd.grad(compiled(x), x)),
        (step(x), *torch.autograd.grad(step(x), x)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_gathered_positives_need_equal_classes():
    assert peers.positive_columns(torch.tensor([0, 1, 0, 1])).tolist() == [[2], [3], [0], [1]]
    with pytest.raises(ValueError, match="equal size"):
        peers.positive_columns(ANY)


def test_a_missing_package_is_none(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for peer in peers.PEERS:
        assert (peer.prepare(EQUAL, **peer.options) is None) == (peer.family != peers.EAGER)
