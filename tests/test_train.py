"""The trainer: whatever interrupts a run, it ends with the same bits, and nothing is lost."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from torch import Tensor, nn

from siamcuda.train import trainer
from siamcuda.train.config import TrainConfig
from siamcuda.train.errors import InputError
from siamcuda.train.objectives import AllPairs, DrawnPairs, HardPairs, PairScores, Triplets
from siamcuda.train.samplers import PairSampler, PKSampler
from siamcuda.train.state import EpochStats
from siamcuda.train.storage import load_tensors, save_tensors
from siamcuda.train.system import Outcome, System


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here can tell whether a file has reached a disk; test_demo_parts asks for it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in expected)


class Stop(trainer.Listener):
    """Sends a signal to the process after a number of steps."""

    def __init__(self, after: int, number: int = signal.SIGINT) -> None:
        self.left, self.number = after, number

    def stepped(self, epoch: int, step: int, loss: Any) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)


class Heard(trainer.Listener):
    def __init__(self) -> None:
        self.epochs: list[EpochStats] = []
        self.steps = 0

    def stepped(self, epoch: int, step: int, loss: Any) -> None:
        self.steps += 1
        assert math.isfinite(loss())

    def ended(self, stats: EpochStats) -> None:
        self.epochs.append(stats)


class Headed(nn.Module):
    """An objective with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(
        self, outputs: Tensor, labels: Tensor, generator: torch.Generator, tell: bool
    ) -> Outcome:
        return Triplets(margin=0.5)(outputs * self.scale, labels, generator, tell)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05},
    "step": {"schedule": "step", "step_every": 1, "clip": 0.1},
    "bf16": {"precision": "bf16"},
    "cached": {"chunk": 5, "model": "without batch norm"},
    "validated": {"validate": True},
    "workers": {"workers": 2},
    "pairs": {"objective": HardPairs(hard=0.5)},
    "head": {"objective": Headed},
    "seldom": {"save_every": 3},
}


