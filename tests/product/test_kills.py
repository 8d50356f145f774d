"""`plait fit`, killed at any moment and resumed, ends with the same bits as if nothing had happened."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import plait
from plait.cli import main
from plait.runs.console import Console
from tests.processes import ready, said

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A table of pictures and numbers."""
    folder, digits = tmp_path_factory.mktemp("kills"), load_digits()
    photos = []
    for image in digits.images[:320]:
        out = io.BytesIO()
        Image.fromarray((image * 15.9).astype(np.uint8)).save(out, "PNG")
        photos.append(out.getvalue())
    ink = digits.images[:320].mean((1, 2))
    pq.write_table(
        pa.table({"photo": photos, "ink": ink, "digit": [f"d{k}" for k in digits.target[:320]]}),
        folder / "digits.parquet",
    )
    return folder


def fit(out: str, ema: float) -> None:
    plait.fit(
        "digits.parquet", out=out, target="digit", system="auto_toy", image_size=16, epochs=3, batch_size=16,
        precision="fp32", folds=1, ema=ema or None, checkpoint_seconds=0.0, console=Console(quiet=True),
    )  # fmt: skip
    # checkpoint_seconds is no option of the command line: 0 means after every step


def begin(home: Path, name: str, ema: float = 0.0) -> BaseProcess:
    return launch(home, name, fit, name, ema)


def resume(home: Path, name: str) -> BaseProcess:
    return launch(home, name, main, ["fit", "--resume", name, "--quiet"])


def launch(home: Path, name: str, function, *words) -> BaseProcess:
    log = home / f"{name}.log"
    process = ready().Process(target=said, args=(function, words, str(home), str(log)), name=str(log))
    process.start()
    return process


def undisturbed(home: Path, ema: float = 0.0) -> Path:
    """The folder of a run that nobody killed."""
    folder = home / f"whole{ema}"
    if not folder.exists():
        assert finished(begin(home, folder.name, ema)) == ""
    return folder


def finished(process: BaseProcess) -> str:
    process.join(120)
    text = Path(process.name).read_text()
    assert process.exitcode == 0, text
    return text


def kill(process: BaseProcess) -> None:
    """kill -9; the process must still have been at work."""
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def newest(folder: Path) -> int:
    """The number of the newest checkpoint: it is the number of the steps and epochs behind it."""
    home = folder / "checkpoints"
    return max((int(p.name) for p in home.iterdir() if p.name.isdigit()), default=0) if home.is_dir() else 0


def wait(process: BaseProcess, reached) -> None:
    """Until `reached()`, a millisecond at a time."""
    end = time.monotonic() + 60
    while not reached():
        assert process.is_alive(), Path(process.name).read_text()
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("ema, kills", [(0.0, 5), (0.99, 5)])
def test_killed_and_resumed_it_ends_with_the_same_bits(home, ema, kills):
    rng, name, whole = np.random.default_rng(round(ema * 100)), f"killed{ema}", undisturbed(home, ema)
    last = newest(whole)
    assert last >= 48
    process, places = begin(home, name, ema), []
    for k in range(kills):
        until = max(newest(home / name) + 1, int(last * (k + rng.random()) / kills) - 2)
        wait(process, lambda until=until: newest(home / name) >= until)
        time.sleep(0.05 * rng.random())  # anywhere in a step, its checkpoint, or the validation
        kill(process)
        places.append(newest(home / name))
        process = resume(home, name)
    assert finished(process) == ""
    assert len(set(places)) == kills, places
    one, two = ((n / "model.safetensors").read_bytes() for n in (whole, home / name))
    assert one == two
    lines = [
        [json.loads(line) for line in (n / "metrics.jsonl").read_text().splitlines()] for n in (whole, home / name)
    ]
    assert len(lines[0]) == 3 and [dict(r, seconds=0) for r in lines[0]] == [dict(r, seconds=0) for r in lines[1]]
    scores = [json.loads((n / "report.json").read_text())["splits"] for n in (whole, home / name)]
    assert scores[0] == scores[1]
    assert {p.name for p in (home / name).iterdir()} == {p.name for p in whole.iterdir()}  # no scraps of killed writes


def test_killed_while_reading_nothing_is_left(home):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "plait.cli", "fit", "digits.parquet", "--target", "digit", "-o", "reading"]
    process = subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.DEVNULL)
    time.sleep(2 * np.random.default_rng(3).random())  # still importing or reading
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert not (home / "reading").exists()
    resumed = resume(home, "reading")
    resumed.join(60)
    message = Path(resumed.name).read_text()
    assert resumed.exitcode == 2 and message == "plait: reading is no run folder: it has no config.json\n"


def test_killed_before_the_first_checkpoint_it_starts_again(home):
    process = begin(home, "early")
    wait(process, lambda: (home / "early" / "config.json").exists())
    kill(process)
    assert newest(home / "early") <= 1
    finished(resume(home, "early"))
    assert (home / "early" / "model.safetensors").read_bytes() == (undisturbed(home) / "model.safetensors").read_bytes()


def test_a_folder_with_a_scrap_of_a_killed_write_is_as_good_as_empty(home):
    (home / "scrap").mkdir()
    (home / "scrap" / ".plait-1-2.new").write_text("{")  # all that a kill within the first write leaves
    finished(begin(home, "scrap"))
    assert not list((home / "scrap").glob(".plait-*"))
