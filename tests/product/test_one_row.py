"""One picture, one sound, one row: answered without a table, and without a file for the answer."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

import plait
from plait.cli import main
from plait.errors import DataError
from plait.runs.console import Console

QUIET = Console(quiet=True)


def words(*texts: str) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = main(texts)
    return code, out.getvalue()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    place, rng = tmp_path_factory.mktemp("one"), np.random.default_rng(0)
    for i in range(24):
        side = (i % 2) * 200 + rng.integers(0, 40)
        Image.fromarray(np.full((32, 32, 3), side, np.uint8)).save(place / f"p{i}.png")
        soundfile.write(place / f"s{i}.wav", np.sin(np.arange(1600) * (0.05 + 0.4 * (i % 2))), 16_000)
    how = dict(system="auto_toy", folds=1, epochs=1, precision="fp32", console=QUIET, target="y")
    y = ["dark", "light"] * 12
    (place / "p.csv").write_text("photo,y\n" + "".join(f"p{i}.png,{c}\n" for i, c in enumerate(y)))
    (place / "s.csv").write_text("sound,y\n" + "".join(f"s{i}.wav,{c}\n" for i, c in enumerate(y)))
    plait.fit(place / "p.csv", out=place / "pictures", image_size=32, **how)
    plait.fit(place / "s.csv", out=place / "sounds", **how)
    vectors = rng.normal(size=(40, 3))
    table = {"rooms": rng.integers(1, 9, 40), "town": ["Bern", "Chur"] * 20, "v": vectors.tolist()}
    plait.fit(table | {"y": table["rooms"] * 2.5}, out=place / "numbers", kinds={"v": "vector"}, **how)
    return place


@pytest.mark.parametrize("run, kind, suffix", [("pictures", "p", "png"), ("sounds", "s", "wav")])
def test_one_file_is_answered_as_it_is_in_a_table(runs: Path, run: str, kind: str, suffix: str) -> None:
    among = plait.load(runs / run).predict(runs / f"{kind}.csv").to_pylist()[3]
    code, out = words("predict", str(runs / run), str(runs / f"{kind}3.{suffix}"), "--json")
    assert code == 0, out
    (answer,) = json.loads(out)["answers"]
    assert answer["y"] == among["y"] and answer["p(dark)"] == pytest.approx(among["p(dark)"], abs=1e-5)
    code, out = words("predict", str(runs / run), str(runs / f"{kind}3.{suffix}"))
    assert code == 0 and among["y"] in out and "p(dark)" in out


def test_a_dict_of_cells_is_one_row(runs: Path) -> None:
    run = plait.load(runs / "numbers")
    many = (
        run.predict({"rooms": [3, 4], "town": ["Bern", "Chur"], "v": [[1.0, 2, 3], [0, 0, 0]]}).column("y").to_pylist()
    )
    assert run.predict({"rooms": 3, "town": "Bern", "v": [1.0, 2, 3]}).column("y").to_pylist() == many[:1]
    assert run.predict({"rooms": 4, "town": "Chur", "v": [0, 0, 0]}).num_rows == 1
    assert run.predict({"rooms": 4}).num_rows == 1 and run.predict({"town": "Bern"}).num_rows == 1
    assert run.predict({"rooms": [3, 4]}).num_rows == 2
    with pytest.raises(DataError, match="'town' is not a list of cells"):
        run.predict({"rooms": [3, 4], "town": "Bern"})


def test_many_rows_want_a_file(runs: Path, tmp_path) -> None:
    code, out = words("predict", str(runs / "pictures"), str(runs / "p.csv"))
    assert code == 2 and "has 24 rows: say where the answers go" in out
    code, out = words("predict", str(runs / "pictures"), str(runs / "p.csv"), "-o", str(tmp_path / "a.csv"))
    assert code == 0 and len((tmp_path / "a.csv").read_text().splitlines()) == 25


def test_python_dash_m_plait_is_the_command_line() -> None:
    found = subprocess.run([sys.executable, "-m", "plait", "--version"], capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout == f"plait {plait.__version__}\n"
