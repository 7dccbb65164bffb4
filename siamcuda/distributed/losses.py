"""The losses over the joined batch of all ranks of a process group.

Every rank passes its own rows; rank r's rows follow those of rank r−1 in the joined batch. Each
rank returns the loss that one process would compute on the joined batch, and after ``backward()``
on every rank the gradient of each rank's embeddings is what that one process would give those rows
(within rounding). A rank computes the terms of its own anchors against all rows, 1/W of the work.
Sums and numbers of terms are added over ranks apart, since a mean over non-zero terms does not add.

    loss = siamcuda.distributed.batch_triplet_loss(encoder(x), y)   # x, y: this rank's
    loss.backward()

**Gradients of parameters.** Each rank's ``backward()`` gives its parameters the part of its own
rows; the gradient of the joined batch is the *sum* over ranks. So with gradients that you add
yourself (``all_reduce`` with SUM) nothing is to be done. DistributedDataParallel takes the *mean*
over its W ranks, which is W times too short: pass ``ddp=True``, and the gradient (not the loss) is
W times as long. What else is added to the loss keeps DDP's own rule: a mean over this rank's rows.

**Together.** The ranks must call the same loss with the same options, the same D and dtype, the
same number of times; sizes may differ and may be 0. They tell each other before any row is sent, so
that what is wrong on one rank raises on all, naming it. Where a rank never comes (it died, or
raised elsewhere) the others raise after the process group's timeout, with gloo often at once. A
reduced loss talks in forward alone: all ranks should give its ``backward()`` the same upstream
gradient, and none waits in it. ``reduction="none"`` returns this rank's anchors and talks in
``backward()``, which every rank must then call; the upstream gradients may differ.

**What moves.** The embeddings and labels of all ranks, and for triplets the all-reduced gradient of
the joined batch; pairs are symmetric and need none. Memory is that of the joined batch and its
gradient. Used are all_gather, broadcast (where sizes differ) and all_reduce, on any dtype as bytes.
Tested with gloo on the CPU; not run with nccl.

There is no second derivative (``create_graph=True`` is an error), and torch.compile does not trace
these functions: call them outside what it compiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from siamcuda import _ops, batch
from siamcuda.distributed._peers import Header, Peers, Rule
from siamcuda.functional import LossStats

__all__ = ["batch_chopra_loss", "batch_contrastive_loss", "batch_triplet_loss"]


def batch_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 1.0,
    reduction: str = "mean",
    return_stats: bool = False,
    ddp: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Any:
    """:func:`siamcuda.batch_contrastive_loss` of the joined batch of all ranks.

    D² for two rows of a class, max(0, m−D)² for others; Hadsell, Chopra and LeCun, CVPR 2006,
    without their factor ½.

    Args:
        embeddings: ``(B, D)``, this rank's rows; B may differ between ranks and be 0.
        labels: ``(B,)``, integers.
        margin: m ≥ 0, in units of distance.
        reduction: ``"mean"`` over the pairs of the joined batch, ``"mean_active"`` over those with
            a loss, ``"sum"``, or ``"none"``: ``(B,)``, half of each pair to either end.
        return_stats: also return :class:`siamcuda.LossStats` of the joined batch, for which every
            rank visits all pairs once more.
        ddp: make gradients W times as long, for DistributedDataParallel, which averages over ranks.
        group: the process group; by default the whole world.

    Returns:
        0-d and equal on every rank, or ``(B,)`` for ``"none"``; with ``return_stats`` a tuple.

    Raises:
        ValueError, TypeError: as :func:`siamcuda.batch_contrastive_loss`, on every rank and naming
            the one at fault; also where ranks differ in D, dtype, device, loss or options.
        RuntimeError: no process group, this process is not in it, or another rank is gone.

    Example:
        >>> import torch, siamcuda
        >>> siamcuda.distributed.batch_contrastive_loss(torch.zeros(2, 3), torch.arange(2))
        Traceback (most recent call last):
        RuntimeError: batch_contrastive_loss: no process group; call
        torch.distributed.init_process_group, or use siamcuda.batch_contrastive_loss
    """
    call = _Call("batch_contrastive_loss", {"margin": margin}, reduction, ddp, group)
    return call(embeddings, labels, return_stats)


def batch_chopra_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    q: float = 2.0,
    energy: str = "l2",
    reduction: str = "mean",
    return_stats: bool = False,
    ddp: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Any:
    """:func:`siamcuda.batch_chopra_loss` of the joined batch of all ranks.

    (2/Q)·E² within a class, else 2Q·exp(−2.77·E/Q), E = ‖x1−x2‖; Chopra, Hadsell and LeCun, CVPR
    2005.

    Args:
        embeddings: ``(B, D)``, this rank's rows; B may differ between ranks and be 0.
        labels: ``(B,)``, integers.
        q: Q > 0, the largest energy that the encoder can produce.
        energy: ``"l1"`` or ``"l2"``, the norm in E.
        reduction: ``"mean"`` over the pairs of the joined batch, ``"mean_active"`` over those with
            a loss, ``"sum"``, or ``"none"``: ``(B,)``, half of each pair to either end.
        return_stats: also return :class:`siamcuda.LossStats` of the joined batch, for which every
            rank visits all pairs once more.
        ddp: make gradients W times as long, for DistributedDataParallel, which averages over ranks.
        group: the process group; by default the whole world.

    Returns:
        0-d and equal on every rank, or ``(B,)`` for ``"none"``; with ``return_stats`` a tuple.

    Raises:
        ValueError, TypeError: as :func:`siamcuda.batch_chopra_loss`, on every rank and naming the
            one at fault; also where ranks differ in D, dtype, device, loss or options.
        RuntimeError: no process group, this process is not in it, or another rank is gone.

    Example:
        >>> import torch, siamcuda
        >>> siamcuda.distributed.batch_chopra_loss(torch.zeros(2, 3), torch.arange(2))
        Traceback (most recent call last):
        RuntimeError: batch_chopra_loss: no process group; call
        torch.distributed.init_process_group, or use siamcuda.batch_chopra_loss
    """
    call = _Call("batch_chopra_loss", {"q": q, "energy": energy}, reduction, ddp, group)
    return call(embeddings, labels, return_stats)


def batch_triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.2,
    mining: str = "all",
    squared: bool = True,
    soft: bool = False,
    reduction: str = "mean",
    return_stats: bool = False,
    ddp: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Any:
    """:func:`siamcuda.batch_triplet_loss` of the joined batch of all ranks.

    max(0, d(a,p) − d(a,n) + α) over the triplets that ``mining`` picks from all ranks' rows;
    Schroff, Kalenichenko and Philbin, CVPR 2015, and Hermans, Beyer and Leibe 2017.

    Args:
        embeddings: ``(B, D)``, this rank's rows; B may differ between ranks and be 0.
        labels: ``(B,)``, integers.
        margin: α ≥ 0, in units of d. Not used with ``soft``.
        mining: ``"all"``, ``"hard"``, ``"semihard"`` or ``"easy_positive"``; ties go to the lowest
            index of the joined batch.
        squared: d is the squared L2 distance, else the L2 distance.
        soft: softplus(d(a,p) − d(a,n)) instead of the hinge.
        reduction: ``"mean"`` over the triplets of the joined batch, ``"mean_active"`` over those
            with a loss, ``"sum"``, or ``"none"``: ``(B,)``, the sum of each own anchor's triplets.
        return_stats: also return :class:`siamcuda.LossStats` of the joined batch, for which every
            rank visits all triplets once more.
        ddp: make gradients W times as long, for DistributedDataParallel, which averages over ranks.
        group: the process group; by default the whole world.

    Returns:
        0-d and equal on every rank, or ``(B,)`` for ``"none"``; with ``return_stats`` a tuple.

    Raises:
        ValueError, TypeError: as :func:`siamcuda.batch_triplet_loss`, on every rank and naming the
            one at fault; also where ranks differ in D, dtype, device, loss or options.
        RuntimeError: no process group, this process is not in it, or another rank is gone.

    Example:
        >>> import torch, siamcuda
        >>> siamcuda.distributed.batch_triplet_loss(torch.zeros(2, 3), torch.arange(2))
        Traceback (most recent call last):
        RuntimeError: batch_triplet_loss: no process group; call
        torch.distributed.init_process_group, or use siamcuda.batch_triplet_loss
    """
    options = {"margin": margin, "mining": mining, "squared": squared, "soft": soft}
    return _Call("batch_triplet_loss", options, reduction, ddp, group)(
        embeddings, labels, return_stats
    )


@dataclasses.dataclass
class _Joined:
    """The joined batch, and which rows of it are this rank's."""

    embeddings: Tensor  # [N, D]
    labels: Tensor  # [N] int64
    first: int
    count: int

    @property
    def own(self) -> slice:
        return slice(self.first, self.first + self.count)


