"""The command ``siamcuda``.

``info`` needs the core alone; the others import their extras when they are asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

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
    commands.add_parser("evaluate", add_help=False, help="verify all pairs of embeddings; a report")
    commands.add_parser("search", add_help=False, help="nearest entries of a gallery, exactly")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["evaluate"]:
        return _evaluate(arguments[1:])
    if arguments[:1] == ["search"]:
        return _search(arguments[1:])
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
    def parts() -> tuple[Any, Callable[[Any], None]]:
        from siamcuda.train.recipes import chopra_faces

        def run(options: chopra_faces.ChopraFaces) -> None:
            metrics = chopra_faces.run(options)
            print(chopra_faces.table(metrics))
            print(f"everything is in {options.out}")

        return chopra_faces.ChopraFaces, run

    again = "; the same command goes on from here"
    return _run("train chopra-faces", "demo", parts, arguments, again, dotted=True)


def _evaluate(arguments: Sequence[str]) -> int:
    def parts() -> tuple[Any, Callable[[Any], None]]:
        from siamcuda._commands import evaluate

        return evaluate.Evaluate, evaluate.run

    return _run("evaluate", "report", parts, arguments)


def _search(arguments: Sequence[str]) -> int:
    def parts() -> tuple[Any, Callable[[Any], None]]:
        from siamcuda._commands import search

        return search.Search, search.run

    return _run("search", "report", parts, arguments)


def _run(
    command: str,
    extra: str,
    parts: Callable[[], tuple[Any, Callable[[Any], None]]],
    arguments: Sequence[str],
    interrupted: str = "; nothing is left half written",
    *,
    dotted: bool = False,
) -> int:
    """Parse the options of a command and run it; ``parts`` imports both."""
    from siamcuda.train.errors import InputError

    try:
        import tyro

        options_type, run = parts()
        options = tyro.cli(
            options_type,
            prog=f"siamcuda {command}",
            args=list(arguments),
            config=() if dotted else (tyro.conf.OmitArgPrefixes,),
        )
        run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads, as `head` does, has enough. What is left must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("siamcuda"):
            raise
        needs = f"siamcuda {command.split()[0]} needs {error.name}"
        print(f"{needs}: pip install 'siamcuda[{extra}]'", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"siamcuda: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"siamcuda: interrupted{interrupted}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
