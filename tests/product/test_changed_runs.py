"""`plait fit --method`: a changed model is a run like any other. Saved, loaded, resumed, asked: it is the same."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import plait
from plait.cli import main
from plait.errors import PlaitError, UsageError
from plait.runs.assemble import BoundRecipe
from plait.runs.console import Console
from plait.runs.settings import Settings

ROWS = 96
SEARCH = dict(task="retrieve", target=None, inputs=["photo", "said"], kinds={"said": "text"})
METHODS = {
    "one": ["sinkformer:steps=5"],
    "wrapped": ["sinkformer:steps=1", "s2_scaling:scales=(1, 2)"],
    "computed": ["kv_transformer:positions=8"],  # has a buffer that no file holds
    "scheduled": ["slab:steps=4,kernel=3"],  # a norm that goes on with each step
    "adapted": ["taylor_pruning:share=0.5", "lora:rank=2", "tome:r=2"],  # fewer weights, most of them frozen
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A table of handwritten digits in pictures and words."""
    folder, digits, photos = tmp_path_factory.mktemp("changed"), load_digits(), []
    for image in digits.images[:ROWS]:
        out = io.BytesIO()
        Image.fromarray((image * 15.9).astype(np.uint8)).save(out, "PNG")
        photos.append(out.getvalue())
    words = [f"number {k} of ten" for k in digits.target[:ROWS]]
    pq.write_table(
        pa.table({"photo": photos, "said": words, "digit": [f"d{k % 3}" for k in digits.target[:ROWS]]}),
        folder / "digits.parquet",
    )
    return folder


def train(home: Path, out: str | Path, **options):
    usual = dict(target="digit", inputs=["photo"], system="vit_toy", folds=1, epochs=2, batch_size=32, precision="fp32")
    made = usual | dict(checkpoint_seconds=0.0, console=Console(quiet=True)) | options
    return plait.fit(home / "digits.parquet", out=home / out, **{k: v for k, v in made.items() if v is not None})


@pytest.fixture(scope="module", params=METHODS)
def run(home, request):
    return train(home, request.param, methods=METHODS[request.param])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def answers(run, home: Path) -> pa.Table:
    return run.predict(home / "digits.parquet")


def test_a_loaded_run_answers_as_the_trained_one_did(run, home):
    loaded = plait.load(run.folder)
    assert [type(m) for m in loaded.model.modules()] == [type(m) for m in run.model.modules()]
    for (name, ours), (_, theirs) in zip(loaded.model.named_buffers(), run.model.named_buffers()):
        assert torch.equal(ours, theirs), name
    assert equal(loaded.model.state_dict(), run.model.state_dict())
    assert answers(loaded, home).equals(answers(run, home))
    assert loaded.embed(home / "digits.parquet").equals(run.embed(home / "digits.parquet"))
    found, want = loaded.evaluate(home / "digits.parquet"), run.evaluate(home / "digits.parquet")
    assert [(s.name, s.value) for s in found.scores] == [(s.name, s.value) for s in want.scores]


def test_the_method_has_its_say(run, home):
    """Without its changes the recipe makes another model, which these weights do not fit or which answers otherwise."""
    bare = run.folder.with_name(f"{run.folder.name}-bare")
    shutil.copytree(run.folder, bare)
    config = json.loads((bare / "config.json").read_text())
    assert config["recipe"]["changes"]
    config["recipe"]["changes"] = []
    (bare / "config.json").write_text(json.dumps(config))
    (bare / "manifest.json").unlink()
    try:
        other = plait.load(bare)
    except ValueError as error:
        assert "do not fit" in str(error)
    else:
        assert not answers(other, home).equals(answers(run, home))


