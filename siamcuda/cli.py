"""The command ``siamcuda``.

``info`` needs the core alone; ``train`` imports its extra when it is asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; return the exit status: 0 done, 2 cannot be done as asked."""
    parser = argparse.ArgumentParser(prog="siamcuda", description="Siamese networks, made fast.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    info = commands.add_parser("info", help="say what was built: versions, SIMD levels, CUDA")
    info.add_argument("--json", action="store_true", help="one JSON object instead of text")
    trainer = commands.add_parser("train", help="train a published system end to end")
    recipes = trainer.add_subparsers(dest="recipe", required=True, metavar="recipe")
    recipes.add_parser("chopra-faces", add_help=False, help="Chopra et al. 2005, AT&T faces")
    known, rest = parser.parse_known_args(arguments)
    if known.command == "train":
        return _train(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return _info(as_json=known.json)


def _info(as_json: bool) -> int:
    import siamcuda

    facts = siamcuda.build_info()
    if as_json:
        print(json.dumps(facts, indent=2))
        return 0
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        print(f"{name:<{width}}  {text}")
    return 0


def _train(arguments: Sequence[str]) -> int:
    try:
        import tyro

        from siamcuda.train.errors import InputError
        from siamcuda.train.recipes import chopra_faces
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("siamcuda"):
            raise
        print(f"siamcuda train needs {error.name}: pip install 'siamcuda[demo]'", file=sys.stderr)
        return 2
    options = tyro.cli(
        chopra_faces.ChopraFaces,
        prog="siamcuda train chopra-faces",
        args=list(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        metrics = chopra_faces.run(options)
    except InputError as error:
        print(f"siamcuda: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("siamcuda: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(chopra_faces.table(metrics))
    print(f"everything is in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
