"""The loop: killed, interrupted, limited in time, spread over processes; and always the same weights."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plait.errors import UsageError
from plait.train import checkpoint
from plait.train.loop import Plan, train
from plait.train.steps import step_seed
from tests.processes import ready
from tests.train.toyjob import ROWS, STEPS, ToyJob, run, weights_hash

ROOT = Path(__file__).parents[2]
PLAN = Plan(epochs=8, batch_size=ROWS, lr=2e-3, ema=0.9, patience=3, checkpoint_seconds=0.0, seed=5)


@pytest.fixture(scope="module")
def processes():
    return ready()


def start(processes, folder: Path, plan: Plan, job: dict | None = None, environment: dict | None = None):
    process = processes.Process(target=run, args=(str(folder), plan, job or {}, environment or {}))
    process.start()
    return process


def finish(process, seconds: float = 60.0) -> None:
    process.join(seconds)
    assert process.exitcode == 0


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


def test_ten_kills_change_nothing(processes, tmp_path):
    plan, job = replace(PLAN, epochs=40, patience=4), dict(seed=1)
    finish(start(processes, tmp_path / "whole", plan, job))
    wanted = (tmp_path / "whole" / "done.txt").read_text()
    assert wanted.startswith("early") and len(metrics(tmp_path / "whole")) > 10
    chance, steps, finished = random.Random(3), [], 0
    folder = tmp_path / "killed0"
    while len(steps) < 10:
        before = newest(folder)
        process = start(processes, folder, plan, job)
        while len(steps) not in (4, 7) and process.is_alive() and newest(folder) == before:  # two die while they start
            time.sleep(0.003)
        process.join(chance.uniform(0.0, 0.5))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was quicker: that run must be right, and the next kills are for another one
            assert (folder / "done.txt").read_text() == wanted
            finished += 1
            folder = tmp_path / f"killed{finished}"
        else:
            assert process.exitcode == -signal.SIGKILL
            found = checkpoint.load(folder)
            steps.append(found.state["step"] if found else 0)
        assert finished < 5
    assert len(set(steps)) > 5 and any(s % STEPS for s in steps)  # they died in the midst of it
    finish(start(processes, folder, plan, job))
    assert (folder / "done.txt").read_text() == wanted
    assert timeless(metrics(folder)) == timeless(metrics(tmp_path / "whole"))


def newest(folder: Path) -> str:
    """The name of the last checkpoint."""
    return max((p.name for p in (folder / "checkpoints").glob("*") if p.name.isdigit()), default="")


def test_stopping_early_keeps_the_best_average(tmp_path):
    job = ToyJob()
    history = train(job, replace(PLAN, epochs=50, lr=1e-6), tmp_path, device="cpu")
    assert history.stopped == "early"
    assert len(history.rows) == history.best_epoch + 3
    scores = [r["score"] for r in history.rows]
    assert scores.index(max(scores)) + 1 == history.best_epoch
    assert not job.model.training
    with torch.no_grad():
        assert job.score(job.model)[0] == max(scores)
    again = ToyJob(init=9)  # resuming a finished run trains nothing and gives the same weights
    repeated = train(again, replace(PLAN, epochs=50, lr=1e-6), tmp_path, resume=True, device="cpu")
    assert repeated.stopped == "early" and repeated.rows == history.rows
    assert weights_hash(again, tmp_path) == weights_hash(job, tmp_path)


def test_a_gain_that_is_too_small_is_not_waited_for(tmp_path, monkeypatch):
    job, scores = ToyJob(), iter([0.5, 0.7, *(0.7 + 1e-6 * n for n in range(1, 40))])
    monkeypatch.setattr(job, "score", lambda model: (next(scores), {}))
    plan = replace(PLAN, epochs=12, least_gain=1e-4)
    history = train(job, plan, tmp_path / "some", device="cpu")
    assert history.stopped == "early" and len(history.rows) == 2 + 3
    assert history.best_epoch == 5  # what is kept is the best all the same
    again = train(ToyJob(), plan, tmp_path / "some", resume=True, device="cpu")
    assert again.stopped == "early" and again.rows == history.rows
    scores = iter([0.5, 0.7, *(0.7 + 1e-6 * n for n in range(1, 40))])
    assert train(job, replace(plan, least_gain=0.0), tmp_path / "any", device="cpu").stopped == "finished"


def test_what_gets_better_alone_is_waited_for(tmp_path, monkeypatch):
    job, alone = ToyJob(), iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.9])
    monkeypatch.setattr(job, "score", lambda model: (0.7, {"alone": next(alone)}))
    history = train(job, replace(PLAN, epochs=12, least_gain=1e-4), tmp_path, device="cpu")
    assert history.stopped == "early" and len(history.rows) == 5 + 3 and history.best_epoch == 1


def test_what_gets_better_alone_by_less_than_a_row_is_not_waited_for(tmp_path, monkeypatch):
    job, alone = ToyJob(), iter([0.1, 0.4, *(0.4 + 1e-3 * n for n in range(1, 20))])
    monkeypatch.setattr(job, "score", lambda model: (0.7, {"alone": next(alone)}))
    plan = replace(PLAN, epochs=12, least_gain=1e-4, least_alone=0.05)
    assert len(train(job, plan, tmp_path, device="cpu").rows) == 2 + 3


def test_behind_a_faultless_epoch_nothing_is_waited_for(tmp_path, monkeypatch):
    scores = [0.5, 0.8, 0.99995, 0.9, 0.9, 0.9, 0.9]
    for enough, rows in ((1.0, 3), (1.1, 3 + 3), (None, 3 + 3)):
        job, told = ToyJob(), iter(scores)
        monkeypatch.setattr(job, "score", lambda model, told=told: (next(told), {}))
        plan = replace(PLAN, epochs=12, least_gain=1e-4, enough=enough)
        history = train(job, plan, tmp_path / str(enough), device="cpu")
        assert history.stopped == "early" and len(history.rows) == rows and history.best_epoch == 3


def test_a_checkpoint_of_before_a_setting_was_there_goes_on(tmp_path, monkeypatch):
    plan = replace(PLAN, epochs=1)
    train(ToyJob(), plan, tmp_path, device="cpu")
    found = checkpoint.load(tmp_path)
    del found.state["plan"]["least_gain"]
    monkeypatch.setattr(checkpoint, "load", lambda folder: found)
    assert len(train(ToyJob(), replace(plan, epochs=2), tmp_path, resume=True, device="cpu").rows) == 2
    with pytest.raises(UsageError, match=r"least_gain \(was 0.0, now 0.1\)"):
        train(ToyJob(), replace(plan, least_gain=0.1), tmp_path, resume=True, device="cpu")


def test_the_average_is_what_its_formula_says(tmp_path):
    job, seen = ToyJob(noise=0.0), []
    watch = job.after_step
    job.after_step = lambda: (watch(), seen.append(job.model.head.weight.detach().clone()))
    average = job.model.head.weight.detach().clone()
    train(job, Plan(epochs=1, batch_size=ROWS, lr=1e-2, ema=0.5, clip=None), tmp_path, device="cpu")
    for step, weight in enumerate(seen, 1):
        average += (1 - min(0.5, step / (step + 9))) * (weight - average)
    torch.testing.assert_close(job.model.head.weight.detach(), average)


def test_one_step_is_adamw_as_written_by_hand(tmp_path):
    job, plan = (
        ToyJob(noise=0.0, rows=(ROWS,)),
        Plan(epochs=1, batch_size=ROWS, lr=1e-2, weight_decay=0.1, clip=0.05, warmup=0.0),
    )
    twin = ToyJob(noise=0.0, rows=(ROWS,)).model
    sum(twin(twin_batch(), torch.Generator()).values()).backward()
    norm = torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None]).norm()
    assert norm > 0.05
    train(job, plan, tmp_path, device="cpu")
    lr = 1e-2 * 0.01  # the only step is the last one
    for name, decay in (("head.weight", 0.1), ("head.bias", 0.0), ("norm.weight", 0.0)):
        p = twin.get_parameter(name).detach()
        g = twin.get_parameter(name).grad * 0.05 / norm
        expected = p * (1 - lr * decay) - lr * g / (g.abs() + 1e-8)
        torch.testing.assert_close(job.model.get_parameter(name).detach(), expected, rtol=0, atol=1e-7)


def twin_batch() -> dict:
    return ToyJob(rows=(ROWS,)).batch(0, 0)


def test_a_loss_that_is_not_finite_stops_with_its_step_and_terms(tmp_path):
    plan = replace(PLAN, precision="bf16", ema=None)
    with pytest.raises(
        UsageError, match=r"step 9 \(epoch 2\): entropy nan, size nan.*step 9 is whole.*lower --lr.*--precision fp32"
    ):
        train(ToyJob(bad_step=9), plan, tmp_path, device="cpu")
    found = checkpoint.load(tmp_path)
    assert found.state["step"] == 9
    assert all(t.isfinite().all() for part in found.tensors.values() for t in part.values())


def test_a_resumed_run_must_be_the_same_run(tmp_path):
    plan = replace(PLAN, epochs=1)
    train(ToyJob(), plan, tmp_path, device="cpu")
    with pytest.raises(UsageError, match=r"lr \(was 0.002, now 0.1\)"):
        train(ToyJob(), replace(plan, lr=0.1), tmp_path, resume=True, device="cpu")
    with pytest.raises(UsageError, match=r"steps per epoch \(was 6, now 3"):
        train(ToyJob(rows=(ROWS,) * 3), plan, tmp_path, resume=True, device="cpu")
    longer = train(ToyJob(), replace(plan, epochs=2), tmp_path, resume=True, device="cpu")
    assert [r["epoch"] for r in longer.rows] == [1, 2] == [r["epoch"] for r in metrics(tmp_path)]
    fresh = train(ToyJob(), plan, tmp_path, device="cpu")  # without resume, nothing of the earlier run is left
    assert [r["epoch"] for r in fresh.rows] == [1] == [r["epoch"] for r in metrics(tmp_path)]
    assert checkpoint.load(tmp_path).state["epoch"] == 1


def test_a_plan_says_what_it_expects():
    with pytest.raises(UsageError, match="precision: got 'fp16', expected fp32 or bf16"):
        Plan(epochs=1, batch_size=1, lr=1.0, precision="fp16")
    with pytest.raises(UsageError, match="epochs: got 0"):
        Plan(epochs=0, batch_size=1, lr=1.0)


def test_batches_must_be_as_many_as_announced(tmp_path):
    job = ToyJob()
    job.steps_per_epoch = STEPS + 1
    job.rows = job.rows[:STEPS]
    job.batches = lambda epoch, start: iter([twin_batch()] * STEPS)
    with pytest.raises(ValueError, match=f"got {STEPS} batches, expected steps_per_epoch, {STEPS + 1}"):
        train(job, PLAN, tmp_path, device="cpu")


def test_the_callers_random_state_is_left_alone(tmp_path):
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    train(ToyJob(), replace(PLAN, epochs=1), tmp_path, device="cpu")
    assert torch.equal(torch.rand(3), wanted)
    assert len({step_seed(s, n, r) for s in range(5) for n in range(50) for r in range(4)}) == 1000


def test_minutes_end_the_run_in_time_and_drive_the_schedule(tmp_path):
    plan = Plan(epochs=10**6, batch_size=ROWS, lr=1e-3, minutes=0.025, checkpoint_seconds=1000.0)
    history = train(ToyJob(), plan, tmp_path, device="cpu")
    assert history.stopped == "minutes"
    assert 1.3 < history.rows[-1]["seconds"] < 1.8  # 1.5 asked for
    assert history.rows[-1]["lr"] < 1e-4 < history.rows[0]["lr"]
    assert len({r["epoch"] for r in history.rows}) == len(history.rows)
    more = train(ToyJob(), replace(plan, minutes=0.04), tmp_path, resume=True, device="cpu")
    assert more.stopped == "minutes" and 2.2 < more.rows[-1]["seconds"] < 2.7  # 2.4, both sessions together
    assert (
        [r["epoch"] for r in more.rows] == list(range(1, len(more.rows) + 1)) == [r["epoch"] for r in metrics(tmp_path)]
    )


class Watcher:
    def __init__(self):
        self.updates, self.rows = [], []

    def update(self, now):
        self.updates.append(now)

    def epoch(self, row):
        self.rows.append(row)


def test_progress_is_told_every_step(tmp_path):
    watcher = Watcher()
    history = train(ToyJob(), replace(PLAN, epochs=2), tmp_path, progress=watcher, device="cpu")
    assert [u["step"] for u in watcher.updates] == list(range(1, 2 * STEPS + 1))
    assert watcher.rows == history.rows == metrics(tmp_path)
    first = watcher.updates[:STEPS]
    assert history.rows[0]["loss"] == pytest.approx(sum(u["loss"] for u in first) / STEPS)
    assert history.rows[0]["losses"].keys() == {"entropy", "size"} and "worst" in history.rows[0]
    assert watcher.updates[-1]["seconds_left"] == 0.0
    assert all(u["rows_per_s"] > 0 and 0.05 < u["memory_gb"] < 100 for u in watcher.updates)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_control_c_saves_and_the_run_goes_on(tmp_path, processes):
    command = [sys.executable, "-m", "tests.train.toyjob", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(tmp_path / "metrics.jsonl", '"epoch": 2')
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "interrupted after" in out
    found = checkpoint.load(tmp_path)
    assert found.state["step"] > STEPS
    plan = Plan(**{**found.state["plan"], "epochs": found.state["epoch"] + 2})
    for number in (signal.SIGTERM, None):  # once more, by the other signal and another process, then to the end
        process = start(processes, tmp_path, plan if number is None else Plan(**found.state["plan"]), dict(delay=0.01))
        if number is not None:
            wait_for(tmp_path / "metrics.jsonl", f'"epoch": {found.state["epoch"] + 2}')
            os.kill(process.pid, number)
        finish(process)
        stopped = (tmp_path / "done.txt").read_text().split()[0]
        assert stopped == ("finished" if number is None else "interrupted")
        plan = replace(plan, epochs=checkpoint.load(tmp_path).state["epoch"] + 2)
    epochs = [r["epoch"] for r in metrics(tmp_path)]
    assert epochs == list(range(1, plan.epochs - 1))


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(processes, tmp_path):
    plan = replace(PLAN, patience=None, checkpoint_seconds=1000.0)
    finish(start(processes, tmp_path / "whole", plan))
    for _ in range(2):
        process = start(processes, tmp_path / "cut", plan, dict(delay=0.05))
        time.sleep(0.8)
        os.kill(process.pid, signal.SIGINT)
        finish(process)
        assert (tmp_path / "cut" / "done.txt").read_text().startswith("interrupted")
    finish(start(processes, tmp_path / "cut", plan))
    assert (tmp_path / "cut" / "done.txt").read_text() == (tmp_path / "whole" / "done.txt").read_text()


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_a_second_control_c_stops_at_once(processes, tmp_path):
    process = start(processes, tmp_path, PLAN, dict(delay=5.0))
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(2.0)
    assert process.exitcode == 1 and checkpoint.load(tmp_path) is None


def wait_for(path: Path, text: str, seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < limit, f"{text} never came"
        time.sleep(0.01)


def together(processes, folder: Path, plan: Plan, job: dict, environment: dict) -> None:
    """The same run on two processes, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = dict(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", OMP_NUM_THREADS="1"
    )
    team = [start(processes, folder, plan, job, {**environment, **common, "RANK": r, "LOCAL_RANK": r}) for r in "01"]
    for process in team:
        finish(process)


