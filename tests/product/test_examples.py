"""The scripts of examples/ run as they are, and find what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# script -> what it prints, and the least that the number there may be
SAYS = {
    "table": (r"^accuracy (\S+)", 0.8),
    "pictures_and_text": (r"^R2 (\S+)", 0.5),
    "search": (r"recall@1 (\S+)", 0.4),
    "caption": (r"^chrF (\S+)", 0.5),
    "transcribe": (r"^exact match (\S+)", 0.5),
    "published_weights": (r"for three classes: \((\d+), 192\)", 3),
    "act": (r"asked and got, rank correlation (\S+)", 0.3),
    "methods": (r"moves the logits by up to (\S+)", 0.001),
}


def test_every_script_is_run_and_named():
    scripts = {p.stem for p in (ROOT / "examples").glob("*.py")}
    named = re.findall(r"python examples/(\w+)\.py", (ROOT / "examples" / "README.md").read_text(encoding="utf-8"))
    assert scripts == set(SAYS) == set(named)


@pytest.mark.parametrize("script", SAYS)
def test_an_example_runs_and_finds_what_it_says(script, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / f"{script}.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    pattern, least = SAYS[script]
    found = re.search(pattern, done.stdout, re.MULTILINE)
    assert found and float(found[1]) >= least, done.stdout[-2000:]
