"""Two processes never write one run folder: the second is refused, the first ends as if nobody had come."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import plait
from plait.errors import DataError, UsageError
from plait.runs.console import Console
from plait.runs.lock import locked
from plait.runs.manifest import verify

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
QUIET = Console(quiet=True)
HOW = dict(target="y", system="auto_toy", folds=1, epochs=2, batch_size=16, precision="fp32")


def rows(n: int = 48) -> dict:
    a = np.random.default_rng(0).normal(size=n)
    return {"a": a.tolist(), "b": a[::-1].tolist(), "y": np.where(a > 0, "p", "q").tolist()}


class Meanwhile(Console):
    """Does something when the training reports its third step."""

    def __init__(self, what):
        super().__init__(quiet=True)
        self.what, self.done = what, False

    def update(self, info: dict) -> None:
        if info["step"] == 3 and not self.done:
            self.done = True
            self.what()


def test_nobody_writes_or_changes_a_run_that_is_trained(tmp_path):
    said = []

    def others() -> None:
        for act in (
            lambda: plait.fit(rows(), out=tmp_path / "run", resume=True, console=QUIET),
            lambda: plait.change(tmp_path / "run", ["int8"], out=tmp_path / "small"),
        ):
            with pytest.raises(UsageError) as error:
                act()
            said.append(str(error.value))
        with pytest.raises(UsageError, match="already exists"):
            plait.fit(rows(), out=tmp_path / "run", console=QUIET, **HOW)

    plait.fit(rows(), out=tmp_path / "whole", console=QUIET, **HOW)
    plait.fit(rows(), out=tmp_path / "run", console=Meanwhile(others), **HOW)
    assert len(said) == 2 and all("another process is at work in it" in text for text in said)
    assert not (tmp_path / "small").exists()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1] and {one.state for one in verify(tmp_path / "run")} == {"right"}
    plait.fit(rows(), out=tmp_path / "run", resume=True, epochs=3, console=QUIET)  # it is free again


def test_of_two_that_begin_at_once_one_goes_on(tmp_path):
    """Both see that the folder is free; the one that comes to write second is refused."""
    ends: list = []
    both = threading.Barrier(2, timeout=60)

    class Together(Console):
        def say(self, label: str, text: str = "") -> None:
            if label == "model":  # all is prepared, nothing is written
                both.wait()

    def one(seed: int) -> None:
        try:
            ends.append(plait.fit(rows(), out=tmp_path / "run", seed=seed, console=Together(quiet=True), **HOW))
        except Exception as error:
            ends.append(error)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in (1, 2)]
    [t.start() for t in threads]
    [t.join(120) for t in threads]
    errors = [e for e in ends if isinstance(e, Exception)]
    assert len(ends) == 2 and len(errors) == 1 and isinstance(errors[0], UsageError)
    assert {one.state for one in verify(tmp_path / "run")} == {"right"}
    assert plait.load(tmp_path / "run").predict(rows()).num_rows == 48


def test_without_a_name_each_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a,b,y\n" + "\n".join(f"{i % 7},{i % 5},{'pq'[i % 2]}" for i in range(48)))
    with locked(Path("runs/t")):
        run = plait.fit("t.csv", console=QUIET, **HOW)
    assert run.folder == Path("runs/t-2")


def test_one_of_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="works in one process, and was started as one of 2"):
        plait.fit(rows(), out=tmp_path / "run", console=QUIET, **HOW)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_lock_ends_with_a_killed_process(tmp_path):
    code = "import sys, time; from pathlib import Path; from plait.runs.lock import locked\n"
    code += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, env=ENVIRONMENT, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match="cannot be written: another process is at work in it"), locked(tmp_path):
        pass
    process.kill()
    process.wait(30)
    for _ in range(100):
        try:
            with locked(tmp_path):
                return
        except UsageError:
            time.sleep(0.05)
    raise AssertionError("the lock outlived its process")


def test_where_nothing_can_be_written_is_said_before_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("plait.runs.fit.prepare", lambda *a: pytest.fail("work began"))
    with pytest.raises(DataError, match="cannot write into .*run: .*file: Not a directory"):
        plait.fit(rows(), out=tmp_path / "file" / "run", console=QUIET, **HOW)
    if Path("/proc").is_dir():
        with pytest.raises(DataError, match="cannot write into /proc/run"):
            plait.fit(rows(), out="/proc/run", console=QUIET, **HOW)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
