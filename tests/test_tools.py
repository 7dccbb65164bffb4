"""tools/gpu_check.py and its driver, with a pretended GPU and pretended results."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import BATCH_CASES, ONE_EACH

ROOT = Path(__file__).resolve().parents[1]
README = "# name\n\n<!-- hardware:begin -->\nold\n<!-- hardware:end -->\ntail\n"
MACHINE = {
    "gpu": "NVIDIA Pretend 100 (80GB)", "capability": "9.0", "driver": "580.1", "torch": "2.14",
    "cuda": "13.0", "siamcuda": "0.1.0", "cuda_architectures": ["9.0"],
    "commit": "0123456789abcdef", "modified": False,
}  # fmt: skip


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load("gpu_check")


def record(date: str = "2030-01-02", status: str = "passed", **changes: Any) -> dict[str, Any]:
    steps = [
        {"name": name, "status": status, "seconds": 1.0, "command": "c", "detail": ""}
        for name in ("pytest -m gpu", "memcheck")
    ]
    return {"schema": 1, "date": date, **MACHINE, "steps": steps} | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "hardware"
    path.mkdir()
    return path


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(README)
    return path


def run(tool: ModuleType, mode: str, folder: Path, readme: Path) -> int:
    return tool.main([mode, "--results", str(folder), "--file", str(readme)])  # type: ignore[no-any-return]


def test_no_gpu_runs_nothing(
    tool: ModuleType,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(tool, "run_step", lambda *a, **k: pytest.fail("ran something"))
    assert tool.main(["--results", str(folder)]) == 0
    assert "no GPU: nothing was run" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_gpu_without_kernels_is_an_error(
    tool: ModuleType,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import siamcuda

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(siamcuda, "build_info", lambda: {"cuda": False})
    assert tool.main(["--results", str(folder)]) == 2
    assert "built without CUDA" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.fixture
def steps(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two parts of a pretended run: ``first`` passes, ``second`` does what the test puts there."""
    outcome: dict[str, Any] = {"second": tool.Step("m", "passed", 1.0, "c", "d")}

    def second() -> Any:
        if isinstance(outcome["second"], BaseException):
            raise outcome["second"]
        yield outcome["second"]

    first = tool.Step("pytest -m gpu", "passed", 1.0, "c", "")
    parts = {"first": (lambda: [first], (first.name,)), "second": (second, ("m",))}
    monkeypatch.setattr(tool, "STEPS", parts)
    monkeypatch.setattr(tool, "describe_machine", lambda: dict(MACHINE))
    return outcome


@pytest.mark.parametrize(("status", "code"), [("passed", 0), ("failed", 1), ("skipped", 1)])
def test_results_are_written(
    tool: ModuleType, folder: Path, steps: dict[str, Any], status: str, code: int
) -> None:
    steps["second"] = tool.Step("m", status, 1.0, "c", "d")
    assert tool.main(["--results", str(folder)]) == code
    [path] = folder.iterdir()
    assert path.name.startswith("nvidia-pretend-100-80gb-20")
    written = json.loads(path.read_text())
    assert written["gpu"] == MACHINE["gpu"]
    assert [step["status"] for step in written["steps"]] == ["passed", status]
    assert tool.read_results(folder) == [written]


