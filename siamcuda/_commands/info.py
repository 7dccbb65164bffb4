"""``siamcuda info``: what was built and what is in use."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import siamcuda

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Print :func:`siamcuda.build_info`. By argparse: this is asked where no extra is there yet."""
    parser = argparse.ArgumentParser(prog="siamcuda info", description="Say what was built.")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    facts = siamcuda.build_info()
    if parser.parse_args(arguments).json:
        print(json.dumps(facts, indent=2))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        print(f"{name:<{width}}  {text}")
