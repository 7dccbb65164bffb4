"""Fused losses for Siamese networks and metric learning, on any CPU and on CUDA GPUs.

>>> import torch, siamcuda
>>> x1, x2 = torch.zeros(4, 8, requires_grad=True), torch.ones(4, 8)
>>> loss = siamcuda.contrastive_loss(x1, x2, torch.tensor([0, 0, 1, 1]), margin=1.0)
>>> loss.backward()
>>> loss.item()
4.0
"""

from siamcuda import (
    batch,
    bits,
    distributed,
    functional,
    gallery,
    grad_cache,
    nn,
    reference,
    value_and_grad,
    verification,
)
from siamcuda._info import __version__, build_info
from siamcuda.batch import *
from siamcuda.bits import *
from siamcuda.functional import *
from siamcuda.gallery import *
from siamcuda.grad_cache import *

__all__ = [
    "__version__",
    "batch",
    "bits",
    "build_info",
    "distributed",
    "functional",
    "gallery",
    "grad_cache",
    "nn",
    "reference",
    "value_and_grad",
    "verification",
]
__all__ += functional.__all__ + batch.__all__ + bits.__all__ + gallery.__all__ + grad_cache.__all__