def test_a_run_that_is_cut_off_leaves_what_it_found(
    tool: ModuleType, folder: Path, steps: dict[str, Any]
) -> None:
    steps["second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        tool.main(["--results", str(folder)])
    [written] = tool.read_results(folder)
    assert [step["status"] for step in written["steps"]] == ["passed", "skipped"]
    assert "cut off" in written["steps"][1]["detail"]


def test_steps_are_chosen_and_earlier_ones_kept(
    tool: ModuleType,
    folder: Path,
    steps: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def found(choice: str) -> list[str]:
        tool.main(["--results", str(folder), "--steps", choice])
        [written] = tool.read_results(folder)
        return [f"{step['status']} {step['detail']}" for step in written["steps"]]

    assert found("first") == ["passed ", "skipped not asked for"]
    assert found("second") == ["passed ", "passed d"]
    # Of another commit, or of a tree with changes, nothing is kept.
    for change in ({"commit": "fedcba"}, {"modified": True}, {"modified": True}):
        monkeypatch.setattr(tool, "describe_machine", lambda c=change: {**MACHINE, **c})
        assert found("second") == ["skipped not asked for", "passed d"]
    assert tool.main(["--results", str(folder), "--steps", "first,third"]) == 2
    assert "'third' is not one of first, second" in capsys.readouterr().err


def test_steps_of_a_run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {}

    def fake(name: str, command: list[str], environment: object = None) -> Any:
        commands[name] = command[command.index("-m") + 1 :] if "-m" in command else command
        return tool.Step(name, "passed", 0.0, "", "")

    monkeypatch.setattr(tool, "run_step", fake)
    monkeypatch.setattr(tool, "find_sanitizer", lambda: "/cuda/compute-sanitizer")
    for part, names in tool.STEPS.values():
        assert {step.name for step in part()} == set(names)
    assert set(commands) == set(tool.LIMITS)
    assert all(commands[name][-1] == "tools/gpu_driver.py" for name in tool.SANITIZERS)
    assert (ROOT / "tools" / "gpu_driver.py").is_file()
    assert commands["bench --device cuda"] == [
        "bench", "--device", "cuda", "--time-limit", "480"
    ]  # fmt: skip
    for spec, workers in ((None, False), (object(), True)):
        monkeypatch.setattr(tool.importlib.util, "find_spec", lambda _, spec=spec: spec)
        list(tool.suite())
        assert ("-n" in commands["pytest -m gpu"]) == workers
    monkeypatch.setattr(tool, "find_sanitizer", lambda: None)
    assert {step.status for step in tool.sanitizers()} == {"skipped"}


def test_commit_of_a_tree_without_git(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import siamcuda

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "G")
    built = {"cuda": True, "version": "0", "cuda_architectures": ["9.0"]}
    monkeypatch.setattr(siamcuda, "build_info", lambda: built)
    monkeypatch.setenv("SIAMCUDA_COMMIT", "fedcba")
    assert tool.describe_machine()["commit"] != "fedcba"
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    assert tool.describe_machine()["commit"] == "fedcba"
    monkeypatch.delenv("SIAMCUDA_COMMIT")
    assert tool.describe_machine()["commit"] == "unknown"


def test_failed_step_keeps_its_output(tool: ModuleType) -> None:
    script = "import sys; print('what went wrong'); sys.exit(3)"
    step = tool.run_step("x", [sys.executable, "-c", script])
    assert (step.status, step.detail) == ("failed", "what went wrong")
    assert str(Path(sys.executable).parent) not in step.command


def test_slow_step_is_stopped_with_what_it_started(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tool.LIMITS, "x", 1.5)
    start = time.monotonic()
    step = tool.run_step("x", ["/bin/sh", "-c", "echo begun; sleep 60 & sleep 60"])
    assert time.monotonic() - start < 30
    assert (step.status, step.detail) == ("failed", "stopped after its limit of 1.5 s\nbegun")


def test_children_find_the_package(tool: ModuleType) -> None:
    script = "import os; print(os.environ['PYTHONPATH'].split(os.pathsep)[0])"
    assert tool.run_step("x", [sys.executable, "-c", script]).detail == str(ROOT)


def test_readme_without_results(tool: ModuleType, folder: Path, readme: Path) -> None:
    assert run(tool, "--check", folder, readme) == 1
    assert readme.read_text() == README
    assert run(tool, "--readme", folder, readme) == 0
    text = readme.read_text()
    assert "No kernel has run on a GPU yet" in text
    assert "old" not in text
    assert text.startswith("# name\n\n<!-- hardware:begin -->\n")
    assert text.endswith("<!-- hardware:end -->\ntail\n")
    assert run(tool, "--check", folder, readme) == 0


def test_readme_says_what_the_results_say(tool: ModuleType, folder: Path, readme: Path) -> None:
    (folder / "a.json").write_text(json.dumps(record("2030-01-02", "failed")))
    (folder / "b.json").write_text(json.dumps(record("2030-02-03", "passed", modified=True)))
    (folder / "c.json").write_text(json.dumps(record(gpu="Other", status="skipped")))
    assert run(tool, "--readme", folder, readme) == 0
    text = readme.read_text()
    assert "No kernel has run" not in text
    assert "Pretend 100 (80GB) (compute capability 9.0, driver 580.1), 2030-02-03" in text
    assert "commit 0123456789 with local changes. passed: pytest -m gpu, memcheck." in text
    assert "2030-01-02, commit 0123456789. skipped: pytest -m gpu, memcheck." in text
    assert "failed" not in text  # superseded
    assert run(tool, "--check", folder, readme) == 0
    (folder / "d.json").write_text(json.dumps(record("2030-03-04", "failed")))
    assert run(tool, "--check", folder, readme) == 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"schema": 1}', json.dumps(record(schema=2)), json.dumps(record("soon")),
     json.dumps(record(status="fine"))],
)  # fmt: skip
def test_broken_result_is_named(
    tool: ModuleType, folder: Path, readme: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.json").write_text(text)
    assert run(tool, "--readme", folder, readme) == 2
    assert "broken.json" in capsys.readouterr().err
    assert readme.read_text() == README


@pytest.mark.parametrize("text", ["none", README + README, README.replace("begin", "x")])
def test_markers_are_needed(tool: ModuleType, folder: Path, readme: Path, text: str) -> None:
    readme.write_text(text)
    assert run(tool, "--readme", folder, readme) == 2
    assert readme.read_text() == text


def test_committed_readme_is_current(tool: ModuleType) -> None:
    assert tool.main(["--check"]) == 0


def test_driver_runs_every_operator(capsys: pytest.CaptureFixture[str]) -> None:
    driver = load("gpu_driver")
    assert driver.main(["--device", "cpu"]) == 0
    names = {case.name for case in (*ONE_EACH, *BATCH_CASES)} | {"squared_cdist", "verification"}
    assert f"of {len(names)} operators on cpu" in capsys.readouterr().out
