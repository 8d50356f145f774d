"""Published weights see pictures as they were evaluated on them: pixel by pixel what timm and open_clip prepare."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import plait
from plait.data.kinds import KINDS, Place
from plait.data.kinds.crop import crop
from plait.runs.assemble import argument
from tests.peers import declare_torchvision

SHAPES = [(300, 200), (201, 333), (40, 51), (224, 224), (640, 97)]  # H, W


def picture(shape: tuple[int, int], seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (shape[0] // 4 + 1, shape[1] // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(shape[::-1], Image.Resampling.BICUBIC)


def ways() -> list[tuple]:
    """Each different way of the catalogue once: timm's name, or open_clip's with its tag."""
    found = {}
    for name in plait.list_models(takes="image"):
        row = plait.model_info(name).weights
        if "crop_pct" in row and row["source"] in ("timm", "open_clip"):
            way = tuple(row[k] for k in ("source", "crop_pct", "crop_mode", "interpolation"))
            found.setdefault(way, name)
    return [pytest.param(name, id=name) for name in found.values()]


@pytest.mark.parametrize("name", ways())
def test_pixels_are_those_that_the_peer_prepares(name):
    declare_torchvision()
    info = plait.model_info(name)
    row = info.weights
    if row["source"] == "timm":
        import timm
        from timm.data import create_transform, resolve_data_config

        cfg = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(row["hub"].removeprefix("timm/")).to_dict())
        side, theirs = cfg["input_size"][1:], create_transform(**cfg)
        assert (tuple(row["mean"]), tuple(row["std"])) == (tuple(cfg["mean"]), tuple(cfg["std"]))
    else:
        from open_clip import get_model_config, image_transform
        from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

        peer = info.references["open_clip"]
        cfgs = [get_pretrained_cfg(peer, tag) for tag in list_pretrained_tags_by_model(peer)]
        cfg = next(c for c in cfgs if c.get("hf_hub", "").split("/")[:2] == row["hub"].split("/"))
        side = (get_model_config(peer)["vision_cfg"]["image_size"],) * 2
        assert (tuple(row["mean"]), tuple(row["std"])) == (tuple(cfg["mean"]), tuple(cfg["std"]))
        keys = ("mean", "std", "interpolation", "resize_mode")
        theirs = image_transform(side[0], is_train=False, **{k: cfg[k] for k in keys})
    mean, std = (torch.tensor(row[k])[:, None, None] for k in ("mean", "std"))
    how = {k: row[k] for k in ("crop_pct", "crop_mode", "interpolation")}
    for shape in SHAPES:
        given = picture(shape)
        expected = ((theirs(given) * std + mean) * 255).round()
        assert np.array_equal(crop(given, *side, **how), expected.numpy()), shape


def test_every_timm_row_says_what_timm_says():
    declare_torchvision()
    import timm

    rows = {n: plait.model_info(n).weights for n in plait.list_models(takes="image")}
    rows = {n: row for n, row in rows.items() if row.get("source") == "timm"}
    assert len(rows) > 90
    for name, row in rows.items():
        cfg = timm.get_pretrained_cfg(row["hub"].removeprefix("timm/"))
        said = (row["crop_pct"], row["crop_mode"], row["interpolation"], row["mean"], row["std"])
        assert said == (cfg.crop_pct, cfg.crop_mode, cfg.interpolation, tuple(cfg.mean), tuple(cfg.std)), name
        image = row.get("image") or argument(plait.model_info(name), "image")
        assert image == cfg.input_size[1:], name
        assert cfg.license in (None, row["licence"]), name


def test_a_box_that_is_no_square_is_covered():
    for shape in SHAPES:
        made = crop(picture(shape), 64, 96, crop_pct=0.9, crop_mode="center", interpolation="bilinear")
        assert made.shape == (3, 64, 96) and made.dtype == np.uint8
    with pytest.raises(ValueError, match="crop_mode: got 'border'"):
        crop(picture((64, 64)), 32, 32, crop_pct=1.0, crop_mode="border", interpolation="bilinear")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on published weights (random ones, in their layout), and its table."""
    folder = tmp_path_factory.mktemp("crop")
    state = plait.save_weights(plait.create_model("edgenext_xx_small", seed=3), "timm")
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    cells = []
    for i in range(24):
        out = io.BytesIO()
        picture(SHAPES[i % len(SHAPES)], i).save(out, "JPEG")
        cells.append(out.getvalue())
    table = pa.table({"photo": cells, "label": [f"{i % 2}" for i in range(24)]})
    options = dict(target="label", kinds={"photo": "image"}, epochs=1, batch_size=8, augment=0.0, precision="fp32")
    options |= dict(system="edgenext_xx_small", pretrained=str(folder / "model.safetensors"), image_size=64)
    return plait.fit(table, out=folder / "run", **options), table, folder / "run"


def test_a_run_on_published_weights_crops_as_their_row_says_and_remembers_it(run):
    made, table, folder = run
    how = dict(crop_pct=0.9, crop_mode="center", interpolation="bicubic")
    (column,) = [c for c in json.loads((folder / "schema.json").read_text())["columns"] if c["name"] == "photo"]
    assert column["params"]["size"] == [64, 64] and column["params"]["crop"] == how
    for i in range(5):
        cell = table["photo"][i].as_py()
        expected = crop(Image.open(io.BytesIO(cell)).convert("RGB"), 64, 64, **how)
        assert np.array_equal(KINDS["image"].encode(cell, column["params"], Place()), expected)
    together = plait.load(folder).predict(table.select(["photo"]))
    for i in (0, 7):
        alone = plait.load(folder).predict(table.select(["photo"]).slice(i, 1))
        for name in set(together.column_names) - {"row", "unread"}:
            one, other = alone[name][0].as_py(), together[name][i].as_py()
            assert one == other if isinstance(one, str) else one == pytest.approx(other, rel=1e-5)


def test_without_published_weights_a_picture_is_read_whole(tmp_path):
    out = io.BytesIO()
    Image.fromarray(np.full((32, 96, 3), 255, np.uint8)).save(out, "PNG")
    made = KINDS["image"].encode(out.getvalue(), {"size": [32, 32]}, Place())
    assert (made[:, 0] == 128).all() and (made[:, 16] == 255).all()
