"""Batching rules: torch.vmap over an operator is one call of it with one more leading dimension.

Every operator reads its tensors as rows (..., D), so a batch dimension is just another leading one.
A mean or sum over what is then part of a batch is taken after the rows are done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from siamcuda import _C

__all__ = ["register"]

Rule = Callable[..., tuple[Any, Any]]


def _bind(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name; the dispatcher leaves out those that have their default value."""
    arguments = operator._schema.arguments
    bound = {a.name: a.default_value for a in arguments if a.has_default_value()}
    bound.update(zip((a.name for a in arguments), args, strict=False))
    bound.update(kwargs)
    return bound


class _Rows:
    """The tensors of one call with their batch dimension in front and equal ranks."""

    def __init__(self, size: int, tensors: dict[str, Tensor], dims: dict[str, int | None]) -> None:
        self.size = size
        self.logical: dict[str, torch.Size] = {}
        moved = {}
        for name, t in tensors.items():
            dim = dims[name]
            batched = t.movedim(dim, 0) if dim is not None else t.expand(size, *t.shape)
            self.logical[name] = batched.shape[1:]
            moved[name] = batched
        labels = {"target", "grad"}
        leading = max(len(s) - (n not in labels) for n, s in self.logical.items())
        self.tensors = {
            name: t.reshape(
                size,
                *(1 for _ in range(leading - len(self.logical[name]) + (name not in labels))),
                *self.logical[name],
            )
            for name, t in moved.items()
        }
        self.shape = torch.broadcast_shapes(
            *(t.shape if n in labels else t.shape[:-1] for n, t in self.tensors.items())
        )
        for name in labels & self.tensors.keys():
            self.tensors[name] = self.tensors[name].expand(self.shape)
        self.count = self.shape[1:].numel()

    def reduce(self, rows: Tensor, reduction: str, empty: float) -> Tensor:
        if reduction == "none":
            return rows
        total = rows.flatten(1).sum(1) if rows.dim() > 1 else rows
        if reduction == "sum":
            return total
        return total / self.count if self.count else total + empty


def _tensor_names(operator: Any) -> list[str]:
    return [a.name for a in operator._schema.arguments if str(a.type) == "Tensor"]


def _forward(operator: Any, gradients: bool) -> Rule:
    names = _tensor_names(operator)
    empty = float("nan") if "triplet_margin_loss" in operator.__name__ else 0.0

    def rule(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        bound = _bind(operator, args, kwargs)
        dims = dict(zip(names, in_dims, strict=False))
        rows = _Rows(info.batch_size, {n: bound[n] for n in names}, dims)
        reduction, dtype = bound["reduction"], bound["dtype"]
        first = rows.tensors[names[0]].dtype
        call = {**bound, **rows.tensors, "reduction": "none"}
        if dtype is None and reduction != "none" and first in (torch.float16, torch.bfloat16):
            call["dtype"] = torch.float32  # so that the sum is rounded once
        if gradients and reduction == "mean":
            call["grad_scale"] = bound["grad_scale"] / max(rows.count, 1)
        result = operator(**call)
        loss, found = (result[0], result[1:]) if gradients else (result, [])
        loss = rows.reduce(loss, reduction, empty).to(dtype or first)
        if not gradients:
            return loss, 0
        inputs = [n for n in names if n != "target"]
        out = [g.reshape(rows.size, *rows.logical[n]) for n, g in zip(inputs, found, strict=True)]
        return [loss, *out], [0] * (1 + len(out))

    return rule


def _backward(operator: Any) -> Rule:
    names = _tensor_names(operator)

    def rule(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        bound = _bind(operator, args, kwargs)
        dims = dict(zip(names, in_dims, strict=False))
        tensors = {n: bound[n] for n in names}
        if bound["reduction"] == "none":
            rows = _Rows(info.batch_size, tensors, dims)
            upstream = rows.tensors.pop("grad")
        else:
            grad = tensors.pop("grad")
            rows = _Rows(info.batch_size, tensors, dims)
            grad = grad.expand(rows.size) if dims["grad"] is None else grad.movedim(dims["grad"], 0)
            if bound["reduction"] == "mean":
                grad = grad / max(rows.count, 1)
            upstream = grad.reshape(rows.size, *(1 for _ in rows.shape[1:])).expand(rows.shape)
        found = operator(**{**bound, **rows.tensors, "grad": upstream, "reduction": "none"})
        inputs = [n for n in names if n not in ("grad", "target")]
        wanted = [n for n, want in zip(inputs, bound["output_mask"], strict=True) if want]
        out = [g.reshape(rows.size, *rows.logical[n]) for n, g in zip(wanted, found, strict=True)]
        return out, [0] * len(out)

    return rule


def _one_by_one(operator: Any) -> Rule:
    """For what is no row of a batch: losses over a batch, statistics, double backward."""

    def take(value: Any, dim: Any, i: int) -> Any:
        if isinstance(value, (list, tuple)) and isinstance(dim, (list, tuple)):
            return [take(v, d, i) for v, d in zip(value, dim, strict=True)]
        return value if dim is None else value.select(dim, i)

    def rule(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        results = [
            operator(*(take(a, d, i) for a, d in zip(args, in_dims, strict=True)), **kwargs)
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return stacked, [0] * len(stacked)

    return rule


def register(library: str) -> None:
    """Gives every operator of a library its batching rule."""
    namespace = getattr(torch.ops, library)
    for name in _C.loss_names():
        rules: dict[str, Callable[[Any], Rule]] = {
            "": lambda op: _forward(op, gradients=False),
            "_value_and_grad": lambda op: _forward(op, gradients=True),
            "_backward": _backward,
            "_double_backward": _one_by_one,
            "_stats": _one_by_one,
        }
        for suffix, make in rules.items():
            if not hasattr(namespace, name + suffix):  # only losses have statistics
                continue
            operator = getattr(namespace, name + suffix).default
            torch.library.register_vmap(f"{library}::{name}{suffix}", make(operator))
    suffixes = ("", "_value_and_grad", "_backward", "_stats")
    operators = [name + suffix for name in _C.batch_loss_names() for suffix in suffixes]
    for name in (*operators, "squared_cdist", "squared_cdist_backward"):
        if hasattr(namespace, name):  # the emulated build has none
            torch.library.register_vmap(
                f"{library}::{name}", _one_by_one(getattr(namespace, name).default)
            )