@pytest.mark.parametrize("environment", [{}, {"ACCELERATE_USE_FSDP": "true"}], ids=["ddp", "fsdp2"])
def test_two_processes_train_what_one_trains(processes, tmp_path, environment):
    plan = Plan(epochs=3, batch_size=8, lr=2e-3, ema=0.9, seed=2, checkpoint_seconds=0.0)
    job = dict(noise=0.0, rows=(8, 7, 8, 1))  # parts of unequal size, and one row for two processes
    together(processes, tmp_path / "two", plan, job, environment)
    alone = ToyJob(**job)
    history = train(alone, plan, tmp_path / "one", device="cpu")
    one, two = alone.model.state_dict(), load_file(tmp_path / "two" / "final.safetensors")
    for name, value in one.items():
        torch.testing.assert_close(two[f"model.{name}"], value, rtol=0, atol=1e-5, msg=lambda m: f"{name}: {m}")
    for ours, theirs in zip(history.rows, metrics(tmp_path / "two"), strict=True):
        assert ours["losses"]["entropy"] == pytest.approx(theirs["losses"]["entropy"], abs=0.2)
        assert ours["score"] == theirs["score"]


def test_two_sharded_processes_begin_and_one_ends(processes, tmp_path):
    plan = Plan(epochs=4, batch_size=8, lr=2e-3, ema=0.9, minutes=None)
    job = dict(noise=0.0, rows=(8, 8))
    whole, second = ToyJob(**job), ToyJob(**job)
    train(whole, plan, tmp_path / "one", device="cpu")
    watched = dict(job, delay=0.3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = dict(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", ACCELERATE_USE_FSDP="true"
    )
    team = [start(processes, tmp_path / "two", plan, watched, {**common, "RANK": r, "LOCAL_RANK": r}) for r in "01"]
    wait_for(tmp_path / "two" / "metrics.jsonl", '"epoch": 1')
    os.kill(team[1].pid, signal.SIGTERM)  # one is told, all stop
    for process in team:
        finish(process)
    assert (tmp_path / "two" / "done.txt").read_text().startswith("interrupted")
    assert 0 < checkpoint.load(tmp_path / "two").state["step"] < 8
    train(second, plan, tmp_path / "two", resume=True, device="cpu")
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(
            second.model.state_dict()[name], value, rtol=0, atol=1e-5, msg=lambda m: f"{name}: {m}"
        )
