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
            peer = "timm" in plait.model_info(name).references
            way = (peer, *(row[k] for k in ("crop_pct", "crop_mode", "interpolation")))
            found.setdefault(way, name)
    return [pytest.param(name, id=name) for name in found.values()]


@pytest.mark.parametrize("name", ways())
def test_pixels_are_those_that_the_peer_prepares(name):
    declare_torchvision()
    info = plait.model_info(name)
    row = info.weights
    if "timm" in info.references:
        from timm.data import create_transform, resolve_data_config

        cfg = resolve_data_config(pretrained_cfg=tag_of(info, info.references["timm"].split(".")[0]).to_dict())
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


def test_middles_are_those_of_transformers_where_its_weights_are():
    declare_torchvision()
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    prepare = CLIPImageProcessorPil(size={"shortest_edge": 224}, do_normalize=False, do_rescale=False)
    how = {k: plait.model_info("git_base").weights[k] for k in ("crop_pct", "crop_mode", "interpolation")}
    shapes, other = [(301, 214), *SHAPES], how | {"crop_mode": "center"}
    expected = [prepare(picture(shape), return_tensors="pt").pixel_values[0].numpy() for shape in shapes]
    for shape, pixels in zip(shapes, expected):
        assert np.array_equal(crop(picture(shape), 224, 224, **how), pixels), shape
    assert not np.array_equal(crop(picture(shapes[0]), 224, 224, **other), expected[0])


def test_a_whole_is_not_cropped_by_the_rule_of_a_part():
    row = plait.model_info("detr_resnet_50").weights
    assert row["image"] == (800, 800) and "mean" in row and "crop_pct" not in row
    assert plait.model_info("resnet_50").weights["crop_pct"] == 0.95
    assert plait.model_info("llava_1.5_7b").weights["crop_mode"] == "floor"


def of_timm() -> dict[str, list]:
    """{timm's architecture: our infos of weights that it publishes}, those of tags too."""
    found: dict[str, list] = {}
    for name in plait.list_models(takes="image"):
        info = plait.model_info(name)
        if "timm" in info.references and "hub" in info.weights:
            named = [info, *(plait.model_info(f"{name}.{tag}") for tag in info.tags)]
            found.setdefault(info.references["timm"].split(".")[0], []).extend(named)
    return found


def tag_of(info, arch: str):
    """timm's own facts of these weights: by their repository."""
    from timm.models import get_pretrained_cfg
    from timm.models._registry import _model_with_tags

    cfgs = (get_pretrained_cfg(name) for name in _model_with_tags[arch])
    (found,) = (c for c in cfgs if c is not None and c.hf_hub_id == info.weights["hub"])
    return found


# Whose head is not of the width that timm says: open_clip's config of the file has 512.
HEADS = {"vitamin_base_224.datacomp1b_clip": 512}


def test_every_timm_row_says_what_timm_says():
    declare_torchvision()
    count = 0
    for arch, infos in of_timm().items():
        for info in infos:
            cfg, row = tag_of(info, arch), info.weights
            count += 1
            said = (row["crop_pct"], row["crop_mode"], row["interpolation"], row["mean"], row["std"])
            assert said == (cfg.crop_pct, cfg.crop_mode, cfg.interpolation, tuple(cfg.mean), tuple(cfg.std)), info.name
            assert (row.get("image") or argument(info, "image")) == cfg.input_size[1:], info.name
            assert cfg.license in (None, row["licence"]), info.name
            assert argument(info, "num_classes") == HEADS.get(info.name, cfg.num_classes), info.name
    assert count > 300


# Architectures of timm's whose usual weights are not ours, and why.
OTHERS = {
    "vit_so400m_patch16_siglip_256": "our one size is named after its weights, webli_i18n; the usual ones are a tag",
    "davit_base_fl": "its file lacks the last norm",
    "davit_huge_fl": "its file lacks the last norm",
}


def test_the_usual_weights_are_those_of_timm_and_all_others_have_names():
    declare_torchvision()
    from timm.models import get_pretrained_cfg
    from timm.models._registry import _model_with_tags

    rows = (plait.model_info(name) for name in plait.list_models(takes="image"))
    archs = {info.references["timm"].split(".")[0] for info in rows if "timm" in info.references}
    ours, counted = of_timm(), 0
    for arch in sorted(archs):
        theirs = [cfg for name in _model_with_tags[arch] if (cfg := get_pretrained_cfg(name)).has_weights]
        if not theirs or arch in OTHERS:
            continue
        usual = {info.weights["hub"] for info in ours[arch] if not info.tag}
        assert get_pretrained_cfg(arch).hf_hub_id in usual, arch
        assert {info.weights["hub"] for info in ours[arch]} >= {cfg.hf_hub_id for cfg in theirs}, arch
        counted += len(theirs)
    assert counted > 290


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
