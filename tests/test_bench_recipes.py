"""bench/recipes.py: what it runs, keeps and writes; with pretended recipes, but for the page."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

for _extra in ("PIL", "accelerate", "matplotlib", "safetensors", "tensorboard", "tqdm"):
    pytest.importorskip(_extra)

from bench import recipes as tool
from siamcuda.train import recipes


@dataclass(frozen=True)
class Options:
    out: Path = Path("runs/pretended")
    fresh: bool = False
    epochs: int = 9


def run(options: Options) -> dict[str, Any]:
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "map.png").write_bytes(b"png of %d" % options.epochs)
    return {"error": options.epochs, "seconds_training": 3.2, "versions": {"siamcuda": "0.1.0"}}


def pretended(given: bool = False, pictures: tuple[str, ...] = ("map.png",)) -> recipes.Recipe:
    return recipes.Recipe(
        options=Options, run=run, table=lambda found: f"wrong: {found['error']} | all",
        headline=lambda found: f"{found['error']} wrong", data="made up",
        pictures=dict.fromkeys(pictures, "A map"), quick=Options(epochs=1), given=given,
    )  # fmt: skip


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, "KEPT", tmp_path / "recipes")
    monkeypatch.setattr(tool, "PAGE", tmp_path / "recipes.md")
    monkeypatch.setattr(recipes, "summaries", lambda: {"mnist-full": "Pretended."})
    monkeypatch.setattr(recipes, "load", lambda name: pretended())
    return tmp_path / "recipes"


def test_a_run_is_kept_with_its_pictures_and_shown(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tool.main([]) == 0
    record = json.loads((kept / "mnist-full" / "record.json").read_text())
    assert record["metrics"]["error"] == 9
    assert {"machine", "commit"} < record.keys()
    assert (kept / "mnist-full" / "map.png").read_bytes() == b"png of 9"
    page = tool.PAGE.read_text()
    assert "| [mnist-full](#mnist-full) | Pretended. | made up | 9 wrong | 3 |" in page
    assert "![A map](recipes/mnist-full/map.png)" in page
    assert tool.main(["--check"]) == 0
    tool.PAGE.write_text(page + "\n")
    assert tool.main(["--check"]) == 1


def test_a_trial_keeps_nothing(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--quick"]) == 0
    assert "mnist-full: 1 wrong" in capsys.readouterr().out
    assert not kept.exists()
    assert not tool.PAGE.exists()


def test_a_picture_that_is_not_there_is_a_failure(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes, "load", lambda name: pretended(pictures=("map.png", "no.png")))
    assert tool.main(["--quick"]) == 1
    assert "mnist-full: left no no.png" in capsys.readouterr().err


def test_what_runs_on_data_of_its_user_is_passed_over(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "load", lambda name: pretended(given=True))
    assert tool.main([]) == 0
    assert not kept.exists()
    assert "no data here" in tool.PAGE.read_text()


def test_the_page_is_that_of_what_is_kept() -> None:
    assert tool.main(["--check"]) == 0
    for record in tool.KEPT.glob("*/record.json"):
        recipe = recipes.load(record.parent.name)
        pictures = {path.name for path in record.parent.glob("*.png")}
        assert pictures == set(recipe.pictures)
