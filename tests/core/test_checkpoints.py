"""Weights as people save them: wrapped, under prefixes, beside other things, for pictures of another size."""

from __future__ import annotations

import argparse
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import plait
from plait.core.weights import unwrapped
from plait.errors import PlaitError
from tests.peers import declare_torchvision

WRAPPERS = ["state_dict", "model", "module", "params", "teacher", "state_dict_ema", "model_ema"]
PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "backbone.", "module.model."]


@pytest.fixture(scope="module")
def model():
    return plait.create_model("vit_toy", seed=5)


def same(path, model, **how) -> None:
    found = plait.create_model("vit_toy", pretrained=path, **how).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("beside", [{}, {"epoch": 3, "args": argparse.Namespace(lr=1e-3), "loss": np.float64(0.1)}])
def test_wrappers(model, wrapper, beside, tmp_path):
    torch.save({wrapper: model.state_dict(), **beside}, tmp_path / "w.pth")
    same(tmp_path / "w.pth", model)


def test_what_is_wrapped_twice(model, tmp_path):
    torch.save(
        {"model": {"state_dict": OrderedDict(model.state_dict())}, "optimizer": {"state": {}}}, tmp_path / "w.pth"
    )
    same(tmp_path / "w.pth", model)


def test_weights_come_before_their_averages(model, tmp_path):
    other = {k: v + 1 for k, v in model.state_dict().items()}
    torch.save({"state_dict_ema": other, "state_dict": model.state_dict()}, tmp_path / "w.pth")
    same(tmp_path / "w.pth", model)


def test_a_row_names_the_weights_that_were_evaluated(tmp_path):
    how = dict(plait.model_info("t2t_vit_toy").arguments)
    model = plait.create_model("t2t_vit_7", **how, seed=1)
    right = plait.save_weights(model, "published")
    wrong = {k: v + 1 for k, v in right.items()}
    for n, held in enumerate(({"state_dict": wrong, "state_dict_ema": right}, {"state_dict": right}, right)):
        torch.save(held, tmp_path / f"{n}.pth.tar")
        found = plait.create_model("t2t_vit_7", **how, pretrained=tmp_path / f"{n}.pth.tar").state_dict()
        assert all(torch.allclose(found[k], v) for k, v in model.state_dict().items())


