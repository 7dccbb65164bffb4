"""A step in chunks against the same chunks in one graph, and against the whole batch."""

from __future__ import annotations

import contextlib
from collections import namedtuple

import pytest
import torch
from torch import nn

import siamcuda


def _encoder(dropout: float = 0.4, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.Dropout(dropout), nn.ReLU(), nn.Linear(16, 4), nn.Dropout(dropout)
    ).to(dtype)


def _batch(rows: int = 22, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 6, generator=generator, dtype=dtype), torch.arange(rows) % 5


def _gradients(module: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in module.parameters()]


LOSSES = {
    "contrastive": siamcuda.batch_contrastive_loss,
    "chopra": siamcuda.batch_chopra_loss,
    "triplet": siamcuda.batch_triplet_loss,
    "active": lambda z, y: siamcuda.batch_triplet_loss(z, y, reduction="mean_active"),
    "noisy": lambda z, y: siamcuda.batch_triplet_loss(z + torch.rand_like(z), y, mining="hard"),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [5, 11, 22, 100])
def test_same_masks_same_gradients(name, size):
    """Dropout included, on top of what is in .grad, and the random numbers go on as they would."""
    x, y = _batch()
    encoder = _encoder()
    for p in encoder.parameters():
        p.grad = torch.ones_like(p)
    torch.manual_seed(7)
    expected = LOSSES[name](torch.cat([encoder(chunk) for chunk in x.split(size)]), y)
    expected.backward()
    wanted, next_number = _gradients(encoder), torch.rand(3)

    for p in encoder.parameters():
        p.grad = torch.ones_like(p)
    torch.manual_seed(7)
    loss = siamcuda.cached_step(encoder, x.split(size), lambda z: LOSSES[name](z, y))
    assert torch.equal(loss, expected.detach())
    assert not loss.requires_grad
    torch.testing.assert_close(_gradients(encoder), wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.rand(3), next_number)


def test_chunks_equal_the_whole_batch():
    x, y = _batch(dtype=torch.float32)
    encoder = _encoder(0.0, torch.float32)
    siamcuda.batch_triplet_loss(encoder(x), y).backward()
    wanted = _gradients(encoder)
    encoder.zero_grad()
    siamcuda.cached_step(encoder, x.split(4), lambda z: siamcuda.batch_triplet_loss(z, y))
    torch.testing.assert_close(_gradients(encoder), wanted, rtol=1e-6, atol=1e-6)


def test_a_chunk_without_rows():
    x, y = _batch()
    encoder = _encoder(0.0)
    siamcuda.batch_triplet_loss(encoder(x), y).backward()
    wanted = _gradients(encoder)
    encoder.zero_grad()
    chunks = x.split([9, 0, 13])
    siamcuda.cached_step(encoder, chunks, lambda z: siamcuda.batch_triplet_loss(z, y))
    torch.testing.assert_close(_gradients(encoder), wanted)


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize("kind", [tuple, list, dict, Pair])
def test_two_encoders_and_siamese_inputs(kind):
    """A chunk of several inputs, several outputs in any structure, integers and None among them."""
    x, _ = _batch(20)
    z, target = x.flip(0), torch.arange(20) % 2
    left, right = _encoder(), _encoder(0.1)

    def encode(pair):
        found = left(pair[0]), right(pair[1])
        if kind is dict:
            return {"b": found[1], "a": found[0], "ids": pair[0].argmax(1), "mask": None}
        return kind(*found) if kind is Pair else kind(found)

    def parts(found):
        return (found["a"], found["b"]) if kind is dict else found

    def loss_fn(found):
        if kind is dict:
            assert found["ids"].shape == (20,)
            assert found["mask"] is None
        assert type(found) is kind
        return siamcuda.contrastive_loss(*parts(found), target, margin=3.0)

    chunks = list(zip(x.split(6), z.split(6), strict=True))
    torch.manual_seed(3)
    found = [parts(encode(chunk)) for chunk in chunks]
    both = [torch.cat([pair[k] for pair in found]) for k in (0, 1)]
    expected = siamcuda.contrastive_loss(*both, target, margin=3.0)
    expected.backward()
    wanted = _gradients(left) + _gradients(right)
    left.zero_grad()
    right.zero_grad()
    torch.manual_seed(3)
    loss = siamcuda.cached_step(encode, zip(x.split(6), z.split(6), strict=True), loss_fn)
    assert torch.equal(loss, expected.detach())
    torch.testing.assert_close(_gradients(left) + _gradients(right), wanted)


def test_frozen_encoders_inputs_and_parameters_of_the_loss():
    """What needs a gradient gets it, inputs too; what needs none is left alone."""
    x, y = _batch(12)
    frozen, encoder = _encoder(0.0).requires_grad_(False), _encoder(0.0)
    temperature = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def run(step):
        leaf = x.clone().requires_grad_()
        encoder.zero_grad()
        temperature.grad = None
        step(leaf)
        return [leaf.grad, temperature.grad.clone(), *_gradients(encoder)]

    def encode(rows):
        return encoder(rows), frozen(rows.detach())

    def loss_fn(found):
        return siamcuda.batch_triplet_loss(found[0] * temperature + found[1], y)

    wanted = run(lambda leaf: loss_fn(encode(leaf)).backward())
    found = run(lambda leaf: siamcuda.cached_step(encode, leaf.split(5), loss_fn))
    torch.testing.assert_close(found, wanted)
    assert all(p.grad is None for p in frozen.parameters())


