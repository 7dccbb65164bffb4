"""A training step on a batch whose encoder's activations don't fit into memory.

Gradient caching: Gao, Zhang, Han and Callan, "Scaling Deep Contrastive Learning Batch Size under
Memory Limited Setup", RepL4NLP 2021. A loss over a batch needs every embedding at once, but not
every activation. So the chunks of a batch are encoded without a graph, the loss gives ∂L/∂z for
each embedding z, and each chunk is then encoded again, with the same random numbers, and
differentiated against its rows of ∂L/∂z. By the chain rule the sum over chunks,

    ∂L/∂θ = Σ_chunks (∂z_chunk/∂θ)ᵀ · ∂L/∂z_chunk,

is the gradient of the whole batch. The price is a second forward pass of the encoder; activations
take the memory of one chunk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["cached_step"]


def cached_step(
    encoder: Callable[[Any], Any],
    chunks: Iterable[Any],
    loss_fn: Callable[[Any], Tensor],
    *,
    scale: Callable[[Tensor], Tensor] | None = None,
    no_sync: Callable[[], contextlib.AbstractContextManager[Any]] | None = None,
) -> Tensor:
    """Forward and backward of ``loss_fn`` over all chunks, in the memory of one.

    Adds the gradient of the whole batch to ``.grad``, as ``loss.backward()`` would; zero gradients
    before and step the optimizer after, as ever. Dropout and other random numbers of the CPU and of
    every CUDA device are the same in both passes, and end where one pass would leave them. Call it
    inside ``torch.autocast``, if that is wanted: both passes and the loss run in it, backward does
    not.

    Args:
        encoder: called with a chunk, twice; returns embeddings ``(b, ...)`` with one row for each
            row of the chunk: a tensor, or a tuple, list or dict of tensors. For several encoders
            or inputs, a function of the chunk: ``lambda pair: (left(pair[0]), right(pair[1]))``.
        chunks: what ``encoder`` takes, at least one: ``x.split(256)``, or
            ``zip(x1.split(256), x2.split(256))``. Sizes may differ.
        loss_fn: called once, with what ``encoder`` returns, the chunks' rows joined; returns a 0-d
            loss. Parameters that it uses itself get their gradients too.
        scale: makes of the loss what is differentiated; ``GradScaler().scale``, say.
        no_sync: context manager in which a backward does not reduce gradients over ranks; entered
            for all chunks but the last. By default ``encoder.no_sync``, which
            DistributedDataParallel has; to be given where encoder is a function that calls one.

    Returns:
        The loss, 0-d, detached, not scaled.

    Raises:
        ValueError: no chunks, a loss that is not 0-d, embeddings without rows, or chunks whose
            embeddings differ in more than their number of rows.
        TypeError: embeddings or a loss that are not tensors.
        RuntimeError: gradients are disabled, or the second pass gives other shapes.

    Not covered: batch normalisation in training mode sees a chunk instead of the batch, and its
    running averages move twice a step (use GroupNorm or LayerNorm, or ``eval()`` on those modules).
    Random numbers of Python and numpy are not replayed: augment before. There is no second
    derivative through the step.

    Example:
        >>> import torch, siamcuda
        >>> encoder = torch.nn.Linear(3, 2)
        >>> x, y = torch.randn(8, 3), torch.arange(8) % 2
        >>> loss = siamcuda.cached_step(
        ...     encoder, x.split(2), lambda z: siamcuda.batch_triplet_loss(z, y)
        ... )
        >>> cached = encoder.weight.grad.clone()
        >>> encoder.zero_grad()
        >>> siamcuda.batch_triplet_loss(encoder(x), y).backward()
        >>> torch.allclose(cached, encoder.weight.grad, atol=1e-6)
        True
    """
    if not torch.is_grad_enabled():
        raise RuntimeError("cached_step: gradients are disabled here (torch.no_grad)")
    chunks = list(chunks)
    if not chunks:
        raise ValueError("cached_step: chunks must hold at least one chunk, got none")
    quiet = no_sync
    if quiet is None:
        quiet = getattr(encoder, "no_sync", None) or contextlib.nullcontext

    states, encoded = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            encoded.append(_Leaves(encoder(chunk)))
    torch.clear_autocast_cache()  # weights cast in here have no graph
    shapes = [leaves.shapes for leaves in encoded]
    joined = _join(encoded)
    del encoded

    loss = loss_fn(joined.tree())
    if not isinstance(loss, Tensor):
        raise TypeError(f"cached_step: loss_fn must return a tensor, got {type(loss).__name__}")
    if loss.dim():
        raise ValueError(
            f"cached_step: loss_fn must return a 0-d loss, got shape {tuple(loss.shape)}"
        )
    with _without_autocast(joined):
        (loss if scale is None else scale(loss)).backward()
    gradients = [None if z is None else z.grad for z in joined.leaves]

    after = _random_state()
    first = [0] * len(joined.leaves)
    try:
        for k, chunk in enumerate(chunks):
            last = k == len(chunks) - 1
            with contextlib.nullcontext() if last else quiet():
                _set_random_state(states[k])
                again = _Leaves(encoder(chunk))
                if again.shapes != shapes[k]:
                    raise RuntimeError(
                        f"cached_step: encoder returned shapes {again.shapes} for chunk {k} the "
                        f"second time, {shapes[k]} the first"
                    )
                outputs, upstream = [], []
                for j, z in enumerate(again.leaves):
                    if z is None:
                        continue
                    gradient = gradients[j]
                    if z.requires_grad and gradient is not None:
                        outputs.append(z)
                        upstream.append(gradient[first[j] : first[j] + len(z)])
                    first[j] += len(z)
                if outputs:
                    with _without_autocast(again):
                        torch.autograd.backward(outputs, upstream)
    finally:
        _set_random_state(after)
    return loss.detach()


class _Leaves:
    """The tensors of what an encoder returned, None where it said None."""

    def __init__(self, tree: Any, leaves: list[Tensor | None] | None = None) -> None:
        found, self.structure = pytree.tree_flatten(tree)
        self.leaves: list[Tensor | None] = found if leaves is None else leaves
        for leaf in found:
            if not isinstance(leaf, Tensor) and leaf is not None:
                raise TypeError(
                    f"cached_step: encoder must return tensors, got {type(leaf).__name__}"
                )
            if isinstance(leaf, Tensor) and leaf.dim() == 0:
                raise ValueError("cached_step: encoder must return tensors with rows, got a 0-d")

    def tree(self) -> Any:
        return pytree.tree_unflatten(self.leaves, self.structure)

    @property
    def shapes(self) -> list[tuple[int, ...] | None]:
        return [None if leaf is None else tuple(leaf.shape) for leaf in self.leaves]

    @property
    def kinds(self) -> list[Any]:
        """What must be the same in every chunk."""
        return [leaf if leaf is None else (leaf.shape[1:], leaf.dtype) for leaf in self.leaves]


def _join(chunks: list[_Leaves]) -> _Leaves:
    """The rows of all chunks; those of a floating type want a gradient."""
    for k, chunk in enumerate(chunks):
        if chunk.structure != chunks[0].structure or chunk.kinds != chunks[0].kinds:
            raise ValueError(
                "cached_step: encoder must return the same structure, columns and dtypes for "
                f"every chunk, got {chunk.kinds} for chunk {k} and {chunks[0].kinds} for chunk 0"
            )
    joined: list[Tensor | None] = []
    for leaves in zip(*(chunk.leaves for chunk in chunks), strict=True):
        rows = [leaf for leaf in leaves if leaf is not None]
        whole = torch.cat(rows) if rows else None
        if whole is not None and whole.is_floating_point():
            whole.requires_grad_()
        joined.append(whole)
    return _Leaves(chunks[0].tree(), joined)


# --- the state that both passes share -------------------------------------------------------------


def _random_state() -> tuple[Tensor, list[Tensor]]:
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_gpu else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


@contextlib.contextmanager
def _without_autocast(leaves: _Leaves) -> Iterator[None]:
    """Backward takes the types that forward chose."""
    with contextlib.ExitStack() as stack:
        for kind in sorted({leaf.device.type for leaf in leaves.leaves if leaf is not None}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