def test_any_layout_of_the_system_is_read(tmp_path):
    """Not only that of the size's row."""
    model = plait.create_model("swin_toy", seed=2)
    for layout in ("timm", "plait"):
        torch.save(plait.save_weights(model, layout), tmp_path / "w.pth")
        how = dict(plait.model_info("swin_toy").arguments)
        for name in ("swin_toy", "swin_tiny_patch4_window7_224"):  # without a row, with one
            found = plait.create_model(name, **how, pretrained=tmp_path / "w.pth").state_dict()
            assert all(torch.equal(found[k], v) for k, v in model.state_dict().items())
    theirs = {k: v for k, v in plait.save_weights(model, "timm").items() if "head" not in k} | {
        "odd.key": torch.zeros(1)
    }
    torch.save(theirs, tmp_path / "w.pth")
    with pytest.raises(PlaitError, match="1 keys that no rule knows: odd.key"):
        plait.create_model("swin_toy", pretrained=tmp_path / "w.pth")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes(model, prefix, suffix, tmp_path):
    state = {prefix + k: v for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors") if suffix == ".safetensors" else torch.save(state, tmp_path / "w.pth")
    same(tmp_path / f"w{suffix}", model)


def test_marks_inside_of_keys(model, tmp_path):
    state = {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    same(tmp_path / "w.pth", model)
    assert unwrapped(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}  # not all: it is a name


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone."])
def test_a_peers_layout_under_prefixes(prefix, tmp_path):
    declare_torchvision()
    import timm

    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    torch.save({"state_dict": {prefix + k: v for k, v in theirs.state_dict().items()}}, tmp_path / "w.pth")
    ours = plait.create_model("vit_tiny_patch16_224", num_classes=7, pretrained=tmp_path / "w.pth").eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_arrays_are_tensors_too(model, tmp_path):
    torch.save({"model": {k: v.numpy() for k, v in model.state_dict().items()}}, tmp_path / "w.pth")
    same(tmp_path / "w.pth", model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_read_as_floats(model, dtype, tmp_path):
    halves = {k: v.to(dtype) for k, v in model.state_dict().items()}
    torch.save({"model": halves}, tmp_path / "w.pth")
    found = plait.create_model("vit_toy", pretrained=tmp_path / "w.pth").state_dict()
    assert all(torch.equal(found[k], v.float()) for k, v in halves.items())


class Config:
    """What no reader knows."""


def test_what_would_run_is_named_and_not_run(model, tmp_path):
    torch.save({"model": model.state_dict(), "config": Config()}, tmp_path / "w.pth")
    with pytest.raises(
        PlaitError, match=r"holds a \S*test_checkpoints.Config beside its tensors.*save the tensors"
    ) as error:
        plait.create_model("vit_toy", pretrained=tmp_path / "w.pth")
    assert "\x1b" not in str(error.value)


def test_what_holds_no_weights_says_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
    with pytest.raises(PlaitError, match="no state dict but 'epoch', 'optimizer'"):
        plait.create_model("vit_toy", pretrained=tmp_path / "w.pth")


def test_the_home_folder(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    same("~/w.pth", model)


@pytest.mark.parametrize("name, side", [("vit_toy", 64), ("hiera_toy", 64), ("vision_rwkv_toy", 64)])
def test_positions_are_resampled_at_loading(name, side, tmp_path):
    """As they would be by the model of the first size when it reads pictures of the second."""
    small = plait.create_model(name, seed=2).eval()
    save_file(small.state_dict(), tmp_path / "w.safetensors")
    large = plait.create_model(name, image=(side, side), pretrained=tmp_path / "w.safetensors").eval()
    x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(large(x), small(x), rtol=1e-5, atol=1e-5)


def test_positions_are_resampled_as_timm_does(tmp_path):
    declare_torchvision()
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "w.pth")
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=(160, 96)).eval()
    theirs.load_state_dict(checkpoint_filter_fn(torch.load(tmp_path / "w.pth"), theirs))
    ours = plait.create_model("vit_tiny_patch16_224", image=(160, 96), pretrained=tmp_path / "w.pth").eval()
    x = torch.rand(1, 3, 160, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_tables_that_cannot_be_resampled_are_refused(model, tmp_path):
    state = model.state_dict()
    state["patch_embed.positions.table"] = torch.zeros(1, 1 + 15, 32)  # no square
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(PlaitError, match=r"positions.table has shape \(1, 16, 32\), expected \(1, 17, 32\)"):
        plait.create_model("vit_toy", pretrained=tmp_path / "w.pth")


@pytest.mark.parametrize("layout", ["plait", "timm"])
def test_some_of_a_file_is_taken_on_request_and_said(layout, tmp_path):
    """Whatever else it holds, but for what was asked for."""
    old, said = plait.create_model("swin_toy", seed=5), []
    state = plait.save_weights(old, layout) | {"teacher_head.weight": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    only = dict(pretrained=tmp_path / "w.pth", seed=1, say=said.append)
    new = plait.create_model("swin_toy", only=["stem.*", "stages.0.*.weight"], num_classes=4, **only).state_dict()
    fresh = plait.create_model("swin_toy", num_classes=4, seed=1).state_dict()
    taken = [k for k in new if k.startswith("stem.") or k.startswith("stages.0.") and k.endswith(".weight")]
    for key, value in new.items():
        assert torch.equal(value, (old.state_dict() if key in taken else fresh)[key]), key
    assert said == [
        f"{tmp_path / 'w.pth'}: {len(taken)} of {len(new)} weights are taken (stem.*, stages.0.*.weight), "
        f"{len(new) - len(taken)} start anew; {len(state) - len(taken)} tensors of the file are left"
    ]
    del state[next(k for k in state if "reduction" in k or "stages.1.0.proj" in k)]
    torch.save(state, tmp_path / "w.pth")
    plait.create_model("swin_toy", only="stem.*", **only)
    with pytest.raises(PlaitError, match="missing stages.1.0.proj.weight"):
        plait.create_model("swin_toy", only="stages.1.0.*", **only)


def test_some_that_nothing_matches_is_an_error(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        PlaitError, match=r"only='stm.\*' names none of the weights of vit_toy: expected such as patch_embed"
    ):
        plait.create_model("vit_toy", pretrained=tmp_path / "w.pth", only=["patch_embed.*", "stm.*"])
    with pytest.raises(PlaitError, match="only=head.* is of weights: give pretrained="):
        plait.create_model("vit_toy", only="head.*")
    with pytest.raises(PlaitError, match="has shape .* expected"):  # what was asked for must fit
        plait.create_model("vit_toy", pretrained=tmp_path / "w.pth", only="head.*", image=(64, 64), width=64)
    with pytest.raises(PlaitError, match="has one for each of its parts"):
        plait.create_model("llava_toy", pretrained=True, only="vision.*")


def test_part_of_a_whole_is_named_within_it(tmp_path):
    """Where a file holds only a part, names are those of the whole model."""
    name, said = "meta_transformer_b16", []
    how = dict(plait.model_info("meta_transformer_toy").arguments)
    old = plait.create_model(name, **how, seed=3)
    torch.save(plait.save_weights(old.encoder, "official"), tmp_path / "w.pth")
    new = plait.create_model(name, **how, pretrained=tmp_path / "w.pth", only="encoder.blocks.0.*", say=said.append)
    same = {k for k, v in new.state_dict().items() if k.startswith("encoder") and torch.equal(v, old.state_dict()[k])}
    assert all(k in same for k in new.state_dict() if k.startswith("encoder.blocks.0.")) and "start anew" in said[0]
    assert "encoder.blocks.1.mix.f.qkv.weight" not in same


def test_a_classifier_that_starts_anew_is_told(tmp_path, capsys):
    for classes, file in ((10, "w.pth"), (0, "bare.pth")):
        torch.save(plait.create_model("vit_toy", num_classes=classes).state_dict(), tmp_path / file)

    def said(file: str, **how) -> str:
        plait.create_model("vit_toy", pretrained=tmp_path / file, **how)
        return capsys.readouterr().err.strip()

    whole = f"{tmp_path / 'w.pth'}: its classifier"
    assert said("w.pth", num_classes=3) == f"{whole} is for 10 classes: the one of this model, for 3, starts anew"
    assert said("w.pth", num_classes=0) == f"{whole}, of 10 classes, is left out"
    assert said("bare.pth", num_classes=3).endswith("it has no classifier: the one of this model, for 3, starts anew")
    assert said("w.pth") == said("w.pth", num_classes=10) == said("bare.pth", num_classes=0) == ""