@pytest.mark.parametrize("left", [1, 0])
def test_a_resumed_run_ends_with_the_same_bits(run, left):
    """As if killed before the last step, and before the first checkpoint."""
    killed = run.folder.with_name(f"{run.folder.name}-killed-{left}")
    shutil.copytree(run.folder, killed)
    (killed / "model.safetensors").unlink()
    checkpoints = sorted((killed / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    for folder in checkpoints[left:]:
        shutil.rmtree(folder)
    again = plait.fit(out=killed, resume=True, console=Console(quiet=True))
    assert again.stopped == "finished" and equal(weights(killed), weights(run.folder))


def test_a_schedule_goes_on_with_each_step(home):
    run = train(home, "steps", methods=["slab:steps=4,kernel=3"])
    steps = [v for k, v in weights(run.folder).items() if k.endswith(".step")]
    assert steps and all(v.item() == 4 for v in steps)  # two epochs of three steps, four of which count


def test_changes_act_on_published_weights(home, tmp_path):
    """They are read first, and also by a run that was killed before it had a checkpoint."""
    start = plait.create_model("vit_toy", seed=9, num_classes=0)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    options = dict(methods=["sinkformer"], lr=1e-30, weight_decay=0.0, epochs=1)
    run = train(home, "published", pretrained=str(tmp_path / "start.safetensors"), **options)
    kept = {k.removeprefix("bound.system."): v for k, v in weights(run.folder).items() if "bound.system." in k}
    changed = plait.create_model("vit_toy", seed=9, num_classes=0, changes=["sinkformer"]).state_dict()
    assert kept.keys() == changed.keys() and all(torch.allclose(kept[k], changed[k], atol=1e-6) for k in kept)
    shutil.rmtree(run.folder / "checkpoints")
    (run.folder / "model.safetensors").rename(tmp_path / "before.safetensors")
    plait.fit(out=run.folder, resume=True, console=Console(quiet=True))
    assert equal(weights(run.folder), load_file(tmp_path / "before.safetensors"))


def test_retrieval_searches_with_a_changed_model(home):
    options = dict(SEARCH, system="auto_toy", epochs=1)
    run = train(home, "search", methods=["sinkformer"], **options)
    loaded = plait.load(run.folder)
    found, want = (r.search(home / "digits.parquet", text="number 3 of ten", k=5) for r in (loaded, run))
    assert found == want


def test_the_command_line_takes_several_and_says_so(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    usual = ["fit", "digits.parquet", "-t", "digit", "--inputs", "photo", "--system", "vit_toy", "--epochs", "1"]
    usual += ["--folds", "1"]
    words = [*usual, "--method", "sinkformer:steps=5", "--method", "unified_norm:window=2,warmup=3"]
    said = "vit_toy + sinkformer:steps=5 + unified_norm:window=2,warmup=3"
    assert main([*words, "--dry-run", "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["model"] == said and said in out.err
    assert main([*words, "--out", "told"]) == 0
    assert said in capsys.readouterr().out and said in (home / "told" / "report.html").read_text()
    assert main(["fit", "--resume", "told", "--method", "slab"]) == 2
    assert "keeps its settings: methods" in capsys.readouterr().err


@pytest.mark.parametrize(
    "system, method, why",
    [
        ("vit_toy", "sinkforme", "no method is named 'sinkforme': did you mean sinkformer"),
        ("vit_toy", "sinkformer:step=3", "no option 'step'. Did you mean 'steps'?"),
        ("vit_toy", "sinkformer:steps=many", "steps got 'many', expected int"),
        ("vit_toy", "sinkformer:steps=", "expected NAME:option=value,option=value, such as sinkformer:steps=3"),
        ("vit_toy", "sinkformer:steps=2", "method sinkformer:steps=2: steps: got 2, expected an odd number"),
        ("cvt_toy", "nalaformer", "method nalaformer: CvT has no Attend inside an Attention that could be"),
        ("vit_toy", "ecoformer", "ecoformer is not for `plait fit`: its codes are chance until"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(system, method, why, home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    words = ["fit", "digits.parquet", "-t", "digit", "--inputs", "photo", "--system", system, "--out", "never"]
    assert main([*words, "--method", method]) == 2
    err = capsys.readouterr().err
    assert why in err and "Traceback" not in err and not (home / "never").exists()
    with pytest.raises(PlaitError):
        train(home, "never", system=system, methods=[method])


def test_a_wrapper_that_takes_the_role_away_is_refused(home):
    with pytest.raises(PlaitError, match="expected a backbone of pictures"):
        train(home, "never", **SEARCH, system="clip_toy", methods=["s2_scaling"])
    made = Settings(methods=["s2_scaling"]).methods
    bare = BoundRecipe("vit_toy", {}, made, role="embedder", mean=(0.5,) * 3, std=(0.5,) * 3, slots={})
    with pytest.raises(UsageError, match=r"vit_toy \+ s2_scaling is a Scales, which is no embedder"):
        bare.bind(bare.build_on_meta())


def test_settings_keep_methods_as_plain_json():
    one = Settings(methods=["s2_scaling:scales=(1, 2, 3)", ("sinkformer", {"steps": 5})])
    two = Settings.from_json(json.loads(json.dumps(one.to_json())))
    assert one.methods == two.methods == [("s2_scaling", {"scales": (1, 2, 3)}), ("sinkformer", {"steps": 5})]
    assert Settings(methods="sinkformer").methods == [("sinkformer", {})]