def test_autocast():
    """Both passes and the loss run under it; backward does not."""
    x, y = _batch(dtype=torch.float32)
    encoder = _encoder(0.3, torch.float32)
    seen = []

    def loss_fn(z):
        seen.append((z.dtype, torch.is_autocast_enabled("cpu")))
        z.register_hook(lambda grad: seen.append((grad.dtype, torch.is_autocast_enabled("cpu"))))
        return siamcuda.batch_triplet_loss(z, y)

    torch.manual_seed(2)
    # Without the cache each chunk has its own casts, so that gradients are added up in float32.
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = loss_fn(torch.cat([encoder(chunk) for chunk in x.split(6)]))
    expected.backward()
    wanted = _gradients(encoder)
    encoder.zero_grad()
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = siamcuda.cached_step(encoder, x.split(6), loss_fn)
        assert torch.is_autocast_enabled("cpu")
    assert seen == 2 * [(torch.bfloat16, True), (torch.bfloat16, False)]
    assert torch.equal(loss, expected.detach())
    torch.testing.assert_close(_gradients(encoder), wanted, rtol=1e-6, atol=1e-6)


def test_scaled_loss():
    x, y = _batch()
    encoder = _encoder(0.0)
    plain = siamcuda.cached_step(encoder, x.split(7), lambda z: siamcuda.batch_triplet_loss(z, y))
    wanted = [1024 * g for g in _gradients(encoder)]
    encoder.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = siamcuda.cached_step(
        encoder, x.split(7), lambda z: siamcuda.batch_triplet_loss(z, y), scale=scaler.scale
    )
    assert torch.equal(loss, plain)
    torch.testing.assert_close(_gradients(encoder), wanted)


@pytest.mark.parametrize("given", [False, True])
def test_only_the_last_chunk_reduces_over_ranks(given):
    x, y = _batch()
    log = []

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.quiet = _encoder(0.0), False

        @contextlib.contextmanager
        def no_sync(self):
            self.quiet = True
            yield
            self.quiet = False

        def forward(self, rows):
            found = self.module(rows)
            if found.requires_grad:
                found.register_hook(lambda grad: log.append(self.quiet))
            return found

    wrapped = Wrapped()
    encoder, options = (
        (lambda c: wrapped(c), {"no_sync": wrapped.no_sync}) if given else (wrapped, {})
    )
    siamcuda.cached_step(
        encoder, x.split(8), lambda z: siamcuda.batch_triplet_loss(z, y), **options
    )
    assert log == [True, True, False]


def test_activations_take_the_memory_of_a_chunk():
    """As many tensors wait for backward at a time with eight chunks as with one."""
    x, _ = _batch(24)
    encoder, alive, most = _encoder(), 0, 0

    class Held:
        def __init__(self, tensor):
            nonlocal alive, most
            self.tensor, alive = tensor, alive + 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    def held(chunks):
        nonlocal most
        most = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            siamcuda.cached_step(encoder, chunks, lambda z: z.square().sum())
        return most

    assert held(x.split(3)) == held(x.split(24)) > 0


def test_errors():
    x, y = _batch(8)
    encoder = _encoder()

    def loss(z):
        return siamcuda.batch_triplet_loss(z, y)

    with torch.no_grad(), pytest.raises(RuntimeError, match="gradients are disabled"):
        siamcuda.cached_step(encoder, x.split(4), loss)
    with pytest.raises(ValueError, match="at least one chunk"):
        siamcuda.cached_step(encoder, [], loss)
    with pytest.raises(ValueError, match=r"0-d loss, got shape \(8,\)"):
        siamcuda.cached_step(encoder, x.split(4), lambda z: z.sum(1))
    with pytest.raises(TypeError, match="loss_fn must return a tensor, got NoneType"):
        siamcuda.cached_step(encoder, x.split(4), lambda z: None)
    with pytest.raises(TypeError, match="encoder must return tensors, got str"):
        siamcuda.cached_step(lambda chunk: "z", x.split(4), loss)
    with pytest.raises(ValueError, match="tensors with rows, got a 0-d"):
        siamcuda.cached_step(lambda chunk: encoder(chunk).sum(), x.split(4), loss)
    with pytest.raises(ValueError, match=r"same structure.*for chunk 1"):
        siamcuda.cached_step(lambda chunk: chunk, (x[:4], x[4:, :2]), loss)
    calls = []

    def unsteady(chunk):
        calls.append(chunk)
        return encoder(chunk if len(calls) < 3 else chunk[:2])

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="the second time"):
        siamcuda.cached_step(unsteady, x.split(4), loss)
    # The random numbers went on by the two chunks of the first pass.
    expected = torch.rand(1)
    torch.set_rng_state(state)
    with torch.no_grad():
        [encoder(chunk) for chunk in x.split(4)]
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.gpu
def test_dropout_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    x, _ = _batch(dtype=torch.float32)
    encoder, x = _encoder(0.4, torch.float32).cuda(), x.cuda()

    def loss(z):
        return siamcuda.reference.squared_cdist(z, z).mean()

    torch.manual_seed(5)
    loss(torch.cat([encoder(chunk) for chunk in x.split(6)])).backward()
    wanted = _gradients(encoder)
    encoder.zero_grad()
    torch.manual_seed(5)
    siamcuda.cached_step(encoder, x.split(6), loss)
    torch.testing.assert_close(_gradients(encoder), wanted)
