"""Every file of a run is held to what was written: damage is found by name, whoever wrote the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import plait
from plait.cli import main
from plait.errors import DataError
from plait.runs.console import Console
from plait.runs.folder import write_json
from plait.runs.manifest import MANIFEST, forget, seal, verify
from plait.train.loop import METRICS

QUIET = Console(quiet=True)
FILES = ["bad_rows.parquet", "config.json", METRICS, "model.safetensors", "report.html", "report.json", "schema.json"]
FILES += ["splits.parquet", "misses.json"]
READ = ("config.json", "schema.json", "model.safetensors", "misses.json")


def rows(n: int = 40) -> dict:
    a = np.random.default_rng(0).normal(size=n)
    return {"a": a.tolist(), "t": [f"word {i % 5} here" for i in range(n)], "y": np.where(a > 0, "p", "q").tolist()}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("manifest") / "run"
    plait.fit(rows(), target="y", system="auto_toy", folds=1, epochs=1, batch_size=20, out=folder, console=QUIET)
    return folder


@pytest.fixture
def copy(run, tmp_path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def states(folder: Path) -> dict[str, str]:
    return {one.file: one.state for one in verify(folder)}


def test_a_run_just_made_is_right_in_every_file(run):
    found = states(run)
    assert [name for name in found if not name.startswith("checkpoints/")] == sorted(FILES)
    assert set(found.values()) == {"right"}
    there = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()} - {MANIFEST}
    assert there - found.keys() <= {".lock"}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 2**40), file=st.sampled_from([*FILES, "checkpoints"]))
def test_a_flipped_bit_is_found_in_any_file(run, tmp_path, bit, file):
    copy = tmp_path / "flipped"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    path = copy / file if file != "checkpoints" else sorted((copy / file).rglob("*.safetensors"))[bit % 4]
    flip(path, bit)
    name = path.relative_to(copy).as_posix()
    assert {n: s for n, s in states(copy).items() if s != "right"} == {name: "changed"}
    if file in READ:
        with pytest.raises(DataError, match=f"{file} is damaged, it is not as it was written"):
            plait.load(copy)
    else:
        plait.load(copy)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 2**40))
def test_a_flipped_bit_of_the_manifest_blames_no_other_file(run, tmp_path, bit):
    copy = tmp_path / "flipped"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    flip(copy / MANIFEST, bit)
    try:
        found = states(copy)
    except DataError as error:
        assert f"{MANIFEST} is damaged" in str(error)
    else:  # white space
        assert set(found.values()) == {"right"}


def test_missing_and_unknown_files_and_the_command_line(copy, capsys):
    assert main(["verify", str(copy)]) == 0
    out = capsys.readouterr()
    assert out.out.count("right") == len(verify(copy)) and out.err == ""
    (copy / "report.html").unlink()
    (copy / "notes.txt").write_text("mine")
    assert main(["verify", str(copy), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert {f["file"]: f["state"] for f in found["files"] if f["state"] != "right"} == {
        "notes.txt": "unknown",
        "report.html": "missing",
    }
    assert plait.load(copy).predict(rows()).num_rows == 40
    assert main(["verify", str(copy.parent)]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_a_run_without_a_manifest_loads_and_cannot_be_verified(copy, run):
    (copy / MANIFEST).unlink()
    assert plait.load(copy).predict(rows()).equals(plait.load(run).predict(rows()))
    with pytest.raises(DataError, match="has no manifest.json"):
        verify(copy)


def test_whoever_changes_a_run_writes_its_manifest(copy, tmp_path, capsys):
    plait.change(copy, ["int8"], out=tmp_path / "small")
    plait.fit(rows(), out=copy, resume=True, epochs=2, console=QUIET)
    config = json.loads((copy / "config.json").read_text())
    write_json(copy / "report.json", {"more": 1})
    for folder in (copy, tmp_path / "small"):
        assert set(states(folder).values()) == {"right"}
    assert config == json.loads((copy / "config.json").read_text())
    assert main(["verify", str(tmp_path / "small")]) == 0


def test_killed_between_a_file_and_its_line_it_loads_and_says_unknown(copy):
    forget(copy, "model.safetensors")
    plait.load(copy)
    assert states(copy)["model.safetensors"] == "unknown"
    seal(copy)
    assert set(states(copy).values()) == {"right"}


def test_damage_is_never_sealed_as_right(copy):
    flip(copy / "model.safetensors", 99_999)
    seal(copy)
    assert states(copy)["model.safetensors"] == "changed"


def test_answers_that_are_no_numbers_are_refused(copy):
    (copy / MANIFEST).unlink()
    state = load_file(copy / "model.safetensors")
    name = next(k for k in state if k.endswith("bias") and "head" in k)
    state[name][...] = float("nan")
    save_file(state, copy / "model.safetensors")
    run = plait.load(copy)
    for ask in (run.predict, run.evaluate):
        with pytest.raises(DataError, match="gives no numbers .* weights are damaged"):
            ask(rows())


def test_a_part_or_a_resumed_run_begins_with_no_damaged_weights(copy, tmp_path):
    plait.change(copy, ["int8"], out=tmp_path / "small")
    flip(tmp_path / "small" / "model.safetensors", 99_999)
    with pytest.raises(DataError, match="model.safetensors is damaged"):
        plait.fit(rows(), out=tmp_path / "small", resume=True, console=QUIET)
    flip(copy / "splits.parquet", 4_000)
    with pytest.raises(DataError, match="splits.parquet is damaged"):
        plait.fit(rows(), out=copy, resume=True, console=QUIET)


def test_classes_that_are_bytes_come_back_as_bytes(tmp_path):
    a = np.random.default_rng(0).normal(size=48)
    cells = [b"\xff\xfe" if x > 0 else b"p\0" for x in a]
    table = pa.table({"a": a, "y": pa.array(cells)})
    plait.fit(table, target="y", system="auto_toy", epochs=1, out=tmp_path / "run", console=QUIET)
    answers = plait.load(tmp_path / "run").predict(table)
    assert answers.column("y").type == pa.binary() and set(answers.column("y").to_pylist()) <= set(cells)