class _Part:
    """What this rank computes of the whole."""

    def __init__(self, like: Tensor) -> None:
        zeros = torch.zeros(5, dtype=torch.float64, device=like.device)
        self.value = zeros[0]  # the sum, or for "none" one of each anchor
        self.gradients: list[Tensor] = []  # of the sum by its own rows, by the joined batch
        self.counts = zeros[:2]  # terms, and those with a loss
        self.whole = zeros  # statistics of the joined batch
        self.failure: Exception | None = None


class _Call:
    """One call of one loss on this rank."""

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        reduction: str,
        ddp: bool,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.name, self.options, self.reduction, self.ddp = name, options, reduction, ddp
        self.pairs = name != "batch_triplet_loss"
        self.peers = Peers(name, name, group)

    def __call__(self, embeddings: Tensor, labels: Tensor, return_stats: bool) -> Any:
        if self.peers.size == 1:
            return getattr(batch, self.name)(
                embeddings,
                labels,
                **self.options,
                reduction=self.reduction,
                return_stats=return_stats,
            )
        headers = self.agree(embeddings, labels)
        wanted = any(header["requires_grad"] for header in headers)
        own_wanted = headers[self.peers.rank]["requires_grad"]
        gradient = None
        with torch.no_grad():
            joined = self.join(embeddings, labels, [header["rows"] for header in headers])
            part = _Part(joined.embeddings)
            try:
                self.compute(part, joined, own_wanted, wanted, return_stats)
            except Exception as error:  # whatever it is, the others must hear of it
                part.failure = error
            total, terms, active = self.add(part)
            value = part.value
            if self.reduction != "none":
                divisor = self.divisor(terms, active, len(joined.labels))
                value = total / divisor
                gradient = self.gradient(part, joined, own_wanted, wanted, divisor)
            half = embeddings.dtype in (torch.float16, torch.bfloat16)
            widen = half and torch.is_autocast_enabled(embeddings.device.type)
            dtype = torch.float32 if widen else embeddings.dtype
            loss = value.to(embeddings.device, dtype)
        if gradient is not None:
            loss = _Reduced.apply(embeddings, loss, gradient, self.name)
        elif own_wanted:
            loss = _Anchors.apply(embeddings, loss, self, joined)
        return (loss, LossStats(*part.whole.unbind())) if return_stats else loss

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The options as the operators take them, which for pairs end with similar_label."""
        return (*self.options.values(), 0) if self.pairs else tuple(self.options.values())

    def operator(self, suffix: str) -> Any:
        return getattr(_ops.namespace, self.name + suffix)

    # --- collectives ----------------------------------------------------------------------------

    def agree(self, embeddings: Tensor, labels: Tensor) -> list[Header]:
        """Every rank's header; raises the same error on all ranks if they don't fit together."""
        rules: list[Rule] = [
            ("call", "the loss", ValueError),
            ("columns", "D, the columns of embeddings", ValueError),
            ("dtype", "the dtype of embeddings", TypeError),
            ("device", "the device of embeddings", ValueError),
        ]
        if self.reduction == "none":  # its backward has collectives
            what = "whether embeddings require a gradient, which reduction='none' asks of all"
            rules.append(("requires_grad", what, ValueError))
        return self.peers.agree(lambda: self.header(embeddings, labels), rules)

    def header(self, embeddings: Tensor, labels: Tensor) -> Header:
        """Checks this rank's input as the operator would, against no rows."""
        empty = [
            t.detach()[:0] if isinstance(t, Tensor) and t.dim() else t for t in (embeddings, labels)
        ]
        with torch.no_grad():
            _ops.call(self.name, embeddings, labels, *empty, *self.arguments, -1, self.reduction)
        if self.peers.device != "cpu" and not embeddings.is_cuda:
            raise ValueError(
                f"{self.name}: embeddings must be on a CUDA device for a process group of backend "
                f"nccl, got {embeddings.device}"
            )
        options = ", ".join(
            f"{name}={float(value) if type(value) is int else value!r}"
            for name, value in self.options.items()
        )
        return {
            "call": f"{self.name}({options}, reduction={self.reduction!r}, ddp={bool(self.ddp)})",
            "rows": embeddings.shape[0],
            "columns": embeddings.shape[1],
            "dtype": str(embeddings.dtype).removeprefix("torch."),
            "device": embeddings.device.type,
            "requires_grad": embeddings.requires_grad and torch.is_grad_enabled(),
        }

    def join(self, embeddings: Tensor, labels: Tensor, counts: list[int]) -> _Joined:
        """The rows of all ranks in rank order."""
        return _Joined(
            self.peers.join(embeddings.detach(), counts),
            self.peers.join(labels.to(torch.int64), counts),
            sum(counts[: self.peers.rank]),
            counts[self.peers.rank],
        )

    # --- the loss -------------------------------------------------------------------------------

    def operands(self, joined: _Joined) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """This rank's anchors against the joined batch; row 0 of them is row ``first`` of it."""
        x, y = joined.embeddings, joined.labels
        return x[joined.own], y[joined.own], x, y

    def compute(
        self, part: _Part, joined: _Joined, own_wanted: bool, wanted: bool, return_stats: bool
    ) -> None:
        """This rank's anchors: their sum or values, its gradients, how many terms."""
        tensors, first = self.operands(joined), joined.first
        if self.reduction == "none":
            part.value = self.operator("")(
                *tensors, *self.arguments, first, "none", dtype=torch.float64
            )
        else:
            # The gradient of pairs is symmetric: the anchors' side is half of it.
            mask = [own_wanted, wanted and not self.pairs]
            part.value, *part.gradients = self.operator("_value_and_grad")(
                *tensors, mask, *self.arguments, first, "sum", dtype=torch.float64
            )
        if self.reduction == "mean_active" or (self.reduction == "mean" and not self.pairs):
            part.counts = self.operator("_stats")(*tensors, *self.arguments, first)[:2]
        if return_stats:  # means of distances don't add
            part.whole = self.operator("_stats")(*tensors[2:], None, None, *self.arguments, -1)

    def add(self, part: _Part) -> Iterator[Tensor]:
        """Sum, terms and active terms of all ranks, added in rank order."""
        ok = torch.full_like(part.counts[0], float(part.failure is None))
        sums = torch.stack([ok, part.value.sum(), *part.counts])
        found = self.peers.gather(sums.to(self.peers.device))
        for rank, good in enumerate(found[:, 0].tolist()):
            if good != 1:
                mine = rank == self.peers.rank
                raise RuntimeError(
                    f"{self.name}: {self.peers.name_of(rank)} failed while it computed its part"
                    + (f": {part.failure}" if mine else "; its own error says why")
                ) from (part.failure if mine else None)
        return iter(found[:, 1:].sum(0).unbind())

    def divisor(self, terms: Tensor, active: Tensor, rows: int) -> Tensor:
        one = torch.ones_like(terms)
        if self.reduction == "sum":
            return one
        if self.reduction == "mean_active":
            return torch.maximum(active, one)
        return torch.maximum(one * (rows * (rows - 1) / 2) if self.pairs else terms, one)

    def gradient(
        self, part: _Part, joined: _Joined, own_wanted: bool, wanted: bool, divisor: Tensor
    ) -> Tensor | None:
        """Of this rank's rows, in the type of the computation."""
        shared = self.reduce(part.gradients[-1]) if wanted and not self.pairs else None
        if not own_wanted:
            return None
        gradient = part.gradients[0]
        factor = (self.peers.size if self.ddp else 1) / divisor
        if shared is None:
            return gradient.mul_((2 * factor).to(gradient))
        return gradient.add_(shared[joined.own]).mul_(factor.to(gradient))

    def reduce(self, gradient: Tensor) -> Tensor:
        if gradient.numel():
            with self.peers.reachable():
                dist.all_reduce(gradient, group=self.peers.group)
        return gradient

    def anchors_backward(self, joined: _Joined, upstream: Tensor) -> Tensor:
        """With an upstream gradient for each anchor, in the type of the embeddings."""
        # In the type that gradients are added in: over ranks, a half would be rounded too soon.
        x, y, refs, ref_labels = self.operands(joined)
        if x.dtype in (torch.float16, torch.bfloat16):
            x, refs = x.float(), refs.float()
        own, shared = self.operator("_backward")(
            upstream, x, y, refs, ref_labels, [True, True], *self.arguments, joined.first, "none"
        )
        total: Tensor = own + self.reduce(shared)[joined.own]
        return total * self.peers.size if self.ddp else total


def _refuse_graph(name: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"siamcuda.distributed.{name}: there is no second derivative (create_graph=True)"
        )


class _Reduced(torch.autograd.Function):
    """A loss whose gradient is already there."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, value: Tensor, gradient: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.name, ctx.dtype = name, embeddings.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        _refuse_graph(ctx.name)
        (gradient,) = ctx.saved_tensors
        return (gradient * grad).to(ctx.dtype), None, None, None


class _Anchors(torch.autograd.Function):
    """One loss for each of this rank's anchors; the ranks meet again in backward."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, value: Tensor, call: _Call, joined: _Joined
    ) -> Tensor:
        ctx.call, ctx.joined, ctx.dtype = call, joined, embeddings.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        _refuse_graph(ctx.call.name)
        return ctx.call.anchors_backward(ctx.joined, grad).to(ctx.dtype), None, None, None
