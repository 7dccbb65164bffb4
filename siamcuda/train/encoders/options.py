"""Options as a command line or a JSON file gives them, as the encoder's signature wants them."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from siamcuda.train.errors import InputError

__all__ = ["did_you_mean", "parameters_of", "read_options"]

#: What build_encoder gives by itself.
RESERVED = ("self", "embedding", "inputs", "normalize")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the closest known name as a question, or nothing where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def parameters_of(encoder: str, factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of ``factory`` by name; InputError where Python cannot tell them."""
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise InputError(f"encoder: {encoder!r} does not say what it takes: {error}") from error


def read_options(
    encoder: str, factory: Callable[..., Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Check ``options`` against the arguments of ``factory`` and convert them to their types."""
    parameters = parameters_of(encoder, factory)
    kinds = {parameter.kind for parameter in parameters.values()}
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and name not in RESERVED
    }
    made = factory.__init__ if inspect.isclass(factory) else factory
    try:
        hints = typing.get_type_hints(made)
    except (NameError, TypeError):  # somebody else's annotations need not resolve
        hints = {}
    converted = {}
    for name, value in options.items():
        if name in RESERVED:
            raise InputError(f"options.{name}: this is a setting of the encoder itself")
        if name not in named:
            if inspect.Parameter.VAR_KEYWORD in kinds:
                converted[name] = value
                continue
            known = f"it has {', '.join(named)}" if named else "it has none"
            raise InputError(
                f"options.{name}: {encoder} has no such option{did_you_mean(name, named)} ({known})"
            )
        hint = hints.get(name)
        if hint is None and named[name].default not in (None, inspect.Parameter.empty):
            hint = type(named[name].default)
        converted[name] = _convert(name, value, hint)
    return converted


def _convert(name: str, value: Any, hint: Any) -> Any:
    """``value`` as ``hint``, which is bool, int, float, str or tuple[int, ...]; others pass."""
    try:
        if hint == tuple[int, ...]:
            texts = value.split(",") if isinstance(value, str) else [value]
            return tuple(_convert(name, text, int) for text in texts)
        if hint is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if hint is int and not isinstance(value, bool | float):
            return int(value)
        if hint is float and not isinstance(value, bool):
            return float(value)
        if hint is str and isinstance(value, str):
            return value
    except (KeyError, ValueError):
        pass
    else:
        if hint not in (int, float, str):
            return value
    wanted = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}.get(
        hint, "integers such as 32,64,128"
    )
    raise InputError(f"options.{name}: {wanted} is expected, got {value!r}")
