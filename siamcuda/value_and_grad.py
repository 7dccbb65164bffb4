"""Each loss with its gradients from a single pass over the inputs, without an autograd graph.

Every function of :mod:`siamcuda.functional` has a twin of the same name and options here, which
returns ``loss, (gradient of each input, ...)``. For training loops that call backward by hand, and
wherever memory traffic counts: each input is read once and each gradient written once.
``reduction="none"`` gives the gradients of the sum. ``grad_scale`` multiplies the gradients, not
the loss (a loss scaler, or one over the number of accumulation steps). Nothing returned requires
grad.

Example:
    >>> import torch, siamcuda
    >>> x1, x2 = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.3, 0.4]])
    >>> loss, (g1, g2) = siamcuda.value_and_grad.contrastive_loss(x1, x2, torch.tensor([0]))
    >>> loss, g1
    (tensor(0.2500), tensor([[-0.6000, -0.8000]]))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from siamcuda import _ops, functional

ValueAndGradients = tuple[Tensor, tuple[Tensor, ...]]

__all__ = [name for name in functional.__all__ if name != "LossStats"]


def _twin(name: str) -> Callable[..., ValueAndGradients]:
    function = getattr(functional, name)
    operator = name + "_value_and_grad"
    parameters = inspect.signature(function).parameters
    positional = sum(p.kind is not inspect.Parameter.KEYWORD_ONLY for p in parameters.values())

    def twin(*tensors: Any, **options: Any) -> ValueAndGradients:
        if len(tensors) > positional:
            raise TypeError(
                f"{name} takes {positional} positional arguments, got {len(tensors)}; "
                "options go by keyword"
            )
        loss, *gradients = _ops.call(operator, *tensors, **options)
        return loss, tuple(gradients)

    added = [p for p in parameters.values() if p.name not in ("reduction", "return_stats")]
    for option, default in (
        ("reduction", parameters["reduction"].default if "reduction" in parameters else "none"),
        ("grad_scale", 1.0),
    ):
        kind = inspect.Parameter.KEYWORD_ONLY
        added.append(inspect.Parameter(option, kind, default=default))
    vars(twin)["__signature__"] = inspect.Signature(added)  # what help() and inspect show
    twin.__name__ = twin.__qualname__ = name
    twin.__doc__ = f":func:`siamcuda.{name}` and its gradients, in one pass and without a graph."
    return twin


globals().update({name: _twin(name) for name in __all__})


# Nothing to find at run time: this tells a type checker what the twins are.
def __getattr__(name: str) -> Callable[..., ValueAndGradients]:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
