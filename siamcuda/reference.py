"""Plain PyTorch twins of every operation: the oracle of the tests, the baseline of the benchmarks.

Each function has the signature and the conventions of its namesake in :mod:`siamcuda`. They are
written for clarity, differentiate any number of times through PyTorch's own autograd, and run on
any device and dtype that PyTorch has. Run them on float64 inputs to get the exact answer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "batch_chopra_loss",
    "batch_contrastive_loss",
    "batch_triplet_loss",
    "chopra_loss",
    "contrastive_loss",
    "cosine_similarity",
    "hamming",
    "knn",
    "range_search",
    "squared_cdist",
    "squared_l2",
    "triplet_loss",
    "triplet_margin_loss",
]

#: 4 ln 2 = 2.7726 as Chopra, Hadsell and LeCun (2005) round it: both branches meet at E = Q/2.
CHOPRA_DECAY = 2.77


def root(s: Tensor) -> Tensor:
    """sqrt(s) whose gradient at 0 is 0 instead of infinity."""
    zero = s == 0
    return torch.where(zero, 0.0 * s, torch.where(zero, torch.ones_like(s), s).sqrt())


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        return values.sum() / max(values.numel(), 1)
    if reduction == "mean_active":
        return values.sum() / (values != 0).sum().clamp(min=1)
    raise ValueError(f"reduction must be 'mean', 'mean_active', 'sum' or 'none', got {reduction!r}")


def _impostor(target: Tensor, shape: torch.Size, similar_label: int) -> Tensor:
    """True where the pair is dissimilar, after checking the labels."""
    if target.shape != shape:
        raise ValueError(f"target must have shape {tuple(shape)}, got {tuple(target.shape)}")
    if similar_label not in (0, 1):
        raise ValueError(f"similar_label must be 0 or 1, got {similar_label}")
    if not bool(((target == 0) | (target == 1)).all()):
        raise ValueError("target must hold only 0 and 1")
    return target != similar_label


def squared_l2(x1: Tensor, x2: Tensor) -> Tensor:
    """Σ(x1−x2)² over the last dimension."""
    difference = x1 - x2
    return (difference * difference).sum(-1)


def cosine_similarity(x1: Tensor, x2: Tensor) -> Tensor:
    """<x1, x2> / (‖x1‖‖x2‖) over the last dimension; 0 where either vector is zero."""
    x1, x2 = torch.broadcast_tensors(x1, x2)
    n1, n2 = (x1 * x1).sum(-1), (x2 * x2).sum(-1)
    product = (x1 * x2).sum(-1)
    zero = ((n1 == 0) | (n2 == 0)) & ~product.isnan()
    one = torch.ones_like(n1)
    norms = torch.where(zero, one, n1).sqrt() * torch.where(zero, one, n2).sqrt()
    return torch.where(zero, torch.zeros_like(n1), product / norms)


def hamming(x1: Tensor, x2: Tensor) -> Tensor:
    """Bits that differ between packed rows, over the last dimension."""
    differ = x1.bitwise_xor(x2).unsqueeze(-1)
    bits = torch.arange(8, dtype=torch.uint8, device=x1.device)
    return differ.bitwise_right_shift(bits).bitwise_and(1).sum((-2, -1), dtype=torch.int32)


def contrastive_loss(
    x1: Tensor,
    x2: Tensor,
    target: Tensor,
    *,
    margin: float = 1.0,
    similar_label: int = 0,
    reduction: str = "mean",
) -> Tensor:
    """(1−y)·D² + y·max(0, m−D)² with D = ‖x1−x2‖₂ (Hadsell, Chopra, LeCun 2006, without the ½)."""
    s = squared_l2(x1, x2)
    impostor = _impostor(target, s.shape, similar_label)
    hinge = (margin - root(s)).clamp(min=0)
    return _reduce(torch.where(impostor, hinge * hinge, s), reduction)


def chopra_loss(
    x1: Tensor,
    x2: Tensor,
    target: Tensor,
    *,
    q: float = 2.0,
    energy: str = "l2",
    similar_label: int = 0,
    reduction: str = "mean",
) -> Tensor:
    """(1−y)·(2/Q)·E² + y·2Q·exp(−2.77·E/Q) with E = ‖x1−x2‖₁ or ₂ (Chopra et al. 2005)."""
    if energy not in ("l1", "l2"):
        raise ValueError(f"energy must be 'l1' or 'l2', got {energy!r}")
    if energy == "l1":
        e = (x1 - x2).abs().sum(-1)
        genuine = (2 / q) * e * e
    else:
        s = squared_l2(x1, x2)
        e = root(s)
        genuine = (2 / q) * s
    impostor = _impostor(target, e.shape, similar_label)
    return _reduce(
        torch.where(impostor, 2 * q * torch.exp(-CHOPRA_DECAY * e / q), genuine), reduction
    )


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 0.2,
    squared: bool = True,
    soft: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """max(0, d(a,p) − d(a,n) + α), or softplus(d(a,p) − d(a,n)) when ``soft``."""
    d_ap, d_an = squared_l2(anchor, positive), squared_l2(anchor, negative)
    if not squared:
        d_ap, d_an = root(d_ap), root(d_an)
    d_ap, d_an = torch.broadcast_tensors(d_ap, d_an)
    if soft:
        return _reduce(torch.nn.functional.softplus(d_ap - d_an, threshold=40), reduction)
    value = d_ap + margin - d_an
    active = ~(value <= 0)  # NaN counts as active, so that it is seen
    return _reduce(torch.where(active, value, torch.zeros_like(value)), reduction)


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """torch.nn.functional.triplet_margin_loss itself."""
    return torch.nn.functional.triplet_margin_loss(
        anchor, positive, negative, margin=margin, p=p, eps=eps, swap=swap, reduction=reduction
    )


# --- over a batch: by the matrix of distances, triplets by the cube of their values ---------------


def squared_cdist(x1: Tensor, x2: Tensor) -> Tensor:
    """Σ(x1[i]−x2[j])² of all pairs, from the differences."""
    return squared_l2(x1.unsqueeze(-2), x2.unsqueeze(-3))


class Batch:
    """Who meets whom: rows of a batch against the columns they are compared with."""

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        self_offset: int = -1,
    ) -> None:
        self.joined = ref_embeddings is None or ref_labels is None
        refs = embeddings if ref_embeddings is None else ref_embeddings
        ref_classes = labels if ref_labels is None else ref_labels
        rows = torch.arange(len(labels), device=labels.device).unsqueeze(1)
        columns = torch.arange(len(ref_classes), device=labels.device)
        offset = 0 if self.joined else self_offset
        met = columns != rows + offset if offset >= 0 else torch.ones_like(columns == rows)
        #: A pair of a batch gives half to each end.
        self.share = 0.5 if self.joined or self_offset >= 0 else 1.0
        same = labels.unsqueeze(1) == ref_classes
        # A row with NaN is nobody's partner; its own losses are NaN. A row with inf takes part in
        # the values, but gives no other row a gradient.
        self.spoilt = embeddings.isnan().any(1)
        partner = ~refs.isnan().any(1)
        keep = refs if bool(refs.isfinite().all()) else self._without_gradient(refs)
        left = torch.where(self.spoilt.unsqueeze(1), torch.zeros_like(embeddings), embeddings)
        right = torch.where(partner.unsqueeze(1), keep, torch.zeros_like(refs))
        self.x, self.refs = left, right
        self.genuine = same & met & partner
        self.impostor = ~same & met & partner
        self.met = met
        self.embeddings = embeddings

    @staticmethod
    def _without_gradient(refs: Tensor) -> Tensor:
        finite = refs.isfinite().all(1, keepdim=True)
        return torch.where(finite, refs, refs.detach())

    def poison(self, values: Tensor, has_terms: Tensor) -> Tensor:
        """NaN, in value and gradient, for anchors that hold NaN and have terms."""
        rows = (self.spoilt & has_terms).nonzero()[:, 0]
        if len(rows) == 0:
            return values
        return values.index_add(0, rows, self.embeddings[rows].sum(1) * float("nan"))


def finish(values: Tensor, terms: Tensor, active: Tensor, reduction: str) -> Tensor:
    """Reduces the values of the anchors."""
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        return values.sum() / terms.clamp(min=1)
    if reduction == "mean_active":
        return values.sum() / active.clamp(min=1)
    raise ValueError(f"reduction must be 'mean', 'mean_active', 'sum' or 'none', got {reduction!r}")


def _pairs(batch: Batch, genuine: Tensor, impostor: Tensor, reduction: str) -> Tensor:
    """Reduces (B, R) values of similar and of dissimilar pairs."""
    zero = torch.zeros_like(genuine)
    values = torch.where(batch.genuine, genuine, torch.where(batch.impostor, impostor, zero))
    anchors = batch.share * values.sum(1)
    spoilt = batch.poison(anchors, batch.met.any(1))
    terms, active = batch.share * batch.met.sum(), batch.share * (values != 0).sum()
    return finish(spoilt, terms, active, reduction)


def batch_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 1.0,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    reduction: str = "mean",
    self_offset: int = -1,
    cdist: Callable[[Tensor, Tensor], Tensor] = squared_cdist,
) -> Tensor:
    """The contrastive loss of all pairs of a batch, from a B×B matrix."""
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, self_offset)
    s = cdist(batch.x, batch.refs)
    hinge = (margin - root(s)).clamp(min=0)
    return _pairs(batch, s, hinge * hinge, reduction)


def batch_chopra_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    q: float = 2.0,
    energy: str = "l2",
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    reduction: str = "mean",
    self_offset: int = -1,
    cdist: Callable[[Tensor, Tensor], Tensor] = squared_cdist,
) -> Tensor:
    """Chopra's loss of all pairs of a batch, from a B×B matrix."""
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, self_offset)
    if energy == "l1":
        e = (batch.x.unsqueeze(1) - batch.refs).abs().sum(-1)
        genuine = (2 / q) * e * e
    else:
        s = cdist(batch.x, batch.refs)
        e = root(s)
        genuine = (2 / q) * s
    return _pairs(batch, genuine, 2 * q * torch.exp(-CHOPRA_DECAY * e / q), reduction)


