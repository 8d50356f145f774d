"""Two processes take the step that one would, whatever each of them lacks, and none waits for another for ever."""

from __future__ import annotations

import math

import pytest

from tests.contract.examples import SYSTEMS
from tests.processes import both


@pytest.fixture(scope="module")
def rows(request, tmp_path_factory) -> dict[str, dict]:
    """What `parallel.py` measured: one pair of processes for all systems whose cases run."""
    chosen = [item.callspec.params["system"] for item in request.session.items if item.module is request.module]
    folder = tmp_path_factory.mktemp("parallel")
    return both("tests.contract.parallel", folder, *chosen, seconds=600)


@pytest.mark.parametrize("system", [pytest.param(s.name, id=s.name) for s in SYSTEMS])
def test_two_processes_take_the_step_that_one_would(rows, system):
    row = rows[system]
    for wrapper in ("ddp", "fsdp"):
        assert row[wrapper][0] == row[wrapper][1]  # the same weights on both ranks
        assert math.isclose(row[wrapper][0], row["single"], rel_tol=1e-4, abs_tol=1e-6), wrapper
    assert all(math.isfinite(v) for v in (row["before"], row["single"]))
    assert abs(row["single"] - row["before"]) > 1e-4 * abs(row["before"])
