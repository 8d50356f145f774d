"""Pictures of any number of channels, from nothing and from weights that were learned for three."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import plait
from plait.core.catalog import build, systems
from plait.errors import PlaitError
from tests.contract.examples import example, kind, run
from tests.parity.compare import perturb, relative_error
from tests.peers import declare_torchvision

SYSTEMS = [s for s in systems().values() if "image" in s.takes and not {"codec", "masked"} & {*s.roles}]
every_system = pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in SYSTEMS])


def grey(model, channels: int) -> dict:
    """A batch whose pictures are the same in each of so many channels."""
    batch = example(model)
    for slot in model.takes:
        if kind(slot) == "image":
            batch[slot] = batch[slot][:, :1].expand(-1, channels, -1, -1)
    return batch


@every_system
@torch.no_grad()
def test_weights_of_three_channels_answer_the_same_where_all_channels_are_alike(system, tmp_path):
    name = f"{system.name}_toy"
    three = plait.create_model(name, seed=2).eval()
    save_file({k: v.contiguous() for k, v in three.state_dict().items()}, tmp_path / "w.safetensors")
    wanted = run(three, grey(three, 3), system)
    for channels in (1, 12):
        model = plait.create_model(name, in_chans=channels, pretrained=tmp_path / "w.safetensors").eval()
        got = run(model, grey(model, channels), system)
        assert model.in_chans == channels and got.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-4, msg=lambda m: f"{key}: {m}")


@every_system
@torch.no_grad()
def test_from_nothing_each_channel_counts(system):
    model = plait.create_model(f"{system.name}_toy", in_chans=4, seed=2).eval()
    batch = grey(model, 4)
    slots = [slot for slot in model.takes if kind(slot) == "image"]
    before = run(model, batch, system)
    for c in range(4):
        for slot in slots:
            batch[slot] = batch[slot].clone()
            batch[slot][:, c] = torch.rand(batch[slot][:, c].shape, generator=torch.Generator().manual_seed(c))
        after = run(model, batch, system)
        assert any(not torch.equal(after[key], value) for key, value in before.items()), f"channel {c} is not read"
        before = after
    assert [t for t in model.state_dict().values() if t.is_meta] == []


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
@torch.no_grad()
def test_stems_are_adapted_as_timm_does(channels, tmp_path):
    """By timm's own loader."""
    declare_torchvision()
    import timm

    old = perturb(timm.create_model("resnet18", num_classes=10))
    torch.save(old.state_dict(), tmp_path / "w.pth")
    overlay = dict(file=str(tmp_path / "w.pth"), num_classes=10)
    theirs = timm.create_model(
        "resnet18", in_chans=channels, num_classes=10, pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    ours = plait.create_model(
        "resnet_18", in_chans=channels, num_classes=10, pretrained=tmp_path / "w.pth", say=pytest.fail
    ).eval()
    x = torch.randn(1, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    assert relative_error(ours(x), theirs(x)) < 1e-5
    assert ours.stem[1].conv.in_channels == channels


def test_a_file_for_as_many_channels_is_taken_as_it_is_and_any_other_refused(tmp_path):
    four = plait.create_model("vit_toy", in_chans=4, seed=3)
    save_file(four.state_dict(), tmp_path / "w.safetensors")
    again = plait.create_model("vit_toy", in_chans=4, pretrained=tmp_path / "w.safetensors")
    assert torch.equal(again.patch_embed.stem.proj.weight, four.patch_embed.stem.proj.weight)
    for other in (3, 5):
        with pytest.raises(PlaitError, match=rf"has shape \(32, 4, 8, 8\), expected \(32, {other}, 8, 8\)"):
            plait.create_model("vit_toy", in_chans=other, pretrained=tmp_path / "w.safetensors")
    with pytest.raises(PlaitError, match=r"has shape \(32, 4, 8, 8\), expected \(32, 3, 8, 8\)"):  # not in silence
        plait.create_model("vit_toy", pretrained=tmp_path / "w.safetensors")


@pytest.mark.parametrize("name, channels, why", [
    ("bert_toy", 4, "reads no pictures"), ("vit_toy", 0, "got 0"), ("vit_toy", 2.0, "got 2.0"),
    ("autoencoder_kl_toy", 1, "also makes pictures"),
])  # fmt: skip
def test_what_has_no_such_pictures_says_so(name, channels, why):
    with pytest.raises(PlaitError, match=why):
        build(name, in_chans=channels)


def test_maps_of_other_channels_have_their_strides():
    model = plait.create_model("swin_toy", in_chans=1).eval()
    assert [s for _, s in model.features(torch.rand(1, 1, 64, 64))] == [2, 4]
