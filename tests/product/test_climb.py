"""Towers that learn with the answer: what is trained, what is kept, and a run that goes on, loads and answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import plait
from plait.errors import DataError, UsageError
from plait.methods.adaptation.lora import outermost
from plait.parts.adapters import LoRALinear, read_adapter, write_adapter
from plait.runs import climb
from plait.runs.console import Console
from plait.runs.folder import unfinished
from plait.runs.manifest import verify
from plait.runs.rungs import Rungs
from plait.runs.settings import Settings
from plait.runs.towers import load_towers
from plait.tasks.bind import bind
from plait.train.optim import groups
from tests.peers import declare_torchvision
from tests.product.test_towers import NAME, eye, fit, folder, heard, pictures, signs  # noqa: F401

RUNGS = ("from_nothing", "on_towers", "adapters", "all_weights")
LOSSES = {"from_nothing": 4.0, "on_towers": 3.0, "adapters": 1.0, "all_weights": 2.0}


def decided(monkeypatch, losses=LOSSES):
    """Which rung answers is no matter of luck here: its rows' losses are these."""

    def told(self, run):
        name = run.folder.name if run.folder.name in RUNGS else "on_towers"
        return losses[name] + 0.01 * np.random.default_rng(0).random(len(self.data.splits["val"]))

    monkeypatch.setattr(Rungs, "_losses", told)


@pytest.fixture(scope="module")
def climbed(folder, tmp_path_factory):  # noqa: F811
    """Signs on MiniLM with adapters, which answer."""
    with pytest.MonkeyPatch.context() as patch:
        decided(patch)
        towers = {"text": f"{NAME}:{folder}"}
        out = tmp_path_factory.mktemp("runs") / "signs"
        return fit(signs(), out, kinds={"name": "text"}, towers=towers, rungs=2, epochs=3, augment=0.0)


def told(run) -> dict:
    return json.loads((run.folder / "report.json").read_text())["rungs"]


def test_the_rung_that_answers_is_the_folder_that_was_asked_for(climbed):
    home = climbed.folder
    assert home.name == "signs" and climbed.towers and (home / "on_towers" / "from_nothing" / "config.json").exists()
    facts = told(climbed)
    assert facts["answers"] == "adapters" and [r["rung"] for r in facts["rungs"]] == list(RUNGS[:3])
    assert facts["rungs"][2]["over"] == "on_towers" and facts["rungs"][2]["kept"] and not unfinished(home)
    assert 0 < facts["rungs"][2]["learns"]["share"] < 0.03
    assert facts["splits"]["test"]["adapters"]["n"] == 160 == facts["splits"]["test"]["gain_adapters"]["n"]
    page = (home / "report.html").read_text()
    assert "towers with adapters answer" in page and "on towers with adapters, test" in page and "0.44%" in page
    files = verify(home)
    assert {f.state for f in files} == {"right"}, [f for f in files if f.state != "right"]
    assert "towers/text_adapter/adapter_model.safetensors" in {f.file for f in files}
    loaded = plait.load(home)
    assert loaded.predict(signs()).equals(climbed.predict(signs()))
    below = plait.load(home / "on_towers")
    assert loaded.model.ladder is None and below.model.ladder is not None
    assert loaded.task.misses != below.task.misses  # each is as sure as its own answers let it be
    found = loaded.evaluate(signs().filter(np.array(signs()["split"]) == "test")).scores[0]
    assert found.value == facts["splits"]["test"]["adapters"]["value"]


def test_adapters_lie_beside_weights_that_stay_and_merge_into_them(climbed, folder):  # noqa: F811
    home = climbed.folder
    config = json.loads((home / "config.json").read_text())
    below = json.loads((home / "on_towers" / "config.json").read_text())
    assert config["towers"]["text"]["digest"] == below["towers"]["text"]["digest"]
    base, plain = (p / "towers" / "text.safetensors" for p in (home, home / "on_towers"))
    assert base.read_bytes() == plain.read_bytes()
    frozen, merged = (load_towers(home, config, adapted=a).towers["text"].bound for a in (False, True))
    cells = climb.cells_of(_prepared(climbed, config)).rows.batch(np.arange(40))
    batch = {"text": cells["text_0"], "keep": {"text": cells["keep"]["text_0"]}}
    beside = load_towers(home, config, adapted=False).towers["text"].bound
    read_adapter(beside.system, home / "towers" / "text_adapter")
    adapted = [n for n, m in beside.named_modules() if isinstance(m, LoRALinear) and m.lora_B.weight.abs().sum() > 0]
    assert len(adapted) == 8 and all(".blocks.4." in n or ".blocks.5." in n for n in adapted)  # of six the last two
    with torch.no_grad():
        got, want, before = (b.eval().features(batch).fused for b in (merged, beside, frozen))
    assert (got - want).abs().max() < 1e-5 * want.abs().max() and (got - before).abs().max() > 1e-2

    declare_torchvision()
    import peft
    from transformers import AutoModel

    theirs = peft.PeftModel.from_pretrained(frozen.system, home / "towers" / "text_adapter").eval()
    with torch.no_grad():
        tuned = theirs(batch["text"], batch["keep"]["text"]) * frozen.system.embed_width**0.5
    torch.testing.assert_close(tuned, want, rtol=1e-4, atol=1e-5)
    write_adapter(beside.system, home / "public", source="sentence_transformers")  # as the published model has them
    public = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(folder), home / "public").eval()
    with torch.no_grad():
        states = public(input_ids=batch["text"], attention_mask=batch["keep"]["text"].long()).last_hidden_state
        ours = beside.system.tokens(batch["text"], batch["keep"]["text"]).x
    real = batch["keep"]["text"]
    torch.testing.assert_close(states[real], ours[real], rtol=1e-4, atol=1e-4)


