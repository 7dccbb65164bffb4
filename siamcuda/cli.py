"""The command ``siamcuda``: a table of commands, and what becomes of their errors.

Each command is a module of ``siamcuda._commands`` with ``main(arguments)``; it is imported, with
the extras that it needs, when it is asked for. ``info`` and ``recipes`` need the core alone.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

__all__ = ["main"]


class _Command(NamedTuple):
    name: str  # of the module too
    summary: str
    extra: str = "train"  # brings what it imports
    interrupted: str = "nothing is left half written"


_COMMANDS = (
    _Command("info", "say what was built: versions, SIMD levels, CUDA", ""),
    _Command("recipes", "list the published systems that can be trained", ""),
    _Command(
        "train", "train a published system end to end",
        interrupted="the same command goes on from here",
    ),
    _Command("embed", "images, or texts, to the embeddings of a trained run"),
    _Command("compare", "say whether two images, or texts, show the same"),
    _Command("search", "nearest entries of a gallery, exactly: vectors or images", "report"),
    _Command("evaluate", "verify all pairs of embeddings or of images: a report", "report"),
    _Command("export", "a run's encoder as ONNX or torch.export", "export"),
    _Command(
        "bench", "measure this machine against the peers: python -m bench", "",
        interrupted="--resume goes on from here",
    ),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 2 cannot be done as asked, 130 Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {command.name: command for command in _COMMANDS}
    if not arguments or arguments[0] not in commands:
        _explain(arguments)
    return _run(commands[arguments[0]], arguments[1:])


def _explain(arguments: Sequence[str]) -> NoReturn:
    """Print the help that was asked for, or refuse what is no command."""
    parser = argparse.ArgumentParser(prog="siamcuda", description="Siamese networks, made fast.")
    listed = parser.add_subparsers(title="commands", required=True, metavar="command")
    for command in _COMMANDS:
        listed.add_parser(command.name, help=command.summary, add_help=False)
    if arguments and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], [c.name for c in _COMMANDS], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.error(f"no such command: {arguments[0]}{hint}")
    parser.parse_args(arguments)
    raise AssertionError("argparse ends the process where no command is given")


def _run(command: _Command, arguments: Sequence[str]) -> int:
    try:
        importlib.import_module(f"siamcuda._commands.{command.name}").main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads, as `head` does, has enough. What is left must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package == "siamcuda":
            raise
        needs = f"siamcuda {command.name} needs {package}"
        print(f"{needs}: pip install 'siamcuda[{command.extra}]'", file=sys.stderr)
        return 2
    except ValueError as error:
        from siamcuda.train.errors import InputError  # which info has no use for

        if not isinstance(error, InputError):
            raise
        print(f"siamcuda: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"siamcuda: interrupted; {command.interrupted}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