def _pick(s: Tensor, candidates: Tensor, farthest: bool) -> tuple[Tensor, Tensor]:
    """The candidate of each row that is farthest or nearest, lowest index first; and if any is."""
    worst = -1.0 if farthest else float("inf")
    masked = torch.where(candidates, s, torch.full_like(s, worst))
    best = masked.max(1, keepdim=True).values if farthest else masked.min(1, keepdim=True).values
    hit = candidates & (s == best)
    return hit.to(torch.uint8).argmax(1), candidates.any(1)


def triplet_values(
    d: Tensor, s: Tensor, genuine: Tensor, impostor: Tensor, margin: float, mining: str, soft: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Values of every anchor, its number of terms, and how many have a loss.

    ``d`` are distances ``(B, R)`` in the loss's unit, ``s`` squared ones, which decide what is
    mined; ``genuine`` and ``impostor`` say what is a positive and a negative.
    """
    genuine, impostor, s = genuine & ~s.isnan(), impostor & ~s.isnan(), s.detach()
    if mining in ("hard", "easy_positive"):
        p, has_p = _pick(s, genuine, farthest=mining == "hard")
        n, has_n = _pick(s, impostor, farthest=False)
        valid = has_p & has_n
        d_ap, d_an = d.gather(1, p.unsqueeze(1))[:, 0], d.gather(1, n.unsqueeze(1))[:, 0]
        value, active = _triplet_terms(d_ap, d_an, margin, soft, valid)
        return value, valid.to(torch.int64), active.to(torch.int64)
    if mining == "semihard":
        farther = impostor.unsqueeze(1) & (s.unsqueeze(1) > s.unsqueeze(2))  # [B, p, n]
        spread = s.unsqueeze(1).expand_as(farther)
        masked = torch.where(farther, spread, torch.full_like(spread, float("inf")))
        nearest = (farther & (masked == masked.min(2, keepdim=True).values)).to(torch.uint8)
        far, _ = _pick(s, impostor, farthest=True)
        n = torch.where(farther.any(2), nearest.argmax(2), far.unsqueeze(1))  # [B, p]
        valid = genuine & impostor.any(1, keepdim=True)
        value, active = _triplet_terms(d, d.gather(1, n), margin, soft, valid)
        return value.sum(1), valid.sum(1), active.sum(1)
    if mining == "all":
        valid = genuine.unsqueeze(2) & impostor.unsqueeze(1)
        value, active = _triplet_terms(d.unsqueeze(2), d.unsqueeze(1), margin, soft, valid)
        return value.sum((1, 2)), valid.sum((1, 2)), active.sum((1, 2))
    raise ValueError(f"mining must be 'all', 'hard', 'semihard' or 'easy_positive', got {mining!r}")


def _triplet_terms(
    d_ap: Tensor, d_an: Tensor, margin: float, soft: bool, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """Values of terms, 0 where not valid, and which have a loss."""
    if soft:
        value = torch.nn.functional.softplus(d_ap - d_an, threshold=40)
    else:
        value = d_ap + margin - d_an
        value = torch.where(~(value <= 0), value, torch.zeros_like(value))
    value = torch.where(valid, value, torch.zeros_like(value))
    return value, value != 0


def batch_triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.2,
    mining: str = "all",
    squared: bool = True,
    soft: bool = False,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    reduction: str = "mean",
    self_offset: int = -1,
    cdist: Callable[[Tensor, Tensor], Tensor] = squared_cdist,
) -> Tensor:
    """The triplets of a batch, each written out: B×R×R for ``all`` and ``semihard``."""
    batch = Batch(embeddings, labels, ref_embeddings, ref_labels, self_offset)
    if batch.refs.shape[0] == 0 or len(labels) == 0:
        zero = batch.x.sum(1) * 0 + batch.refs.sum() * 0
        return finish(zero, zero.new_zeros(()), zero.new_zeros(()), reduction)
    s = cdist(batch.x, batch.refs)
    d = s if squared else root(s)
    values, terms, active = triplet_values(
        d, s, batch.genuine, batch.impostor, margin, mining, soft
    )
    return finish(batch.poison(values, terms > 0), terms.sum(), active.sum(), reduction)


# --- search: all distances, sorted ----------------------------------------------------------------


def _search_distances(queries: Tensor, gallery: Tensor, metric: str) -> Tensor:
    if metric == "hamming":
        return hamming(queries.unsqueeze(1), gallery)
    if metric == "cosine":
        return 1 - cosine_similarity(queries.unsqueeze(1), gallery.unsqueeze(0))
    squared = squared_cdist(queries, gallery)
    return squared.sqrt() if metric == "euclidean" else squared


def knn(
    queries: Tensor, gallery: Tensor, k: int, metric: str = "sqeuclidean"
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of a gallery for each query: distances and rows, (Q, k) each."""
    distances = _search_distances(queries, gallery, metric)
    values, rows = distances.sort(dim=1, stable=True)
    missing = max(0, k - len(gallery))
    none = float("inf") if values.dtype.is_floating_point else torch.iinfo(values.dtype).max
    return (
        torch.nn.functional.pad(values[:, :k], (0, missing), value=none),
        torch.nn.functional.pad(rows[:, :k], (0, missing), value=-1),
    )


def range_search(
    queries: Tensor, gallery: Tensor, radius: float, metric: str = "sqeuclidean"
) -> tuple[Tensor, Tensor, Tensor]:
    """All rows of a gallery nearer than a radius: limits (Q + 1,), distances, rows."""
    values, rows = _search_distances(queries, gallery, metric).sort(dim=1, stable=True)
    inside = values < radius
    lims = torch.nn.functional.pad(inside.sum(1).cumsum(0), (1, 0))
    return lims, values[inside], rows[inside]
