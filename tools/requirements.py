"""Prints what an extra of pyproject.toml asks for, one requirement a line, extras of our own
resolved: lets the tools be installed before, and without, building the extension.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib  # type: ignore[import-not-found, no-redef]

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(extra: str, extras: dict[str, list[str]]) -> list[str]:
    """The requirements of ``extra``, each once, in order."""
    if extra not in extras:
        raise SystemExit(f"pyproject.toml has no extra {extra!r}; it has {', '.join(extras)}")
    found: dict[str, None] = {}
    for item in extras[extra]:
        own = re.fullmatch(r"siamcuda\[([\w,-]+)\]", item)
        for requirement in (
            [r for name in own[1].split(",") for r in requirements(name, extras)] if own else [item]
        ):
            found.setdefault(requirement)
    return list(found)


if __name__ == "__main__":
    table = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    for name in sys.argv[1:]:
        print("\n".join(requirements(name, table)))
