"""The benchmark of training: peers learn the same, parts make up a step, tables hold what was read.

Nothing here looks at how long anything took.
"""

from __future__ import annotations

import pytest
import torch

for _extra in ("PIL", "accelerate", "safetensors"):
    pytest.importorskip(_extra)

from bench import harness, table, table_training, training  # noqa: E402
from bench.results import BenchError  # noqa: E402


@pytest.mark.parametrize("objective", training.OBJECTIVES)
@pytest.mark.parametrize("kind", ["linear", "fast"])
def test_both_learn_what_float64_says(objective: str, kind: str) -> None:
    task = training.make(objective, kind, 32, parts=True)
    families = [peer.family for peer in harness.check(task)]
    plain = [training.REFERENCE, training.PRODUCT][: 1 if objective == "drawn pairs" else 2]
    assert families == ["ours", *plain, *training.PARTS]
    loss, gradients = task.expected()
    assert float(loss) > 0
    assert gradients.dtype == torch.float64
    assert float(gradients.abs().max()) > 0
    for peer in task.peers[1 + len(plain) :]:
        peer.step()


def test_losses_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = training.make("all pairs", "linear", 32, parts=False)
    monkeypatch.setitem(training.OBJECTIVES, "all pairs", training.OBJECTIVES["drawn pairs"])
    with pytest.raises(BenchError, match="result 0 is wrong"):
        harness.check(task)


def test_steps_go_on_with_new_batches() -> None:
    made = training.Training(training.system("all pairs", "linear", 64, "fused"))
    before = [p.detach().clone() for p in made.run.parameters]
    for _ in range(len(made.system.sampler) + 1):  # into the next epoch
        made.step()
    first = made.first[1]
    assert not torch.equal(first, made.gradients())
    assert all(not torch.equal(a, b) for a, b in zip(before, made.run.parameters, strict=True))
    made.step()
    assert made.first[1] is first


def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "MOST_DIFFERENCES", 16)
    task = training.make("hard triplets", "linear", 32, parts=False)
    assert [peer.family for peer in task.peers] == ["ours", training.PRODUCT]


def test_all_triplets_of_many_rows_have_no_peer() -> None:
    rows = training.MOST_TRIPLETS + 64
    task = training.make("all triplets", "linear", rows, parts=True)
    families = {peer.family for peer in task.peers}
    assert families == {"ours", *training.PARTS} - {"plain loss"}
    assert harness.check(task)  # float64 says that ours is right


def test_cases_have_names_of_their_own() -> None:
    names = [case.name for case in training.cases()]
    assert len(set(names)) == len(names)
    assert len(list(training.cases(quick=True))) == len(training.OBJECTIVES) + 1


def test_tables() -> None:
    rows = []
    for case in training.cases():
        families = ["ours", training.REFERENCE, training.PRODUCT, *training.PARTS]
        if "triplets" in case.op and case.rows > training.MOST_TRIPLETS:
            families = ["ours"]
        shares = [1, 2.5, 1.5, 0.1, 0.6, 0.2, 1.7, 0.05]
        timings = [
            harness.Timing(harness.Peer(name, "v", lambda: None, None), 1, [2e-3 * share] * 3,
                           busy=1.9)
            for name, share in zip(families, shares, strict=False)
        ]  # fmt: skip
        memory = {id(t.peer): 10.0 * (i + 1) for i, t in enumerate(timings)}
        rows += harness._rows(case, timings, memory, "warm", 2, {}, harness.QUICK)
    texts = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    steps = table_training.SECTIONS["training"](texts)
    assert "| all pairs, fast | 256 | 2 | 500 | 10 | 2.50x | 20 | 1.50x | 30 | 1.90 |" in steps
    assert "| all triplets, linear | 4096 | 2 | 500 | 10 |  |  |  |  | 1.90 |" in steps
    parts = table_training.SECTIONS["training_parts"](texts)
    line = "| all pairs, fast | 256 | 2 | 10.0 % | 60.0 % | 20.0 % | 170.0 % | 5.0 % | 5.0 % |"
    assert line in parts
    assert "| all triplets, fast | 1024" not in parts
    for make in table_training.SECTIONS.values():
        assert make([]) == table_training.NOTHING
    assert table_training.SECTIONS.items() <= table.SECTIONS.items()
