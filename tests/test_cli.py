"""The command line: what it prints, what it returns, what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import siamcuda
from siamcuda.cli import main


def test_info_says_what_build_info_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(siamcuda.build_info()))
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for name in siamcuda.build_info():
        assert name in text


def test_info_needs_the_core_alone() -> None:
    script = (
        "import sys\n"
        "for name in ('tyro', 'tqdm', 'matplotlib', 'PIL', 'safetensors'):\n"
        "    sys.modules[name] = None\n"  # importing one of these now fails
        "from siamcuda.cli import main\n"
        "assert main(['info']) == 0\n"
        "assert not {'siamcuda.train', 'siamcuda.report'} & set(sys.modules)\n"
        "assert main(['evaluate', 'a.npy', 'b.npy']) == main(['search', 'a.npy', 'b.npy']) == 2\n"
        "sys.exit(main(['train', 'chopra-faces']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "siamcuda train needs tyro: pip install" in done.stderr
    for command in ("evaluate", "search"):
        assert f"siamcuda {command} needs tyro: pip install 'siamcuda[report]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [[], ["nothing"], ["train"], ["train", "--fresh"], ["recipes", "-x"], ["info", "-x"]],
)
def test_unknown_commands_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: siamcuda" in capsys.readouterr().err


def test_the_nearest_command_recipe_or_option_is_suggested(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tyro")
    with pytest.raises(SystemExit) as stop:
        main(["serch"])
    assert stop.value.code == 2
    assert "no such command: serch; did you mean search?" in capsys.readouterr().err
    assert main(["train", "chopra-face"]) == 2
    err = capsys.readouterr().err
    assert err == (
        "siamcuda: error: recipe: no such recipe: chopra-face; did you mean chopra-faces?\n"
    )
    assert main(["train", "xyz"]) == 2
    err = capsys.readouterr().err
    assert "there are " in err
    assert "chopra-faces" in err
    with pytest.raises(SystemExit) as stop:
        main(["train", "chopra-faces", "--train.epoch", "3"])
    assert stop.value.code == 2
    assert "--train.epochs" in capsys.readouterr().err


def test_recipes_are_found_without_importing_them() -> None:
    script = (
        "import sys\n"
        "for name in ('tyro', 'PIL', 'safetensors', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from siamcuda.cli import main\n"
        "assert main(['recipes']) == 0\n"
        "try:\n"
        "    main(['train', '--help'])\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "assert not {'siamcuda.train.trainer', 'siamcuda.report'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]  # in columns
    line = "chopra-faces Face verification as Chopra, Hadsell and LeCun (2005) test it"
    assert sum(found.startswith(line) for found in lines) == 2


def test_every_recipe_keeps_to_the_protocol() -> None:
    pytest.importorskip("tyro")
    from siamcuda.train import recipes

    for name, summary in recipes.summaries().items():
        assert summary.endswith(".") and len(summary) <= 100, name  # noqa: PT018
        recipe = recipes.load(name)
        options = recipe.options()  # every field has a default
        assert isinstance(options.out, Path)
        assert options.fresh is False
        assert str(options.out) == f"runs/{name}"
        assert isinstance(recipe.quick, recipe.options)
        recipe.quick.check()
        assert recipe.pictures
        assert recipe.data


def test_resume_wants_a_run_to_go_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tyro")
    command = ["train", "chopra-faces", "--resume", "--out", str(tmp_path), "--data", "none"]
    assert main(command) == 2
    assert f"resume: there is no run in {tmp_path} to go on from" in capsys.readouterr().err
    (tmp_path / "split-01").mkdir()
    (tmp_path / "split-01/config.json").write_text("{}")
    assert main(command) == 2
    assert "error: data: no such folder" in capsys.readouterr().err
    assert main([*command, "--fresh"]) == 2
    assert "resume: --resume goes on from what --fresh would forget" in capsys.readouterr().err


def test_train_explains_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tyro")
    with pytest.raises(SystemExit) as stop:
        main(["train", "chopra-faces", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--out",
        "--splits",
        "--objective.q",
        "--train.epochs",
        "--encoder.name",
        "--augment.rotate",
    ):
        assert option in text


def test_train_prints_the_table_beside_the_papers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tyro")
    from siamcuda.train.recipes import chopra_faces

    figures = {"eer": 0.012, "auc": 0.99, "frr_at_far": {"0.1": 0.0, "0.075": 0.04, "0.05": 0.08}}
    metrics = {"pair": figures, "enrolled": figures, "splits": 1, "seconds": 12.3}
    metrics |= {"people_train": 35, "people_test": 5}
    asked: list[chopra_faces.ChopraFaces] = []

    def runs(instead: Callable[[chopra_faces.ChopraFaces], Any]) -> None:
        monkeypatch.setattr(chopra_faces, "RECIPE", replace(chopra_faces.RECIPE, run=instead))

    runs(lambda options: asked.append(options) or metrics)
    command = [
        "train",
        "chopra-faces",
        "--out",
        str(tmp_path),
        "--objective.q",
        "1.5",
        "--splits",
        "4",
    ]
    assert main([*command, "--augment.rotate", "3"]) == 0
    assert (asked[0].objective.q, asked[0].splits, asked[0].augment.rotate) == (1.5, 4, 3.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[-3:] == ["0.0", "1.0", "1.0"]
    assert lines[3].split()[-5:] == ["0.0", "4.0", "8.0", "1.2", "0.9900"]

    def interrupted(options: chopra_faces.ChopraFaces) -> None:
        raise KeyboardInterrupt

    runs(interrupted)
    assert main(command) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_train_says_what_is_wrong_and_returns_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tyro")
    out = tmp_path / "run"
    command = ["train", "chopra-faces", "--out", str(out), "--data", str(tmp_path / "none")]
    assert main(command) == 2
    assert "siamcuda: error: data: no such folder" in capsys.readouterr().err
    assert main([*command, "--objective.q", "nan"]) == 2
    assert "siamcuda: error: q: must be finite" in capsys.readouterr().err
    assert not out.exists()


def test_bench_runs_the_benchmarks_of_the_sources(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--suite", "nothing"])
    assert stop.value.code == 2
    assert "invalid choice: 'nothing'" in capfd.readouterr().err
    assert main(["bench", "--help"]) == 0
    assert "python -m bench" in capfd.readouterr().out
    monkeypatch.setattr("siamcuda.__file__", str(tmp_path / "siamcuda" / "__init__.py"))
    assert main(["bench"]) == 2
    assert "siamcuda: error: bench: there are no benchmarks beside" in capfd.readouterr().err
