"""Two processes take the step that one would, whatever each of them lacks, and none waits for another for ever."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.examples import SYSTEMS


@pytest.fixture(scope="module")
def rows(request, tmp_path_factory) -> dict[str, dict]:
    """What `parallel.py` measured: one pair of processes for all systems whose cases run."""
    chosen = [item.callspec.params["system"] for item in request.session.items if item.module is request.module]
    folder = tmp_path_factory.mktemp("parallel")
    where = dict(cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True)
    logs = [(folder / f"rank{rank}.log").open("w+") for rank in range(2)]
    command = [sys.executable, "-m", "tests.contract.parallel"]
    pair = [
        subprocess.Popen(
            [*command, str(r), str(folder / "store"), *chosen], stdout=subprocess.PIPE, stderr=logs[r], **where
        )
        for r in range(2)
    ]
    try:
        said, _ = pair[0].communicate(timeout=600)
        pair[1].wait(timeout=60)
    finally:
        for process in pair:
            process.kill()
            process.wait()
    for process, log in zip(pair, logs):
        log.seek(0)
        assert process.returncode == 0, log.read()[-2000:]
    return json.loads(said)


@pytest.mark.parametrize("system", [pytest.param(s.name, id=s.name) for s in SYSTEMS])
def test_two_processes_take_the_step_that_one_would(rows, system):
    row = rows[system]
    for wrapper in ("ddp", "fsdp"):
        assert row[wrapper][0] == row[wrapper][1]  # the same weights on both ranks
        assert math.isclose(row[wrapper][0], row["single"], rel_tol=1e-4, abs_tol=1e-6), wrapper
    assert all(math.isfinite(v) for v in (row["before"], row["single"]))
    assert abs(row["single"] - row["before"]) > 1e-4 * abs(row["before"])
