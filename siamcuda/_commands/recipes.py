"""``siamcuda recipes``: what can be trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from siamcuda.train import recipes

__all__ = ["listing", "main"]


def main(arguments: Sequence[str]) -> None:
    """Print every recipe with a line on it."""
    parser = argparse.ArgumentParser(prog="siamcuda recipes", description="List the recipes.")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    if parser.parse_args(arguments).json:
        print(json.dumps(recipes.summaries(), indent=2))
    else:
        print(listing())


def listing() -> str:
    """Names and summaries, a line each."""
    found = recipes.summaries()
    width = max(map(len, found), default=0)
    return "\n".join(f"{name:<{width}}  {summary}" for name, summary in found.items())
