"""The two doors to the operators: siamcuda._C for eager calls, torch.ops for compiled ones.

Both end at the same dispatcher and the same C++; the first skips the parsing of arguments in
Python, the second is what torch.compile and torch.export can trace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from siamcuda import _C

#: The extension module that eager calls go to. The tests put the emulated CUDA build here.
extension: Any = _C

#: The namespace in torch.ops that compiled calls go to.
namespace: Any = torch.ops.siamcuda


def call(name: str, *arguments: Any) -> Any:
    """Calls operator ``name`` with positional arguments through the door that fits."""
    if torch.compiler.is_compiling():
        return getattr(namespace, name)(*arguments)
    try:
        return getattr(extension, name)(*arguments)
    except TypeError as error:
        _explain(name, arguments, error)
        raise


def _explain(name: str, arguments: tuple[Any, ...], error: TypeError) -> None:
    """Names the argument that pybind11 refused; does nothing where torch raised the error."""
    if "incompatible function arguments" not in str(error):
        return
    schema = getattr(namespace, name.removeprefix("_")).default._schema
    for value, expected in zip(arguments, schema.arguments, strict=False):
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
