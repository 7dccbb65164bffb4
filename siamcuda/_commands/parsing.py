"""Arguments of a command to the dataclass of its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

import tyro

__all__ = ["Training", "parse"]

T = TypeVar("T")


@dataclass(frozen=True)
class Training(Generic[T]):
    """The options of a recipe, and what ``siamcuda train`` adds to those of any."""

    recipe: Annotated[T, tyro.conf.arg(name="")]
    # there must be a run in --out to go on from; without this one is begun where there is none
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def parse(
    options: type[T], command: str, arguments: Sequence[str], description: str | None = None
) -> T:
    """Parse ``arguments``, or print help or what is wrong with them and raise SystemExit."""
    return tyro.cli(
        options, prog=f"siamcuda {command}", args=list(arguments), description=description
    )
