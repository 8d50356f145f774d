"""Two hundred damaged tables through `fit`: each trains and answers every row in order, or is refused before that in
words that help."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import plait
from plait.data.table import read_table
from plait.errors import DataError, UsageError
from plait.runs.console import Console
from tests.data.damaged import COUNT, damaged
from tests.data.test_damaged import MAY_BE_REFUSED, REFUSED

ROOT = Path(__file__).parents[2]
# the data can be read, but nothing can be learnt from it
UNUSABLE = {"all pictures broken", "no file is there", "every target different"}


@pytest.fixture(autouse=True)
def one_thread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("seed", range(COUNT))
def test_trains_or_refuses(seed: int, tmp_path):
    case = damaged(seed, tmp_path / "in")
    before = sorted(tmp_path.rglob("*"))
    page = io.StringIO()
    options = {"system": "auto_toy", "image_size": 32, "epochs": 1, "precision": "fp32", "workers": 1, "folds": 1}
    options |= case.arguments
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            run = plait.fit(case.source, out=tmp_path / "run", console=Console(page), **options)
        except (DataError, UsageError) as error:
            assert case.name in REFUSED | MAY_BE_REFUSED | UNUSABLE, (case.name, error)
            assert len(str(error)) > 30 and "Traceback" not in str(error)
            assert "model" not in page.getvalue(), f"{case.name}: it was refused after the plan was told"
            assert sorted(tmp_path.rglob("*")) == before, f"{case.name}: something is left behind"
            return
        assert case.name not in REFUSED | UNUSABLE, case.name
        table = read_table(case.source)
        answers = run.predict(table)
        order = np.random.default_rng(seed).permutation(len(table))
        again = run.predict(table.take(order))
    assert [str(w.message) for w in warned] == []
    assert len(page.getvalue().splitlines()) < 60
    first = answers.column_names[0]  # "row", unless the table has a column of that name
    assert first.strip("_") == "row" and first not in table.names
    assert answers[first].to_pylist() == list(range(len(table)))
    for name in answers.column_names[1:-1]:  # each row keeps its answer wherever it stands in the table
        one, two = answers[name].to_numpy()[order], again[name].to_numpy()
        if one.dtype.kind == "f":
            assert np.isfinite(one).all() and np.allclose(one, two, atol=1e-4), case.name
    assert (tmp_path / "run" / "report.html").stat().st_size > 5000


@pytest.mark.parametrize(
    "seed, code, message",
    [
        (0, 3, "Row #"),
        (32, 3, "photo: no such file"),
    ],
)
def test_refused_on_the_command_line(seed: int, code: int, message: str, tmp_path):
    case = damaged(seed, tmp_path / "in")
    before = sorted(tmp_path.rglob("*"))
    done = command("fit", str(case.source), "--target", "label")
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert done.stderr.startswith("plait: ") and message in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_trains_on_the_command_line(tmp_path):
    case = damaged(4, tmp_path / "in")
    wrong = command("fit", str(case.source), "--target", "lable", "--epochs", "1")
    assert wrong.returncode == 2 and "Did you mean 'label'?" in wrong.stderr and "Traceback" not in wrong.stderr
    words = ["--epochs", "1", "--system", "auto_toy", "--image-size", "32", "--folds", "1"]
    done = command("fit", str(case.source), "--target", "label", *words)
    assert done.returncode == 0 and done.stderr == "" and "bad (bad_rows.parquet)" in done.stdout


def command(*words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "plait.cli", *words], capture_output=True, text=True, env=environment, timeout=120
    )
