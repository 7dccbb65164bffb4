"""Second derivatives of the losses over a batch, by plain PyTorch operators.

Where a graph of the gradient is asked for, the C++ autograd calls ``NAME_composite`` and
differentiates that: it has the same gradient as the loss, from a B×B matrix of distances. For the
hinge over triplets the weight of each distance is constant between kinks, so that the sum of
weighted distances has the same derivatives as the loss; only ``soft`` needs B×P×N. The defaults
are the schema's: the dispatcher leaves them out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from siamcuda import reference

__all__ = ["register"]

#: Elements of a (chunk, R, R) array of triplets.
_CHUNK = 1 << 22


def _distances(x: Tensor, refs: Tensor) -> Tensor:
    squared: Tensor = torch.ops.siamcuda.squared_cdist(x, refs)
    return squared


def _contrastive(
    x: Tensor, labels: Tensor, ref: Any = None, ref_labels: Any = None, margin: float = 1.0,
    similar: int = 0, self_offset: int = -1, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    return reference.batch_contrastive_loss(
        x, labels, margin=margin, ref_embeddings=ref, ref_labels=ref_labels, reduction=reduction,
        self_offset=self_offset, cdist=_distances,
    )  # fmt: skip


def _chopra(
    x: Tensor, labels: Tensor, ref: Any = None, ref_labels: Any = None, q: float = 2.0,
    energy: str = "l2", similar: int = 0, self_offset: int = -1, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    return reference.batch_chopra_loss(
        x, labels, q=q, energy=energy, ref_embeddings=ref, ref_labels=ref_labels,
        reduction=reduction, self_offset=self_offset, cdist=_distances,
    )  # fmt: skip


def _triplet(
    x: Tensor, labels: Tensor, ref: Any = None, ref_labels: Any = None, margin: float = 0.2,
    mining: str = "all", squared: bool = True, soft: bool = False, self_offset: int = -1,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    if soft or mining in ("hard", "easy_positive"):
        return reference.batch_triplet_loss(
            x, labels, margin=margin, mining=mining, squared=squared, soft=soft, ref_embeddings=ref,
            ref_labels=ref_labels, reduction=reduction, self_offset=self_offset, cdist=_distances,
        )  # fmt: skip
    batch = reference.Batch(x, labels, ref, ref_labels, self_offset)
    s = _distances(batch.x, batch.refs)
    d = s if squared else reference.root(s)
    weights, terms, active = torch.zeros_like(d), [], []
    step = max(1, _CHUNK // max(d.shape[1] ** 2, 1))
    for a in range(0, d.shape[0], step):
        part = slice(a, a + step)
        leaf = d[part].detach().requires_grad_()
        values, term, act = reference.triplet_values(
            leaf, s[part], batch.genuine[part], batch.impostor[part], margin, mining, soft
        )
        weights[part] = torch.autograd.grad(values.sum(), leaf)[0]
        terms.append(term)
        active.append(act)
    values = torch.where(weights != 0, weights * d, torch.zeros_like(d)).sum(1)
    if not terms:
        return reference.finish(values, values.sum(), values.sum(), reduction)
    all_terms = torch.cat(terms)
    values = batch.poison(values, all_terms > 0)
    return reference.finish(values, all_terms.sum(), torch.cat(active).sum(), reduction)


def register(library: str) -> torch.library.Library:
    """Gives ``NAME_composite`` of a library its implementation; keep what is returned."""
    found = torch.library.Library(library, "IMPL")
    for name, function in (
        ("batch_contrastive_loss", _contrastive),
        ("batch_chopra_loss", _chopra),
        ("batch_triplet_loss", _triplet),
    ):
        found.impl(name + "_composite", function, "CompositeImplicitAutograd")
    return found
