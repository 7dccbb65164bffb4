"""``siamcuda train RECIPE``: any recipe, by the one protocol of :mod:`siamcuda.train.recipes`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siamcuda._commands.recipes import listing
from siamcuda.train import recipes
from siamcuda.train.errors import InputError

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Train the recipe that comes first, with the options that follow."""
    if not arguments or arguments[0].startswith("-"):
        parser = argparse.ArgumentParser(
            prog="siamcuda train",
            description="Train a published system; RECIPE --help lists its options.",
            epilog=f"recipes:\n{listing()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("recipe", metavar="RECIPE")
        parser.parse_args(arguments[:1])
        parser.error("RECIPE comes first, its options after it")
    from siamcuda._commands.parsing import Training, parse
    from siamcuda.train.placement import rank_and_ranks

    name, *rest = arguments
    recipe = recipes.load(name)
    # Which class of options it is shows when the recipe is loaded: no name that mypy could know.
    options: Any = Training[recipe.options]  # type: ignore[name-defined]
    asked = parse(options, f"train {name}", rest, recipe.options.__doc__)
    if asked.resume:
        _check_resumable(asked.recipe.out, asked.recipe.fresh)
    metrics = recipe.run(asked.recipe)
    if rank_and_ranks()[0] == 0:
        print(recipe.table(metrics))
        print(f"everything is in {asked.recipe.out}")


def _check_resumable(out: Path, fresh: bool) -> None:
    if fresh:
        raise InputError("resume: --resume goes on from what --fresh would forget")
    if not (recipes.is_run(out) or any(map(recipes.is_run, recipes.parts(out)))):
        raise InputError(f"resume: there is no run in {out} to go on from")