def _prepared(run, config):
    from plait.runs.prepare import prepare

    settings = Settings.from_json(config["settings"])
    return prepare(signs(), settings, Console(quiet=True), run.towers, None)


def test_a_run_whose_towers_learnt_trains_on_and_is_changed(climbed, tmp_path):
    import shutil

    out = tmp_path / "again"
    shutil.copytree(climbed.folder, out)
    mean = climbed.schema.column("name").params["mean"]
    again = plait.fit(signs(), out=out, resume=True, console=Console(quiet=True))  # nothing is left to do
    assert again.predict(signs()).equals(climbed.predict(signs()))
    on = plait.fit(signs(), out=out, resume=True, epochs=4, console=Console(quiet=True))
    assert [r["epoch"] for r in on.history.rows] == [1, 2, 3, 4] and on.schema.column("name").params["mean"] == mean
    assert not (out / "adapters").exists() and on.task.name == "classify"
    assert plait.load(out).predict(signs(60)).equals(on.predict(signs(60)))
    changed = plait.change(climbed.folder, ["int8"], out=tmp_path / "small")
    there, here = (r.predict(signs())["probability"].to_numpy() for r in (plait.load(changed.folder), climbed))
    np.testing.assert_allclose(there, here, atol=0.05)
    weights = out / "towers" / "text_adapter" / "adapter_model.safetensors"
    save_file({k: 2 * v for k, v in load_file(weights).items()}, weights)
    with pytest.raises(DataError, match="is not as it was written"):
        plait.load(out)
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match="other adapters than those"):
        plait.load(out)


def pace(table, out, tower, console=None, **options):
    usual = dict(towers=tower, system="auto_toy", epochs=2, lr=0.01, rungs=3)
    return fit(table, out, console, **usual | options)


def test_all_rungs_of_pictures_and_cells_that_are_none(eye, tmp_path, monkeypatch):  # noqa: F811
    decided(monkeypatch, LOSSES | {"all_weights": 0.5})
    console, said = heard()
    run = pace(pictures(1), tmp_path / "run", eye, console)
    facts = told(run)
    assert [r["kept"] for r in facts["rungs"][1:]] == [True, True, True] and facts["answers"] == "all_weights"
    assert [r["over"] for r in facts["rungs"][1:]] == list(RUNGS[:3])
    assert "adapters in the last third" in said.getvalue() and "100.00%" in said.getvalue()
    config = json.loads((run.folder / "config.json").read_text())
    tower = load_towers(run.folder, config).towers["image"].bound.system
    published = plait.create_model("vit_toy", pretrained=eye["image"].split(":", 1)[1], num_classes=0)
    moved = {k for k, v in tower.state_dict().items() if (v != published.state_dict()[k]).any()}
    assert len(moved) == len(published.state_dict()) and not (run.folder / "towers" / "image_adapter").exists()
    blank = {"photo": [None, b"no picture"], "other": [None, None]}
    columns = [c for c in run.predict(blank).column_names if c.startswith("p(")]
    prior = [run.predict(blank)[c].to_pylist() for c in columns]
    assert all(abs(a - b) < 1e-6 for a, b in prior) and all(0.2 < a < 0.8 for a, _ in prior)
    assert plait.load(run.folder).predict(pictures(2)).equals(run.predict(pictures(2)))
    assert {c["row"] for c in _bad(run.folder)} == {3, 56}


def _bad(home):
    import pyarrow.parquet as pq

    return pq.read_table(home / "bad_rows.parquet").to_pylist()


