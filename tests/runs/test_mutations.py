"""Run folders changed by chance: loading and asking give one DataError with file and key, or the same answers."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import plait
from plait.errors import DataError
from plait.runs.console import Console
from plait.runs.declared import FORMAT
from plait.runs.manifest import MANIFEST

QUIET = Console(quiet=True)
ODD = [
    None,
    True,
    -1,
    0,
    10**9,
    2**70,
    10**400,
    1e308,
    -0.5,
    math.nan,
    math.inf,
    "",
    "x",
    "\x1b[2J",
    [],
    {},
    [[]],
    [1, 2],
]
ODD += ["p" * 1000, {"a": {}}, "number", "auto_toy"]
KEY = re.compile(
    r"(config|schema)\.json: [\w.\[\]<>: ()-]+|(config|schema|manifest)\.json is damaged|model\.safetensors"
)


def rows(n: int) -> dict:
    a = np.random.default_rng(0).normal(size=n)
    day = [f"2024-01-{1 + i % 28:02d}" for i in range(n)]
    return {
        "a": a.tolist(),
        "c": [["u", "v", "w"][i % 3] for i in range(n)],
        "t": [f"word {i % 7} of them" for i in range(n)],
        "v": [[float(x), float(i % 4)] for i, x in enumerate(a)],
        "d": day,
        "y": np.where(a > 0, "p", "q").tolist(),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mutations") / "run"
    plait.fit(rows(40), target="y", system="auto_toy", folds=1, epochs=1, batch_size=20, out=folder, console=QUIET)
    shutil.rmtree(folder / "checkpoints")
    return folder


@pytest.fixture(scope="module")
def truth(run) -> pa.Table:
    return plait.load(run).predict(rows(3))


def places(value, path=()) -> list[tuple]:
    """The path to every value in a JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for k, v in inner for p in places(v, (*path, k)))]


def mutated(data: dict, chance: random.Random) -> str:
    """JSON text of `data` with something changed in it."""
    data = copy.deepcopy(data)
    *home, last = chance.choice([p for p in places(data) if p])
    room = data
    for step in home:
        room = room[step]
    how = chance.randrange(8)
    if how == 0:
        del room[last]
    elif how == 1 and isinstance(room, dict):
        room[f"{last}x"] = room.pop(last)
    elif how == 2 and isinstance(room[last], (int, float)) and not isinstance(room[last], bool):
        room[last] = room[last] * chance.choice([-1, 3, 1000, 10**6]) + chance.choice([0, 1])
    elif how == 3:
        room[last] = [room[last]]
    elif how == 4:
        text = json.dumps(data)
        return text[: chance.randrange(len(text))]
    elif how == 5:
        deep = "[" * 50_000 + "]" * 50_000
        room[last] = "HERE"
        return json.dumps(data).replace('"HERE"', chance.choice([deep, "1" * 5000, "1e999", "NaN"]), 1)
    else:
        room[last] = chance.choice(ODD)
    return json.dumps(data)


def asked(folder: Path, changed: str) -> pa.Table | None:
    """The answers, or None where a DataError says which file and key."""
    try:
        answers = plait.load(folder).predict(rows(3))
    except DataError as error:
        assert KEY.search(str(error)), f"{changed}: {error}"
        assert len(str(error)) < 1500 and str(error).isprintable(), changed
        return None
    return answers


def finite(answers: pa.Table) -> bool:
    floats = [c.to_numpy() for c in answers.columns if pa.types.is_floating(c.type)]
    return all(np.isfinite(c).all() for c in floats)


@pytest.mark.parametrize("name", ["config.json", "schema.json"])
def test_a_hundred_mutations_without_anybody_to_vouch_are_refused_or_harmless(run, truth, tmp_path, name):
    """No manifest: what is declared is all that is known, and another number that fits may answer otherwise."""
    chance, data = random.Random(name), json.loads((run / name).read_text())
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / MANIFEST).unlink()
    refused = 0
    for i in range(100):
        text = mutated(data, chance)
        (tmp_path / "run" / name).write_text(text)
        answers = asked(tmp_path / "run", f"{name} {i}")
        refused += answers is None
        assert answers is None or (answers.num_rows == 3 and finite(answers)), (name, i)
    assert refused > 40


@pytest.mark.parametrize("name", ["config.json", "schema.json"])
def test_with_its_manifest_no_mutation_changes_an_answer(run, truth, tmp_path, name):
    chance, data = random.Random(name + "kept"), json.loads((run / name).read_text())
    shutil.copytree(run, tmp_path / "run")
    for i in range(50):
        (tmp_path / "run" / name).write_text(mutated(data, chance))
        assert asked(tmp_path / "run", f"{name} {i}") is None


def test_fifty_flipped_bits_change_no_answer(run, truth, tmp_path):
    chance = random.Random(5)
    files = ["config.json", "schema.json", "model.safetensors", MANIFEST]
    shutil.copytree(run, tmp_path / "run")
    for i in range(50):
        path = tmp_path / "run" / chance.choice(files)
        before = path.read_bytes()
        data, at = bytearray(before), chance.randrange(len(before) if path.suffix == ".json" or i % 2 else 400)
        data[at] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        answers = asked(tmp_path / "run", f"{path.name} {at}")
        assert answers is None or answers.equals(truth)
        path.write_bytes(before)


def test_damaged_weights_without_a_manifest_are_refused_or_answer(run, tmp_path):
    chance = random.Random(6)
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / MANIFEST).unlink()
    path = tmp_path / "run" / "model.safetensors"
    before = path.read_bytes()
    for _ in range(25):
        data = bytearray(before)
        data[chance.randrange(400)] ^= 1 << chance.randrange(8)  # in the header
        path.write_bytes(data if chance.random() < 0.8 else data[: chance.randrange(len(data))])
        try:
            answers = plait.load(tmp_path / "run").predict(rows(3))
        except DataError as error:
            assert "model.safetensors" in str(error) or "no numbers" in str(error)
        else:
            assert finite(answers)


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("format", FORMAT + 1, f"format is {FORMAT + 1}, and plait .* knows runs up to {FORMAT}: a newer plait"),
        ("format", "2", "format: got '2', expected a whole number"),
        ("plan", {"precision": "fp8"}, "plan.epochs: is missing"),
        ("recipe.arguments.width", 10**30, "recipe.arguments.width: got a number of"),
        ("recipe.arguments.depth", 1 << 20, "recipe cannot be read by plait .* more than .* modules"),
        ("recipe.name", "no_such_model", "recipe cannot be read by plait .*no_such_model"),
        ("recipe.changes", [["no_such", {}]], "recipe cannot be read by plait .*no_such"),
        ("recipe.std", [0.0, 1.0, 1.0], r"recipe.std\[0\]: got 0.0"),
        ("task.task", "sing", "task.task: got 'sing', expected"),
        ("splits.train", -1, "splits.train: got -1"),
    ],
)
def test_what_is_said_of_a_config(run, tmp_path, key, value, said):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / MANIFEST).unlink()
    data = json.loads((run / "config.json").read_text())
    *home, last = key.split(".")
    room = data
    for step in home:
        room = room[step]
    room[last] = value
    (tmp_path / "run" / "config.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=f"config.json: {said}"):
        plait.load(tmp_path / "run")
    if "depth" in key:  # the same again, in seconds
        return
    with pytest.raises(DataError, match="config.json"):
        plait.fit(rows(40), out=tmp_path / "run", resume=True, console=QUIET)


def test_hooks_are_gone_and_other_threads_free(run):
    plait.load(run)
    assert not torch.nn.modules.module._global_module_registration_hooks
