"""The report of a run, from what the run measured."""

from __future__ import annotations

import json

import pytest

import plait
from plait.runs import fit as fitting
from plait.runs.console import Console
from plait.runs.pages import again


@pytest.mark.parametrize(
    "command, told",
    [
        ("plait fit t.csv --target y", "plait fit t.csv --target y --precision bf16"),
        ("plait fit 'my t.csv' --target y", "plait fit 'my t.csv' --target y --precision bf16"),
        ("plait fit t.csv --precision fp32", "plait fit t.csv --precision fp32"),
        ("plait fit t.csv --precision=fp32", "plait fit t.csv --precision=fp32"),
        ("plait fit --resume runs/t", "plait fit --resume runs/t"),
        ("python train.py", "python train.py"),
    ],
)
def test_what_was_chosen_is_named_where_a_run_is_to_be_done_again(command, told):
    assert again(command, "bf16") == told


def test_the_report_names_the_precision_that_was_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "command", lambda: "plait fit t.csv --target y")
    table = {"x": [float(i % 7) for i in range(40)], "y": ["ab"[i % 3 == 0] for i in range(40)]}
    plait.fit(
        table, out=tmp_path / "run", target="y", system="auto_toy", folds=1, epochs=1, console=Console(quiet=True)
    )
    chosen = json.loads((tmp_path / "run" / "config.json").read_text())["plan"]["precision"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"plait fit t.csv --target y --precision {chosen}\nseed 0, precision {chosen}, data " in page