def test_a_kill_between_rungs_and_within_one_is_made_good(eye, tmp_path, monkeypatch):  # noqa: F811
    decided(monkeypatch)
    whole = pace(pictures(1), tmp_path / "whole", eye)
    train, steps, stop = climb.train, [], {"all_weights"}

    def counted(job, plan, home, **how):
        class Counting(type(job)):
            def after_step(self):
                super().after_step()
                steps.append(home.name)
                if home.name in stop and steps.count(home.name) == 1:
                    import os
                    import signal

                    os.kill(os.getpid(), signal.SIGTERM)

        job.__class__ = Counting
        return train(job, plan, home, **how)

    monkeypatch.setattr(climb, "train", counted)
    out = tmp_path / "run"
    run = pace(pictures(1), out, eye)
    assert run.stopped == "interrupted" and unfinished(out) and (out / "adapters" / "model.safetensors").exists()
    assert steps.count("adapters") == 4 and 1 <= steps.count("all_weights") < 4
    with pytest.raises(UsageError, match="is a rung of the run"):
        plait.fit(pictures(1), out=out / "all_weights", resume=True)
    stop.clear()
    again = plait.fit(pictures(1), out=out, resume=True, console=Console(quiet=True))
    assert steps.count("adapters") == 4 and steps.count("all_weights") == 4  # where they were
    assert again.folder == out and told(again)["answers"] == "adapters" and not unfinished(out)
    for name in ("model.safetensors", "towers/image_adapter/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (whole.folder / name).read_bytes()
    ours, theirs = (p / "on_towers" / "all_weights" / "towers" / "image.safetensors" for p in (out, whole.folder))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_rung_without_time_or_layers_is_left_out_in_a_sentence(eye, tmp_path, monkeypatch):  # noqa: F811
    save_file(plait.create_model("resnet_toy", seed=1, num_classes=0).state_dict(), tmp_path / "resnet.safetensors")
    console, said = heard()
    table = pictures(0).drop(["other"])
    run = pace(table, tmp_path / "run", {"image": f"resnet_toy:{tmp_path / 'resnet.safetensors'}"}, console)
    facts = told(run)
    assert "has no layers" in facts["left_out"]["adapters"] and "left out" in said.getvalue()
    assert [r["rung"] for r in facts["rungs"]] == ["from_nothing", "on_towers", "all_weights"]
    assert "has no layers" in (run.folder / "report.html").read_text()

    monkeypatch.setattr(climb, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(climb, "MOST_SECONDS", 0.0)
    run = pace(table, tmp_path / "late", eye)
    assert set(told(run)["left_out"]) == {"adapters", "all_weights"}
    assert "an epoch would take" in told(run)["left_out"]["adapters"]
    run = pace(table, tmp_path / "given", eye, minutes=0.4)
    homes = list(tmp_path.glob("given/**/config.json"))
    assert len(homes) == 4 and {json.loads(p.read_text())["plan"]["minutes"] for p in homes} == {0.1}
    with pytest.raises(UsageError, match="rungs: got 4"):
        Settings(rungs=4)


def test_folds_leave_towers_frozen(eye, tmp_path):  # noqa: F811
    run = pace(pictures(1).drop(["split", "other"]), tmp_path / "run", eye, split=None, folds=2, epochs=1)
    facts = told(run)
    assert set(facts["left_out"]) == {"adapters", "all_weights"} and "folds" in facts["left_out"]["adapters"]
    assert [r["rung"] for r in facts["rungs"]] == ["from_nothing", "on_towers"] and not facts["splits"]
    assert not list(run.folder.glob("**/adapters")) and {f.state for f in verify(run.folder)} == {"right"}


def test_batch_norms_of_a_tower_keep_their_statistics_and_deeper_layers_take_smaller_steps():
    slots = {"image": {"kind": "image"}}
    system = plait.create_model("vit_toy", num_classes=0, depth=4)
    climb.slower_below(system)
    rates = {n: g["lr_factor"] for g in groups(bind(system, "backbone", slots), 0.05) for n in g["names"]}
    layers = [f"system.{n}." for n, m in system.named_modules() if any(m is layer for layer in outermost(system))]
    assert len(layers) == 4
    for depth, layer in enumerate(reversed(layers)):
        found = {rate for name, rate in rates.items() if name.startswith(layer)}
        assert found == {climb.DECAY**depth}
    outside = {n: r for n, r in rates.items() if not n.startswith(tuple(layers))}
    first = min(rates.values())
    assert first == climb.DECAY**4 and {n for n, r in outside.items() if r == first} >= {
        n for n in outside if "patch" in n
    }
    assert {r for n, r in outside.items() if "norm" in n} == {1.0}


class Fixed(Rungs):
    def __init__(self, losses):
        super().__init__(None, Console(quiet=True))
        self.of = losses

    def _losses(self, run):
        return self.of[run]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-3, 3, width=16), min_size=5, max_size=5), min_size=4, max_size=4))
def test_a_rung_is_kept_by_more_than_noise_over_the_last_that_was(losses):
    ladder, kept = Fixed(dict(zip(RUNGS, map(np.array, losses)))), "from_nothing"
    for rung in RUNGS:
        ladder.add(rung, rung)
        gain = ladder.losses[kept] - ladder.losses[rung]
        better = gain.mean() > 0 and gain.mean() >= 2 * gain.std(ddof=1) / len(gain) ** 0.5 - 1e-12
        if rung != "from_nothing":
            assert ladder.steps[-1].kept == better and ladder.steps[-1].over == kept
        kept = rung if better and rung != "from_nothing" else kept
    assert ladder.kept == kept and ladder.start == ("on_towers" if kept == "from_nothing" else kept)