def _options(variant: str) -> dict[str, Any]:
    options = dict(VARIANTS[variant])
    if options.get("objective") is Headed:
        options["objective"] = Headed()
    if "model" in options:
        options["model"] = training.network(norm=False)
    return options


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_interrupted_run_ends_with_the_same_bits(variant: str, tmp_path: Path) -> None:
    expected = training.train(**_options(variant))
    few = (2, 3, 7) if variant == "workers" else (1, 2, 3, 4, 6, 8, 9)
    for after in few:
        state = tmp_path / f"{after}.safetensors"
        kind = signal.SIGTERM if after % 2 else signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            training.train(state, Stop(after, kind), **_options(variant))
        heard = Heard()
        assert same(training.train(state, heard, **_options(variant)), expected)
        assert heard.steps == 9 - after
        assert [stats.epoch for stats in heard.epochs] == [1, 2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_example_that_cannot_be_read_is_named(workers: int) -> None:
    class Broken(training.Points):
        def load(self, rows: Tensor) -> Tensor:
            if 3 in rows.tolist():
                raise InputError("data: cannot read the image 3.png")
            return super().load(rows)

    made = System(**{**vars(training.system()), "examples": Broken()})
    with pytest.raises(InputError, match=r"^data: cannot read the image 3\.png$"):
        trainer.fit(made, TrainConfig(epochs=3, device="cpu", workers=workers))


def test_a_run_leaves_the_generators_and_handlers_of_its_process_alone() -> None:
    before = torch.get_rng_state(), signal.getsignal(signal.SIGINT)
    training.train()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert signal.getsignal(signal.SIGINT) is before[1]


def test_history_says_what_happened(tmp_path: Path) -> None:
    first, again = Heard(), Heard()
    state = tmp_path / "s.safetensors"
    training.train(state, first, validate=True)
    training.train(state, again, validate=True)  # everything is in the state
    assert again.steps == 0
    assert again.epochs == first.epochs
    for stats in first.epochs:
        assert stats.rows == 3 * 16
        assert stats.validation.keys() == {"eer", "other"}
        assert stats.figures.keys() == {"genuine", "impostor", "active"}
        assert 0 < stats.figures["genuine"] < stats.figures["impostor"] * 2
        assert 0 <= stats.figures["active"] <= 1
    assert first.epochs[-1].loss < first.epochs[0].loss


# --- kill -9 --------------------------------------------------------------------------------------


LONG: dict[str, Any] = {"epochs": 8, "validate": True, "batches": 6}


def _quick_processes() -> Any:
    """Processes that find torch imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training", "accelerate", "torch._dynamo"])
    with pytest.MonkeyPatch.context() as patch:  # the server looks nowhere else; others shall not
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context


def _victim(state: str) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda _: None  # a killed process loses nothing that it wrote
    training.train(Path(state), **LONG)


def test_kill_9_at_random_moments_loses_at_most_an_epoch(tmp_path: Path, one_thread: None) -> None:
    """Fifty times; each time what is on disk can be read and no finished epoch is gone."""
    context = _quick_processes()
    expected = training.train(**LONG)
    draw = random.Random(3)
    kills, finished, epochs = 0, 0, 0
    state = tmp_path / "state.safetensors"
    while kills < 50:
        process = context.Process(target=_victim, args=(str(state),))
        process.start()
        # The first kills fall before the first epoch is over, later ones anywhere.
        _wait_for_progress(state, process, epochs + draw.randrange(2), draw.random() * 0.05)
        process.kill()
        process.join()
        if state.exists():
            reached = _epochs(state)
            assert reached >= epochs, "a finished epoch is gone"
            epochs = reached
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        if epochs == LONG["epochs"]:
            finished += 1
            assert same(training.train(state, **LONG), expected)
            state.unlink()
            epochs = 0
    assert finished >= 2
    if state.exists():
        weights = training.train(state, **LONG)
        assert same(weights, expected)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The last bits follow the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _wait_for_progress(state: Path, process: Any, epochs: int, more: float) -> None:
    limit = time.monotonic() + 30
    while process.is_alive() and time.monotonic() < limit:
        if state.exists() and _epochs(state) >= epochs:
            break
        time.sleep(0.002)
    time.sleep(more)


def _epochs(state: Path) -> int:
    """Finished epochs of the file; it must be whole."""
    return len(json.loads(load_tensors(state)[1]["run"])["position"]["history"])


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        training.train(path, Stop(5), validate=True)
    return path


def _refused(path: Path, match: str, **options: Any) -> None:
    """The run is refused, and nothing was put into the model."""
    model = options.pop("model", None) or training.network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    content = path.read_bytes()
    with pytest.raises(InputError, match=match):
        training.train(path, model=model, validate=True, **options)
    assert same(model.state_dict(), before)
    assert path.read_bytes() == content


def test_a_broken_state_is_refused(state: Path) -> None:
    whole = state.read_bytes()
    draw = random.Random(1)
    for size in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        state.write_bytes(whole[:size])
        _refused(state, "broken")
    for _ in range(40):
        at = draw.randrange(len(whole))
        state.write_bytes(
            whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]
        )
        with pytest.raises(InputError, match=r"state\.safetensors"):
            training.train(state, validate=True)


def test_a_state_of_another_run_is_refused(state: Path) -> None:
    _refused(state, r"other settings \(train\)", learning_rate=0.1)
    _refused(state, "does not fit the encoder", model=training.network(norm=False))
    other = training.network()
    other[4] = nn.Linear(16, 5)
    _refused(state, "moments of parameter", model=other)


def test_a_full_disk_keeps_the_state_before(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        training.train(path, Stop(2))
    content = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(InputError, match=r"cannot write .* saved before is kept"):
            training.train(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert same(training.train(path), training.train())


# --- when it stops, and with what -----------------------------------------------------------------


def test_the_best_weights_are_kept_and_patience_ends() -> None:
    figures = iter([0.5, 0.2, 0.3, 0.25, 0.1])
    seen: list[dict[str, Tensor]] = []

    def validate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"eer": next(figures)}

    made = training.system()
    made = System(**{**vars(made), "validate": validate})
    fitted = trainer.fit(made, TrainConfig(epochs=5, patience=2, device="cpu"))
    assert len(fitted.history) == 4
    assert fitted.epoch == 2
    assert same(dict(made.model.state_dict()), seen[1])
    assert not made.model.training


def test_gradient_caching_and_batch_norm_do_not_go_together() -> None:
    with pytest.raises(InputError, match=r"chunk: .* BatchNorm1d \(1\)"):
        training.train(chunk=8)


def test_gradient_caching_gives_the_same_gradient() -> None:
    def trained(chunk: int) -> dict[str, Tensor]:
        model = training.network(dropout=0, norm=False)
        return training.train(model=model, chunk=chunk, optimizer="sgd", learning_rate=0.1)

    whole, parts = trained(0), trained(5)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", [AllPairs(), AllPairs("chopra"), Triplets(), HardPairs()])
def test_reference_losses_train_alike(objective: Any) -> None:
    def trained(losses: str) -> dict[str, Tensor]:
        chosen = type(objective)(**{**vars(objective), "losses": losses})
        return training.train(objective=chosen, optimizer="sgd", learning_rate=0.02)

    fused, reference = trained("fused"), trained("reference")
    for name, tensor in fused.items():
        torch.testing.assert_close(reference[name], tensor, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.05, 0.525, 1.0, 0.75, 0.25]),
        ("step", [0.05, 0.525, 1.0, 0.1, 0.01]),
        ("constant", [0.05, 0.525, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules(schedule: Any, expected: list[float]) -> None:
    config = TrainConfig(epochs=10, schedule=schedule, warm_up=0.1, step_every=4, step_factor=0.1)
    at = [0, 0.05, 0.1, 0.4, 0.8]
    if schedule == "cosine":
        at = [0, 0.05, 0.1, 0.4, 0.7]
    shares = [config.share_of_peak(p) for p in at]
    assert shares == pytest.approx(expected)


@pytest.mark.parametrize(
    ("setting", "value", "match"),
    [
        ("epochs", 0, "epochs: must be at least 1"),
        ("learning_rate", float("nan"), "learning_rate: must be finite"),
        ("weight_decay", -1.0, "weight_decay: must be finite and >= 0"),
        ("warm_up", 1.0, "warm_up: must lie in"),
        ("schedule", "linear", "schedule: 'linear' is none of"),
        ("precision", "fp8", "precision: 'fp8'"),
        ("precision", "fp16", "precision: fp16 needs a GPU"),
        ("device", "abacus", "device: 'abacus' is no device"),
        ("device", "meta", "device: 'meta'"),
        ("chunk", -1, "chunk: must be at least 0"),
    ],
)
def test_settings_that_cannot_work(setting: str, value: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        training.train(tmp_path / "s.safetensors", **{setting: value})
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_run_says_so() -> None:
    with pytest.raises(InputError, match=r"loss is (nan|inf) in epoch 1: lower learning_rate"):
        training.train(optimizer="sgd", learning_rate=1e30, warm_up=0.0, epochs=1, batches=9)


# --- samplers and objectives ----------------------------------------------------------------------


def test_ranks_share_the_batches_of_one_process() -> None:
    labels = torch.randint(7, (60,), generator=torch.Generator().manual_seed(1))

    def samplers(rank: int, ranks: int) -> list[Any]:
        return [
            PKSampler(labels, 5, 3, seed=2, rank=rank, ranks=ranks),
            PairSampler(labels, 9, seed=2, rank=rank, ranks=ranks),
        ]

    for alone, *shares in zip(samplers(0, 1), *(samplers(r, 3) for r in range(3)), strict=True):
        for epoch in (0, 4):
            whole = alone.epoch(epoch)
            parts = [share.epoch(epoch) for share in shares]
            assert len(whole) == len(alone) == len(parts[0])
            for batch, *of_ranks in zip(whole, *parts, strict=True):
                assert sorted(torch.cat(of_ranks).tolist()) == sorted(batch.tolist())


def test_pairs_are_half_genuine_and_cover_everything() -> None:
    labels = torch.tensor([3] * 5 + [1] * 2 + [8] + [0] * 4)
    sampler = PairSampler(labels, 40, seed=1, batches=50)
    drawn = sampler.epoch(0)
    assert [torch.equal(a, b) for a, b in zip(drawn, sampler.epoch(0), strict=True)] == [True] * 50
    assert not torch.equal(drawn[0], sampler.epoch(1)[0])
    assert torch.equal(drawn[7:9][1], drawn[8])
    kinds: dict[bool, set[tuple[int, int]]] = {True: set(), False: set()}
    for batch in drawn:
        left, right = batch.chunk(2)
        genuine = labels[left] == labels[right]
        assert int(genuine.sum()) == 20
        for i, j, same_class in zip(*(t.tolist() for t in (left, right, genuine)), strict=True):
            assert i != j
            kinds[same_class].add((i, j))
    everything = {(i, j) for i in range(12) for j in range(12) if i != j}
    assert kinds[True] == {(i, j) for i, j in everything if labels[i] == labels[j]}
    assert kinds[False] == {(i, j) for i, j in everything if labels[i] != labels[j]}


@pytest.mark.parametrize("sampler", [PKSampler, PairSampler])
def test_labels_that_cannot_be_learned_from(sampler: Any) -> None:
    more = (3, 0) if sampler is PKSampler else (0,)
    with pytest.raises(InputError, match="1 class"):
        sampler(torch.zeros(5, dtype=torch.int64), 2, *more)
    with pytest.raises(InputError, match="no class has two examples"):
        sampler(torch.arange(5), 2, *more)


@pytest.mark.parametrize(
    "objective",
    [AllPairs(margin=-1.0), DrawnPairs(q=0.0), HardPairs(hard=2.0), Triplets(margin=math.inf)],
)
def test_objectives_check_their_options(objective: Any) -> None:
    with pytest.raises(InputError):
        objective.check()


def test_scores_of_pairs() -> None:
    scores, y = torch.tensor([2.0, -1.0, 0.5], requires_grad=True), torch.tensor([0, 0, 1])
    for loss, expected in (("logistic", [0.126928, 1.313262, 0.974077]), ("hinge", [0.0, 2, 1.5])):
        outcome = PairScores(loss)(scores, y, torch.Generator(), True)  # type: ignore[arg-type]
        assert float(outcome.loss.detach()) == pytest.approx(sum(expected) / 3, rel=1e-5)
        assert float(outcome.figures["accuracy"]) == pytest.approx(1 / 3)


# --- several ranks --------------------------------------------------------------------------------


def _rank(rank: int, ranks: int, port: int, folder: str, options: dict[str, Any]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1",
    }  # fmt: skip
    torch.set_num_threads(1)
    weights = training.train(
        Path(folder) / "state.safetensors", rank=rank, ranks=ranks, still=True,
        model=training.network(dropout=0, norm=False), **options,
    )  # fmt: skip
    save_tensors(Path(folder) / f"{rank}.safetensors", weights)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("chunk", [0, 3])
def test_two_ranks_train_like_one(chunk: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "chunk": chunk}
    context = _quick_processes()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_rank, args=(r, 2, port, str(tmp_path), options)) for r in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    first, second = (load_tensors(tmp_path / f"{r}.safetensors")[0] for r in range(2))
    assert same(first, second)
    alone = training.train(still=True, model=training.network(dropout=0, norm=False), **options)
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-6)
