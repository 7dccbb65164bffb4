"""Recipes: one file for each published system, from data to metrics.

A module here that sets ``RECIPE`` is a recipe; its name is the file's, with hyphens, and its
summary the first line of its docstring::

    RECIPE = Recipe(
        options=ChopraFaces, run=run, table=table, headline=headline,
        data="AT&T faces", pictures={"roc.png": "Verification of people never seen"},
        quick=ChopraFaces(train=TrainConfig(epochs=2, device="cpu")),
    )

Names and summaries are read from the files. A recipe is imported, and what it is made of with it,
when it is loaded.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siamcuda.train.errors import InputError

__all__ = ["CONFIG", "Recipe", "is_run", "load", "parts", "summaries"]

#: Settings of a run; a folder that has them belongs to one.
CONFIG = "config.json"


@dataclass(frozen=True)
class Recipe:
    """What a command needs of a recipe.

    Args:
        options: a frozen dataclass, every field with a default; ``out: Path`` is the run folder,
            ``fresh: bool`` forgets what an earlier run left there.
        run: does what the options ask and returns what ``metrics.json`` holds. It raises InputError
            before any work for settings that cannot work and for a folder of other settings, goes
            on from a run that was interrupted, and keeps one that is finished. It writes
            ``config.json``, with the recipe's name as ``"recipe"``, before it trains, and
            :class:`siamcuda.train.siamese.Siamese` and ``metrics.json`` in the end.
        table: the metrics as text, beside published ones where there are any.
        headline: the figure that counts, in one line: "EER 1.2 %, TAR 98.1 % at FAR 1 %".
        data: what it is learned from and tested on, in a few words.
        pictures: file in the run folder -> its caption; those that docs/recipes.md shows.
        quick: options of a run of seconds on data that a package carries: it shows that
            everything works, and its figures mean nothing.
        given: runs on data that the user has, and nothing else has: no figure of it is kept.
    """

    options: type[Any]
    run: Callable[[Any], dict[str, Any]]
    table: Callable[[dict[str, Any]], str]
    headline: Callable[[dict[str, Any]], str]
    data: str
    pictures: Mapping[str, str]
    quick: Any
    given: bool = False


def summaries() -> dict[str, str]:
    """Name and one line of every recipe, sorted; nothing is imported.

    Example:
        >>> "chopra-faces" in summaries()
        True
    """
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        module = ast.parse(path.read_bytes())
        if "RECIPE" in _assigned(module):
            lines = (ast.get_docstring(module) or "").splitlines() or [""]
            found[path.stem.replace("_", "-")] = lines[0]
    return found


def _assigned(module: ast.Module) -> set[str]:
    """Names that a module sets at its top level, annotated or not."""
    targets: list[ast.expr] = []
    for node in module.body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    return {target.id for target in targets if isinstance(target, ast.Name)}


def load(name: str) -> Recipe:
    """Import the recipe ``name``; InputError suggests another where there is none."""
    known = list(summaries())
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"recipe: no such recipe: {name}; {hint}")
    recipe: Recipe = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").RECIPE
    return recipe


def is_run(folder: Path) -> bool:
    """Whether a recipe began a run in ``folder``."""
    return (folder / CONFIG).is_file()


def parts(folder: Path) -> list[Path]:
    """Sub-folders that are runs of their own, as the splits of a run are; sorted."""
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
