"""A system made of others begins a part with what another run learnt."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import plait
from plait.core.weight_files import read_weights
from plait.errors import PlaitError, UsageError
from plait.runs.folder import MODEL

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30)}
QUICK = dict(epochs=1, device="cpu", precision="fp32", augment=0.0, seed=0)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def table(n: int = 24) -> pa.Table:
    rng = np.random.default_rng(0)
    names = [str(rng.choice(list(COLOURS))) for _ in range(n)]
    pictures = [np.clip(rng.normal(COLOURS[c], 20, (32, 32, 3)), 0, 255).astype(np.uint8) for c in names]
    words = {"photo": [png(p) for p in pictures], "colour": names}
    return pa.table(words | {"question": ["which colour is it ?"] * n, "answer": [f"it is {c}" for c in names]})


def tower(out, **more):
    how = {"target": "colour", "inputs": ["photo"], "system": "vit_clip_toy", "image_size": 32} | QUICK | more
    return plait.fit(table(), out=out, **how)


def assistant(out, **more):
    kinds = {"question": "text", "answer": "text"}
    how = dict(target="answer", task="answer", inputs=["photo", "question"], system="llava_toy", kinds=kinds) | QUICK
    return plait.fit(table(), out=out, **how | more)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    return tower(tmp_path_factory.mktemp("tower") / "run", seed=1)


def system(run) -> dict[str, torch.Tensor]:
    return run.model.bound.system.state_dict()


def test_a_frozen_tower_is_that_of_the_run(learnt, tmp_path):
    run = assistant(tmp_path / "run", parts={"vision": str(learnt.folder)})
    ours = {k.removeprefix("vision."): v for k, v in system(run).items() if k.startswith("vision.")}
    theirs = system(learnt)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    anew = system(assistant(tmp_path / "anew"))
    assert not torch.equal(anew["vision.patch_embed.positions.table"], theirs["patch_embed.positions.table"])
    again = plait.load(run.folder)  # needs the tower's run no more
    assert all(torch.equal(v, system(again)[k]) for k, v in system(run).items())


def test_a_language_model_brings_its_words(tmp_path):
    told = pa.table({"begin": [f"{n} roses are" for n in range(24)], "end": [str(c) for c in range(24)]})
    kinds = {"begin": "text", "end": "text"}
    how = dict(task="write", target="end", system="llama_toy", kinds=kinds) | QUICK | {"seed": 1}
    writer = plait.fit(told, out=tmp_path / "writer", **how)
    run = assistant(tmp_path / "run", parts={"words": str(writer.folder)}, lr=1e-12, weight_decay=0.0)
    ours, theirs = system(run), system(writer)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[f"words.{key}"], value, rtol=0, atol=1e-5)
    tokenizers = [
        {c.params["tokenizer"] for c in r.schema.columns if c.kind == "text" and c.params} for r in (run, writer)
    ]
    assert tokenizers[0] == tokenizers[1] and len(tokenizers[0]) == 1


def test_a_detector_looks_through_the_eyes_of_a_run(learnt, tmp_path):
    pytest.importorskip("scipy")
    boxes = [[{"box": [4, 4, 20, 20 + i], "label": "thing"}] for i in range(24)]
    rows = table().append_column("boxes", pa.array(boxes))
    how = dict(target="boxes", task="detect", inputs=["photo"], system="detr_toy", image_size=32) | QUICK
    run = plait.fit(rows, out=tmp_path / "run", parts={"backbone": str(resnet(tmp_path).folder)}, lr=1e-12, **how)
    ours, theirs = system(run), system(plait.load(tmp_path / "resnet"))
    same = [k for k in theirs if f"backbone.{k}" in ours]
    assert len(same) > 5
    for key in same:
        torch.testing.assert_close(ours[f"backbone.{key}"].float(), theirs[key].float(), rtol=0, atol=1e-4)


def resnet(folder):
    return tower(folder / "resnet", system="resnet_toy", seed=1)


@pytest.mark.parametrize(
    "parts, error, why",
    [
        ({"eyes": "runs/x"}, UsageError, "has no such part, it is made of vision, words"),
        ({"words": "TOWER"}, UsageError, r"is vit_clip_toy \(backbone of image\), expected something like llama_toy"),
        ({"vision": "runs/nothing"}, PlaitError, "vision: no weights file at runs/nothing"),
    ],
)
def test_what_is_no_such_part_is_told(learnt, tmp_path, parts, error, why):
    parts = {k: str(learnt.folder) if v == "TOWER" else v for k, v in parts.items()}
    with pytest.raises(error, match=why):
        assistant(tmp_path / "run", parts=parts)
    assert not (tmp_path / "run").exists()


def test_a_changed_run_is_refused(tmp_path):
    changed = tower(tmp_path / "changed", methods=["sinkformer"])
    with pytest.raises(UsageError, match=r"its model is vit_clip_toy \+ sinkformer"):
        assistant(tmp_path / "run", parts={"vision": str(changed.folder)})


def test_a_tower_of_other_pictures_has_its_positions_resampled(learnt, tmp_path):
    run = assistant(tmp_path / "run", parts={"vision": str(learnt.folder)}, image_size=64)
    ours, theirs = system(run), system(learnt)
    places = "patch_embed.positions.table"
    assert ours[f"vision.{places}"].shape[1] - 1 == 4 * (theirs[places].shape[1] - 1)
    assert all(torch.equal(ours[f"vision.{key}"], value) for key, value in theirs.items() if key != places)


def test_parts_from_python(learnt):
    state = {
        k.removeprefix("bound.system."): v for k, v in read_weights(learnt.folder / MODEL).items() if "system" in k
    }
    model = plait.create_model("llava_toy", parts={"vision": state}, image=(32, 32), seed=3)
    assert all(torch.equal(model.vision.state_dict()[k], v) for k, v in state.items())
    assert torch.equal(model.bridge[0].weight, plait.create_model("llava_toy", image=(32, 32), seed=3).bridge[0].weight)
    with pytest.raises(PlaitError, match="made of vision, words, got weights for eyes"):
        plait.create_model("llava_toy", parts={"eyes": state})
    with pytest.raises(PlaitError, match="made of no other systems"):
        plait.create_model("vit_clip_toy", parts={"eyes": state})
