"""The command line, from the words a person types to the exit code: every command, on small real tables."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_wine
from typer.main import get_command

import plait as api
from plait.cli import main, options, output
from plait.cli.evaluate import parse
from plait.cli.shell import application
from plait.errors import UsageError
from plait.runs.settings import Settings, share, whole

COMMAND = [sys.executable, "-m", "plait.cli"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
COMMANDS = (
    "check",
    "fit",
    "rocketqa",
    "use",
    "evaluate",
    "compare",
    "predict",
    "report",
    "embed",
    "search",
    "change",
    "verify",
    "models",
    "methods",
    "show",
    "weights",
    "new",
    "demo",
)


class Result(NamedTuple):
    code: int
    out: str
    err: str


def plait(*words: str) -> Result:
    """Run a command line in this process, in the current folder. No traceback may ever show."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    assert "Traceback" not in out.getvalue() + err.getvalue()
    return Result(code, out.getvalue(), err.getvalue())


def listing(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a table of wines (one cell missing, one broken, one column a copy of the target), photos, and
    pairs."""
    folder = tmp_path_factory.mktemp("home")
    wine = load_wine(as_frame=True).frame[["alcohol", "ash", "hue", "proline", "target"]]
    wine["cultivar"] = wine.pop("target").map({0: "red", 1: "white", 2: "rose"})
    wine["code"] = wine["cultivar"].map({"red": 7, "white": 8, "rose": 9})
    wine = wine.astype({"ash": object})
    wine.loc[3, "alcohol"], wine.loc[5, "ash"] = None, "oops"
    wine.to_csv(folder / "wine.csv", index=False)
    rng = np.random.default_rng(0)
    rows = []
    for name, paint in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(15):
            path = folder / "photos" / name / f"{i}.png"
            pixels = np.clip(np.array(paint) + rng.integers(-25, 25, (12, 12, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            rows.append((path.read_bytes(), f"a {name} door, number {i}"))
    (folder / "photos" / "red" / "broken.png").write_bytes(b"no picture")
    pq.write_table(pa.table({"photo": [r[0] for r in rows], "title": [r[1] for r in rows]}), folder / "pairs.parquet")
    (folder / "empty.csv").write_text("")
    (folder / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small are slower on many threads, and much slower where other tests run beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def in_home(home, monkeypatch):
    monkeypatch.chdir(home)


@pytest.fixture(scope="module")
def wine(home) -> Result:
    """A trained run in runs/wine, and what its training printed."""
    before = Path.cwd()
    os.chdir(home)
    try:
        words = (
            "--inputs",
            "alcohol,ash",
            "--inputs",
            "hue",
            "--epochs",
            "2",
            "--batch_size",
            "32",
            "--precision",
            "fp32",
            "--folds",
            "1",
        )
        return plait("fit", "wine.csv", "--target", "cultivar", *words)
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def shop(home) -> Path:
    """A trained run of retrieval."""
    words = [
        "--task",
        "retrieve",
        "--inputs",
        "photo,title",
        "--system",
        "clip_nano",
        "--epochs",
        "1",
        "--batch-size",
        "auto",
    ]
    words += ["--precision", "fp32", "--quiet"]
    result = plait("fit", str(home / "pairs.parquet"), *words, "--out", str(home / "runs" / "shop"))
    assert result == (0, "", "")
    return home / "runs" / "shop"


# -- check


def test_check_prints_the_table_and_writes_nothing(home):
    before = listing(home)
    result = plait("check", "wine.csv", "--target", "cultivar")
    assert result.code == 0 and result.err == ""
    lines = result.out.splitlines()
    assert lines[0] == "wine.csv: 178 rows, 6 columns"
    assert lines[1].split() == [
        "name",
        "kind",
        "why",
        "examples",
        "missing",
        "broken",
        "duplicates",
        "too",
        "long",
        "notes",
    ]
    alcohol, ash, code = (next(line for line in lines if line.startswith(n)) for n in ("alcohol", "ash", "code"))
    assert re.search(r"number +type double +14.23 \| 13.2 \| 13.16 +1$", alcohol)
    assert ash.endswith("1 not a number")
    assert "category, target" in result.out
    assert "careful: 'code' alone tells the target 'cultivar' in 178 of 178 rows (one-to-one)." in lines
    assert lines[-1] == "1 bad cell"
    assert listing(home) == before


def test_check_without_a_target_on_a_folder(tmp_path):
    result = plait("check", "photos", "--out", str(tmp_path / "bad.parquet"), "--json")
    found = json.loads(result.out)
    assert result.code == 0
    image = next(c for c in found["columns"] if c["name"] == "image")
    assert (found["rows"], image["kind"], image["bad"], found["leaks"]) == (31, "image", {"not a picture": 1}, [])
    assert pq.read_table(tmp_path / "bad.parquet")["column"].to_pylist() == ["image"]


def test_check_counts_long_texts_and_takes_kinds(home):
    found = json.loads(plait("check", "pairs.parquet", "--kind", "title=text", "--max-tokens", "4", "--json").out)
    title = next(c for c in found["columns"] if c["name"] == "title")
    assert title["kind"] == "text" and title["why"] == "chosen" and title["notes"] == {"too long": 30}


def test_cells_cannot_drive_the_terminal(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"\x1b[31mred{i % 3},{i}\n" for i in range(30)))
    result = plait("check", str(tmp_path / "t.csv"))
    assert result.code == 0 and "\x1b" not in result.out and "red0" in result.out


# -- fit


def test_fit_prints_its_page_and_writes_its_folder(home, wine):
    assert wine.code == 0 and wine.err == ""
    labels = [line.split()[0] for line in wine.out.splitlines()]
    assert [x for x in labels if x in ("columns", "target", "model", "test", "saved")] == [
        "columns",
        "target",
        "model",
        "test",
        "saved",
    ]
    assert re.search(r"^test +accuracy 0\.\d+ \[0\.\d+, [01]\.\d+\] +majority 0\.\d+", wine.out, re.MULTILINE)
    names = {p.name for p in (home / "runs" / "wine").iterdir()}
    assert {
        "config.json",
        "schema.json",
        "model.safetensors",
        "report.html",
        "report.json",
        "bad_rows.parquet",
    } <= names
    plan = json.loads((home / "runs" / "wine" / "config.json").read_text())["plan"]
    assert (plan["epochs"], plan["batch_size"]) == (2, 32)
    schema = json.loads((home / "runs" / "wine" / "schema.json").read_text())
    assert [c["name"] for c in schema["columns"] if c["use"] == "input"] == ["alcohol", "ash", "hue"]


def test_fit_json_is_one_object_and_nothing_else(home, tmp_path):
    words = [
        "fit",
        str(home / "photos"),
        "--target",
        "label",
        "--epochs",
        "1",
        "--image-size",
        "16",
        "--json",
        "--workers",
        "1",
    ]
    done = subprocess.run(
        [*COMMAND, *words, "--out", "made"], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (
        found["run"] == "made"
        and found["task"] == "classify"
        and found["stopped"] == "finished"
        and found["bad_cells"] == 1
    )
    assert sum(found["rows"].values()) == 31 and found["splits"]["test"]["scores"][0]["name"] == "accuracy"
    assert "columns" in done.stderr and "saved" in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"made"}


def test_dry_run_trains_and_writes_nothing(home):
    before = listing(home)
    result = plait("fit", "wine.csv", "--target", "cultivar", "--dry-run", "--json")
    found = json.loads(result.out)
    assert result.code == 0 and set(found) >= {"columns", "splits", "plan", "cost"}
    assert sum(found["splits"].values()) == 178 and found["cost"]["parameters"] > 0
    assert "nothing was trained or written" in result.err
    assert listing(home) == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to one process")
def test_interrupted_then_resumed(home, tmp_path):
    words = [
        "fit",
        str(home / "wine.csv"),
        "--target",
        "cultivar",
        "--epochs",
        "100",
        "--patience",
        "100",
        "--batch-size",
        "142",
        "--folds",
        "1",
    ]
    process = subprocess.Popen(
        [*COMMAND, *words, "--json"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics, patience = tmp_path / "runs" / "wine" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < patience, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert json.loads(out) == {"run": "runs/wine", "stopped": "interrupted"}
    assert "plait fit --resume runs/wine" in err and "Traceback" not in err
    assert not (tmp_path / "runs" / "wine" / "model.safetensors").exists()
    done = len(metrics.read_text().splitlines())
    os.chdir(tmp_path)
    assert plait("predict", "runs/wine", str(home / "wine.csv"), "-o", "p.csv").code == 2  # there is no model yet
    result = plait("fit", "--resume", "latest", "--quiet")
    assert result == (0, "", "")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [r["epoch"] for r in rows] == list(range(1, 101)) and done < 100
    assert (tmp_path / "runs" / "wine" / "report.html").exists()
    assert plait("fit", "--resume", "latest").code == 2  # none is unfinished now


# -- evaluate, predict


def test_evaluate_prints_every_score_and_judges(home, wine, tmp_path):
    before = listing(home)
    result = plait(
        "evaluate", "runs/wine", "wine.csv", "--require", "accuracy>=1%", "--out", str(tmp_path / "bad.parquet")
    )
    assert result.code == 0 and result.err == ""
    assert re.search(r"^test +accuracy 0\.\d+ \[", result.out, re.MULTILINE)
    assert re.search(r"^log loss +[\d.]+ +\[[\d.]+, [\d.]+\] +[\d.]+ +178$", result.out, re.MULTILINE)
    assert "1 bad cell: 1 x not a number" in result.out
    assert pq.read_table(tmp_path / "bad.parquet").to_pylist()[0]["row"] == 5
    unmet = plait(
        "evaluate", "runs/wine", "wine.csv", "--require", "accuracy > 1", "--require", "log_loss<=99".replace("_", " ")
    )
    assert unmet.code == 4 and re.fullmatch(r"plait: accuracy is 0\.\d+, required > 1\n", unmet.err)
    assert listing(home) == before


def test_evaluate_json(wine):
    result = plait("evaluate", "runs/wine", "wine.csv", "--json", "--require", "accuracy>=2")
    found = json.loads(result.out)
    assert result.code == 4 and found["rows"] == 178 and found["bad_cells"] == 1
    assert [s["name"] for s in found["scores"]][0] == "accuracy" and found["baseline"]
    assert [(r["score"], r["required"], r["met"]) for r in found["required"]] == [("accuracy", ">= 2", False)]
    wrong = plait("evaluate", "runs/wine", "wine.csv", "--require", "acuracy>=0.5")
    assert wrong.code == 2 and "Did you mean 'accuracy'?" in wrong.err


def test_predict_answers_every_row_in_order(home, wine, tmp_path):
    before = listing(home)
    result = plait("predict", "runs/wine", "wine.csv", "-o", str(tmp_path / "p.parquet"), "--json")
    found, table = json.loads(result.out), pq.read_table(tmp_path / "p.parquet")
    assert result.code == 0 and found["rows"] == 178 and found["columns"] == table.column_names
    assert table["row"].to_pylist() == list(range(178))
    assert [i for i, unread in enumerate(table["unread"].to_pylist()) if unread] == [5] and table["unread"][
        5
    ].as_py() == "ash"
    assert set(table["cultivar"].to_pylist()) <= {"red", "white", "rose"}
    assert listing(home) == before
    assert plait("predict", "runs/wine", "wine.csv", "-o", str(tmp_path / "p.csv"), "--quiet") == (0, "", "")
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert len(lines) == 179 and lines[0].startswith('"row","cultivar"')
    wrong = plait("predict", "runs/nowhere", "wine.csv", "-o", "p.xlsx")
    assert wrong.code == 2 and "--out got 'p.xlsx'" in wrong.err


# -- embed, search


def test_embed_and_search(home, shop, tmp_path):
    before = listing(home)
    made = json.loads(plait("embed", str(shop), "photos", "-o", str(tmp_path / "v.parquet"), "--json").out)
    assert (made["rows"], made["null"], made["bad"]) == (31, 1, {"not a picture": 1})
    stored = pq.read_table(tmp_path / "v.parquet")
    assert stored["vector"].null_count == 1 and made["widths"] == {
        "vector": stored.schema.field("vector").type.list_size
    }
    asked = ("--text", "a red door, number 3", "-k", "4", "--json")
    folder = json.loads(plait("search", str(shop), "photos", *asked, "--show", str(tmp_path / "hits.png")).out)
    assert [h["rank"] for h in folder["hits"]] == [1, 2, 3, 4]
    assert all(h["cell"].startswith(("red/", "blue/")) and "broken" not in h["cell"] for h in folder["hits"])
    vectors = json.loads(plait("search", str(shop), str(tmp_path / "v.parquet"), *asked).out)
    assert [h["row"] for h in vectors["hits"]] == [h["row"] for h in folder["hits"]]
    assert Image.open(tmp_path / "hits.png").size[0] > 100
    printed = plait("search", str(shop), "photos", "--image", "photos/red/3.png", "-k", "2").out.splitlines()
    assert printed[0].split() == ["rank", "similarity", "row", "cell"] and len(printed) == 3
    alike = json.loads(plait("search", str(shop), "photos", "--image", "photos/red/3.png", "-k", "99", "--json").out)[
        "hits"
    ]
    assert len(alike) == 30  # where only pictures are, a picture finds pictures: all that can be read, and itself
    assert next(h["similarity"] for h in alike if h["cell"] == "red/3.png") == pytest.approx(1, abs=1e-3)
    assert listing(home) == before


def test_search_refuses_what_it_cannot_do(shop, wine, tmp_path):
    assert plait("search", str(shop), "photos").code == 2
    assert plait("search", str(shop), "photos", "--text", "a", "--image", "photos/red/3.png").code == 2
    assert plait("search", "runs/wine", "wine.csv", "--text", "a").code == 2
    assert plait("search", str(shop), "photos", "--image", "photos/red/broken.png").code == 3
    assert plait("search", str(shop), "wine.csv", "--text", "a").code == 3
    pq.write_table(pa.table({"row": [0], "vector": [[1.0, 2.0]]}), tmp_path / "other.parquet")
    other = plait("search", str(shop), str(tmp_path / "other.parquet"), "--text", "a")
    assert other.code == 3 and "vectors of 2 numbers" in other.err


def test_evaluate_retrieval_with_a_gallery(shop):
    result = plait(
        "evaluate",
        str(shop),
        "pairs.parquet",
        "--gallery",
        "pairs.parquet",
        "--json",
        "--require",
        "recall@1>=0",
        "--quiet",
    )
    found = json.loads(result.out)
    assert result == (0, result.out, "")
    assert {s["name"].split(", ")[0] for s in found["scores"]} == {"title to photo", "photo to title"}


# -- models, methods, show


def test_methods_are_listed_and_shown():
    assert [m["name"] for m in json.loads(plait("methods", "sinkf", "--json").out)["methods"]] == ["sinkformer"]
    assert "steps=3" in next(line for line in plait("methods").out.splitlines() if line.startswith("sinkformer"))
    shown = plait("show", "sinkformer").out
    assert "arXiv:2110.11773" in shown and 'undo = plait.apply_method(model, "sinkformer")' in shown
    none = plait("methods", "sinkhole")
    assert none.code == 0 and "no method matches 'sinkhole'" in none.err


def test_models_by_pattern_modality_and_task():
    everything = plait("models").out.splitlines()
    assert everything[0].split() == ["name", "takes", "tasks", "weights", "paper"] and len(everything) > 50
    named = json.loads(plait("models", "crossvit_*", "--json").out)["models"]
    assert {m["system"] for m in named} == {"crossvit"} and {m["name"] for m in named} >= {
        "crossvit_nano",
        "crossvit_small",
    }
    assert named == json.loads(plait("models", "crossvit_", "--json").out)["models"]
    pairs = json.loads(plait("models", "--takes", "image,text", "--task", "retrieve", "--json").out)["models"]
    assert (
        pairs
        == json.loads(plait("models", "--takes", "image", "--takes", "text", "--task", "retrieve", "--json").out)[
            "models"
        ]
    )
    assert pairs and all({"image", "text"} <= set(m["takes"]) and "retrieve" in m["tasks"] for m in pairs)
    none = plait("models", "crossvitt_small")
    assert none.code == 0 and none.out == "" and "Did you mean 'crossvit_small'?" in none.err
    assert "Did you mean 'image'?" in plait("models", "--takes", "imag").err
    assert plait("models", "--task", "retreive").code == 2


def test_show_tells_paper_size_and_licence():
    result = plait("show", "crossvit_small")
    assert result.code == 0 and "arXiv:2103.14899" in result.out and "New here:" in result.out
    assert re.search(r"^parameters +26,856,272$", result.out, re.MULTILINE)
    assert re.search(
        r"^weights +timm/crossvit_small_240.in1k, model.safetensors, licence apache-2.0$", result.out, re.MULTILINE
    )
    shown = dict(line.split(None, 1) for line in result.out.splitlines() if re.match(r"[a-z]+ {2,}", line))
    assert shown["pictures"] == (
        "240 x 240: resized, the shorter side to 274, bicubic; of that the middle; "
        "mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    )
    for name, label, text in (
        ("cvt_13", "pictures", "to 256, bicubic; of that the middle (rounded down); mean"),
        ("maxvit_tiny_tf_384", "pictures", "384 x 384: resized to 384 x 384 whatever their shape, bicubic; mean 0.5"),
        ("vilt_b_32", "pictures", "384 x 384: how they were cropped is not known; whole, on gray; mean"),
        (
            "bert_l2_h128",
            "texts",
            "bert-base-uncased/tokenizer.json: begins with 101, ends with 102, at most 512 tokens",
        ),
        ("whisper_tiny", "sounds", "one channel, 16,000 samples a second"),
        ("swin_tiny_patch4_window7_224.ms_in22k", "others", "swin_tiny_patch4_window7_224.ms_in22k_ft_in1k"),
        ("swin_tiny_patch4_window7_224.ms_in22k", "weights", "timm/swin_tiny_patch4_window7_224.ms_in22k, model.safe"),
    ):
        lines = [line for line in plait("show", name).out.splitlines() if line.startswith(f"{label} ")]
        assert len(lines) == 1 and text in lines[0], name
    found = json.loads(plait("show", "crossvit", "--json").out)
    assert (
        found["name"] == f"crossvit_{found['default']}"
        and found["tasks"] == ["classify", "ordinal", "regress", "restore"]
        and "toy" not in found["sizes"]
    )
    wrong = plait("show", "crosvit_small")
    assert wrong.code == 2 and "crossvit_small" in wrong.err


# -- the shell itself


def test_version_and_help():
    assert re.fullmatch(r"plait \d+\.\d+\.\d+\S*\n", plait("--version").out)
    assert plait() == plait("--help")
    listed = plait("--help").out.split("Commands:")[1]
    assert [line.split()[0] for line in listed.strip().splitlines()] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_that_parses(name):
    result = plait(name, "--help")
    examples = re.findall(r"^\s*\$ plait (.+)$", result.out, re.MULTILINE)
    assert result.code == 0 and examples
    command = typer.main.get_command(application()).commands[name]
    for words in map(shlex.split, examples):
        assert words[0] == name
        command.make_context(name, words[1:])


@pytest.mark.parametrize(
    "words, message",
    [
        (["fitt"], "no command 'fitt'. Did you mean 'fit'?"),
        (["fit", "wine.csv", "--bach_size", "3"], "Did you mean --batch-size?"),
        (["fit"], "no table"),
        (["fit", "wine.csv"], "--target"),
        (["fit", "wine.csv", "--target", "cultivar", "--batch-size", "many"], "--batch-size got 'many'"),
        (["fit", "wine.csv", "--target", "cultivar", "--epochs", "0"], "epochs must be above 0"),
        (["fit", "wine.csv", "--target", "cultivr"], "Did you mean 'cultivar'?"),
        (["fit", "wine.csv", "--target", "cultivar", "--kind", "ash=numbr"], "Did you mean 'number'?"),
        (["fit", "wine.csv", "--target", "cultivar", "--kind", "ash"], "expected COLUMN=KIND"),
        (["fit", "wine.csv", "--target", "cultivar", "--task", "clasify"], "Did you mean 'classify'?"),
        (["fit", "wine.csv", "--target", "cultivar", "--system", "crossvitt"], "did you mean crossvit"),
        (["fit", "wine.csv", "--target", "cultivar", "--system", "crossvit"], "does not fit"),
        (["fit", "wine.csv", "--target", "cultivar", "--device", "abacus"], "unknown device 'abacus'"),
        (["fit", "wine.csv", "--target", "cultivar", "--max-bad", "lots"], "expected a share such as 1%"),
        (["fit", "wine.csv", "--pretrained", "--weights", "w.safetensors"], "give one of them"),
        (["fit", "wine.csv", "--target", "cultivar", "--only", "stem.*"], "only stem.* of which weights?"),
        (["fit", "--resume", "runs/nowhere"], "no run folder"),
        (["fit", "--resume", "runs/wine", "--out", "runs/other"], "leave out --out"),
        (["fit", "--resume", "runs/wine", "--lr", "0.1"], "lr cannot be given with --resume"),
        (["evaluate", "photos", "wine.csv"], "no run folder"),
        (["evaluate", "runs/wine"], "Missing argument"),
        (["evaluate", "runs/wine", "wine.csv", "--require", "accuracy"], "expected a score and a bound"),
        (["check", "wine.csv", "--out", "bad.csv"], "--out got 'bad.csv'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(words, message, wine, home):
    before = listing(home)
    result = plait(*words)
    assert result.code == 2 and result.out.count("\n") <= result.out.count("columns") * 20
    assert result.err.startswith("plait: ") and result.err.count("\n") == 1 and message in result.err
    assert listing(home) == before


@pytest.mark.parametrize(
    "words, message",
    [
        (["fit", "wines.csv", "--target", "cultivar"], "Did you mean 'wine.csv'?"),
        (["fit", "empty.csv", "--target", "cultivar"], "empty"),
        (["check", "broken.parquet"], "not a readable Parquet file"),
        (["fit", "photos", "--target", "label", "--max-bad", "1%"], "1 of 31 rows (3.2%) have a bad cell"),
        (["evaluate", "runs/wine", "photos"], "none of the input columns"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_data_errors(words, message, wine, home):
    before = listing(home)
    result = plait(*words, "--json")
    assert result.code == 3 and message in result.err and listing(home) == before
    failure = json.loads(result.out)
    assert failure["code"] == 3 and message in failure["error"]


def test_a_defect_is_called_one(monkeypatch, capfd):
    monkeypatch.setattr("plait.tasks.list_models", lambda *a, **k: [][0])
    result = plait("models")
    assert result.code == 1 and result.out == ""
    assert result.err.startswith("plait: this is a defect: IndexError: list index out of range at plait/cli/models.py:")
    monkeypatch.setenv("PLAIT_DEBUG", "1")
    with redirect_stderr(io.StringIO()) as err:
        assert main(["models"]) == 1
    assert "Traceback" in err.getvalue()


def test_interrupted_before_training(monkeypatch):
    def stop(*_: object, **__: object):
        raise KeyboardInterrupt

    monkeypatch.setattr("plait.tasks.list_models", stop)
    assert plait("models") == (130, "", "plait: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows reports a closed pipe otherwise")
def test_a_reader_that_leaves_ends_it_quietly():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "models"], stdout=write, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    os.close(write)
    assert done.returncode == 141 and done.stderr == ""


def test_lists_pairs_numbers_and_bounds():
    assert options.names(["a,b", 'c, "d, e"', "a"]) == ["a", "b", "c", "d, e"] and options.names(None) == []
    assert options.pairs(["photo=image", "x=y=number"]) == {"photo": "image", "x=y": "number"}
    assert whole("auto") is None and whole("12") == 12 and share("1%") == share("0.01") == 0.01
    assert parse("accuracy>=90%") == ("accuracy", ">=", 0.9) and parse("title to photo, recall@1 > .5")[2] == 0.5
    for text in ("accuracy", "accuracy>=", ">=0.5", "accuracy>=1.2.3"):
        with pytest.raises(UsageError, match="expected a score and a bound"):
            parse(text)


def test_some_weights_of_a_file_begin_a_run_and_are_said(tmp_path):
    start = api.create_model("vit_toy", seed=9)
    torch.save({"model": start.state_dict()}, tmp_path / "w.pth")
    fit = ["fit", "photos", "--target", "label", "--system", "vit_toy", "--weights", str(tmp_path / "w.pth")]
    result = plait(*fit, "--only", "patch_embed.*", "--epochs", "1", "--lr", "1e-30", "-o", str(tmp_path / "run"))
    assert result.code == 0, result.err
    (line,) = [line for line in result.out.splitlines() if line.startswith("weights")]
    assert re.fullmatch(r"weights +\S+w.pth: 4 of 30 weights are taken \(patch_embed.\*\), 26 start anew; .*", line)
    kept = load_file(tmp_path / "run" / "model.safetensors")
    for key, value in start.state_dict().items():
        if not key.startswith("head."):
            same = torch.allclose(kept[f"bound.system.{key}"], value, atol=1e-6)
            assert same == (key.startswith("patch_embed.") or value.std() == 0), key  # norms and biases start alike
    whole = plait(*fit, "--dry-run")
    assert "w.pth: its classifier, of 10 classes, is left out" in whole.out
    none = plait(*fit, "--only", "stm.*", "--dry-run")
    assert none.code == 2 and "only='stm.*' names none of the weights of vit_toy" in none.err


def test_an_option_is_what_its_setting_says():
    known = {o: p for p in get_command(application()).commands["fit"].params for o in p.opts}
    shown = {f.metadata.get("option", f.name).replace("_", "-"): f for f in fields(Settings)}
    for name, field in shown.items():
        if not field.metadata.get("hidden"):
            assert known[f"--{name}"].help.startswith(field.metadata["help"]), name
        assert f"{field.name}: {field.metadata['help']}" in Settings.__doc__
    texts = {"kind": ["a=image"], "target": ["x", "y"], "inputs": [], "batch_size": "auto", "max_bad": "5%", "seed": 0}
    found = {"kinds": {"a": "image"}, "target": ["x", "y"], "max_bad": 0.05, "seed": 0}
    assert options.read_settings(texts | {"allow_outside": False, "lr": None}) == found
    assert options.read_settings({"target": ["x"], "inputs": ["a,b", "c"]}) == {"target": "x", "inputs": ["a,b", "c"]}


def test_json_is_strict():
    value = {"a": np.float32(0.5), "b": float("nan"), "c": Path("x"), "d": (np.int64(3), "ü"), "e": None, "f": True}
    assert json.loads(output.as_json(value)) == {"a": 0.5, "b": None, "c": "x", "d": [3, "ü"], "e": None, "f": True}
    assert output.as_json(value).isascii()
