"""The two doors to the operators: siamcuda._C for eager calls, torch.ops for compiled ones.

Both end at the same dispatcher and the same C++; the first skips the parsing of arguments in
Python, the second is what torch.compile and torch.export can trace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from siamcuda import _C, _composite, _vmap

_vmap.register("siamcuda")
_composites = _composite.register("siamcuda")

#: The extension module that eager calls go to. The tests put the emulated CUDA build here.
extension: Any = _C

#: The namespace in torch.ops that compiled calls go to.
namespace: Any = torch.ops.siamcuda


def call(name: str, *arguments: Any, **options: Any) -> Any:
    """Calls operator ``name`` through the door that fits."""
    if torch.compiler.is_compiling():
        return getattr(namespace, name)(*arguments, **options)
    try:
        return getattr(extension, name)(*arguments, **options)
    except TypeError as error:
        _explain(name, arguments, options, error)
        raise
    except RuntimeError as error:
        if "functorch transforms" in str(error):
            raise RuntimeError(
                f"{name}: torch.func.grad, vjp and jacrev can't differentiate an operator whose "
                "autograd is written in C++; use torch.autograd.grad, or the function of the same "
                "name in siamcuda.reference (torch.vmap alone works)"
            ) from error
        raise


def _explain(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any], error: TypeError
) -> None:
    """Names the argument that pybind11 refused; does nothing where torch raised the error."""
    if "incompatible function arguments" not in str(error):
        return
    expected_arguments = getattr(namespace, name).default._schema.arguments
    given = {a.name: value for a, value in zip(expected_arguments, arguments, strict=False)}
    for option in options:
        if option in given or option not in {a.name for a in expected_arguments}:
            raise TypeError(f"{name}: unexpected argument {option!r}") from None
    given.update(options)
    for expected in expected_arguments:
        if expected.name not in given:
            if expected.has_default_value():
                continue
            raise TypeError(f"{name}: {expected.name} is missing") from None
        value = given[expected.name]
        kind = str(expected.type)
        ok = {
            "Tensor": isinstance(value, Tensor),
            "float": isinstance(value, (int, float)) and not isinstance(value, bool),
            "int": isinstance(value, int),
            "bool": isinstance(value, bool),
            "str": isinstance(value, str),
        }.get(kind, True)
        if not ok:
            raise TypeError(
                f"{name}: {expected.name} must be a {kind}, got {type(value).__name__}"
            ) from None
