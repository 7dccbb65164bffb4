"""bench/instructions.py: what it compares, and that what it counts is what is on record."""

from __future__ import annotations

import json
import shutil

import pytest

from bench import instructions
from bench.results import BenchError


def test_a_case_may_take_a_little_more_and_any_amount_less() -> None:
    recorded = {"one": 1000, "two": 1000}
    assert instructions.compare({"one": 1030, "two": 10}, recorded) == []
    [said] = instructions.compare({"one": 1031, "two": 1000}, recorded)
    assert said == "one: 1,031 instructions, 1,000 on record (+3.1 %, 3 % are allowed)"


def test_cases_are_those_on_record() -> None:
    said = instructions.compare({"one": 1, "new": 1}, {"one": 1, "old": 1})
    assert said == ["new: counted, but not on record", "old: on record, but not counted"]
    recorded = json.loads(instructions.RECORD.read_text())
    assert recorded["cases"].keys() == instructions.cases().keys()


@pytest.mark.parametrize("name", list(instructions.cases()))
def test_every_case_runs(name: str) -> None:
    call, operations = instructions.cases()[name]
    call()
    assert operations >= 0


def test_what_cannot_be_counted_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(BenchError, match="no valgrind"):
        instructions.count()
    assert instructions.main([]) == 2
    assert "no valgrind" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "status"), [(1.0, 0), (1.04, 1)])
def test_the_exit_status_says_what_was_found(
    more: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = json.loads(instructions.RECORD.read_text())
    found = {name: int(count * more) for name, count in recorded["cases"].items()}
    monkeypatch.setattr(instructions, "count", lambda: found)
    monkeypatch.setattr(instructions, "compiler", lambda: recorded["compiler"])
    assert instructions.main([]) == status
    monkeypatch.setattr(instructions, "compiler", lambda: "another")
    assert instructions.main([]) == 2
