"""Runs the recipes, keeps what they found in docs/recipes/, and writes docs/recipes.md of it.

    python -m bench.recipes                 every recipe, on its real data
    python -m bench.recipes hadsell-mnist   this one
    python -m bench.recipes --quick         seconds each, into a temporary folder; keeps nothing
    python -m bench.recipes --page          write the page again of what is kept
    python -m bench.recipes --check         say whether the page is that of what is kept

A run that was interrupted goes on; a finished one is run again with --fresh alone.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import results
from siamcuda.train import recipes

KEPT = results.ROOT / "docs" / "recipes"
PAGE = results.ROOT / "docs" / "recipes.md"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="by default, all")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.page or asked.check:
        return show(asked.check)
    names = asked.recipes or list(recipes.summaries())
    loaded = {name: recipes.load(name) for name in names}
    if asked.quick:
        with tempfile.TemporaryDirectory() as folder:
            for name, recipe in loaded.items():
                started = time.perf_counter()
                metrics = recipe.run(dataclasses.replace(recipe.quick, out=Path(folder) / name))
                missing = [p for p in recipe.pictures if not (Path(folder) / name / p).is_file()]
                if missing:
                    print(f"{name}: left no {', '.join(missing)}", file=sys.stderr)
                    return 1
                spent = time.perf_counter() - started
                print(f"{name}: {recipe.headline(metrics)} ({spent:.0f} s, a trial)", flush=True)
        return 0
    for name, recipe in loaded.items():
        print(f"== {name}", flush=True)
        keep(name, recipe, asked.fresh)
    return show(check=False)


def keep(name: str, recipe: Any, fresh: bool) -> None:
    """Run a recipe as it is, and copy what it found; not one whose data only its user has."""
    if recipe.given:
        print("no data here: it runs on data that is given", flush=True)
        return
    options = dataclasses.replace(recipe.options(), fresh=fresh)
    metrics = recipe.run(options)
    print(recipe.table(metrics), flush=True)
    folder = KEPT / name
    folder.mkdir(parents=True, exist_ok=True)
    record = {"machine": results.cpu(), "commit": results.commit(), "metrics": metrics}
    (folder / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    for picture in recipe.pictures:
        shutil.copyfile(options.out / picture, folder / picture)


def show(check: bool) -> int:
    """Write the page, or compare it."""
    text = page()
    if not check:
        PAGE.write_text(text)
    elif not PAGE.is_file() or PAGE.read_text() != text:
        print(f"{PAGE.name} is not of what is kept: python -m bench.recipes --page")
        return 1
    return 0


def page() -> str:
    """docs/recipes.md."""
    rows, sections = [], []
    for name, summary in recipes.summaries().items():
        recipe, path = recipes.load(name), KEPT / name / "record.json"
        what, *told = description(name)
        data = " --data FOLDER" if recipe.given else ""
        parts = [f"## {name}", what, *told, f"```\n$ siamcuda train {name}{data}"]
        figure, seconds = "no data here" if recipe.given else "not run", ""
        if path.is_file():
            record = json.loads(path.read_text())
            metrics = record["metrics"]
            figure, seconds = recipe.headline(metrics), f"{metrics['seconds_training']:.0f}"
            parts[-1] += f"\n{recipe.table(metrics)}\n```"
            versions = ", ".join(f"{k} {v}" for k, v in metrics["versions"].items())
            parts.append(f"Commit {record['commit']}, {versions}, {record['machine']}.")
            parts += [f"![{text}](recipes/{name}/{p})\n\n{text}." for p, text in
                      recipe.pictures.items()]  # fmt: skip
        else:
            parts[-1] += "\n```"
        cell = summary.replace("|", "\\|")  # |f1 - f2| is not three cells
        rows.append(f"| [{name}](#{name}) | {cell} | {recipe.data} | {figure} | {seconds} |")
        sections.append("\n\n".join(parts))
    head = """# Recipes

One for each published system, run by the command that it shows on the data that it names; a \
section says what of them is made up. One without a figure waits for a folder of yours. `make \
recipes` runs them all and writes this page, `make recipes ARGS=--quick` tries them in seconds. \
Seconds are those of training, on a shared machine. Settings are options: \
`siamcuda train RECIPE --help`.

| recipe | system | data | figure | seconds |
|---|---|---|---|---|
"""
    return head + "\n".join(rows) + "\n\n" + "\n\n".join(sections) + "\n"


def description(name: str) -> list[str]:
    """Paragraphs of a recipe's docstring, each on one line."""
    source = results.ROOT / "siamcuda" / "train" / "recipes" / f"{name.replace('-', '_')}.py"
    text = ast.get_docstring(ast.parse(source.read_bytes())) or ""
    return [" ".join(paragraph.split()).replace("``", "`") for paragraph in text.split("\n\n")]


if __name__ == "__main__":
    sys.exit(main())
