"""The plain vision transformers: their rarer parts against timm at a depth of two, and timm's names."""

from __future__ import annotations

import pytest
import torch

import plait
from tests.parity.compare import count, perturb, relative_error
from tests.peers import declare_torchvision


@torch.no_grad()
@pytest.mark.parametrize(
    "name, reference",
    [
        ("dinov2_giant_patch14_reg4", "vit_giant_patch14_reg4_dinov2"),
        ("dinov2_giant_patch14", "vit_giant_patch14_dinov2"),
        ("vit_giant_patch14_224", "vit_giant_patch14_224"),
        ("vit_gigantic_patch14_224", "vit_gigantic_patch14_224"),
        ("deit_tiny_distilled_patch16_224", "deit_tiny_distilled_patch16_224"),
    ],
)
def test_two_layers_of_the_sizes_that_are_too_large_agree_with_timm(name, reference):
    declare_torchvision()
    import timm

    theirs = perturb(timm.create_model(reference, depth=2, img_size=56 if "14" in reference else 64, num_classes=7))
    side = theirs.patch_embed.img_size
    ours = plait.create_model(name, depth=2, image=tuple(side), num_classes=7).eval()
    plait.load_weights(ours, theirs.state_dict(), "timm")
    x = torch.randn(2, 3, *side, generator=torch.Generator().manual_seed(0))
    assert count(ours) == count(theirs)
    assert relative_error(ours(x), theirs(x)) < 1e-5
    assert (
        relative_error(ours.pool(ours.tokens(x)), theirs.forward_head(theirs.forward_features(x), pre_logits=True))
        < 1e-5
    )


@torch.no_grad()
def test_distillation_sees_both_answers():
    model = plait.create_model("deit_toy").eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    answers = model.answers(x)
    assert answers.shape == (2, 2, 10) and not torch.allclose(answers[:, 0], answers[:, 1])
    torch.testing.assert_close(model(x), answers.mean(1))


@pytest.mark.parametrize(
    "theirs", ["vit_base_patch16_224", "deit_small_distilled_patch16_224", "deit3_base_patch16_384"]
)
def test_a_timm_name_is_ours(theirs):
    assert plait.model_info(theirs).references["timm"] == theirs


def test_a_timm_name_that_is_not_ours_leads_to_ours():
    with pytest.raises(ValueError, match="dinov2_small_patch14_reg4"):
        plait.model_info("vit_small_patch14_reg4_dinov2")


@pytest.mark.parametrize("system", ["vit", "deit", "deit3", "dinov2", "vit_clip", "bert", "clip"])
def test_every_weights_row_is_complete(system):
    names = plait.list_models(f"{system}_*")
    assert names
    for name in names:
        row = plait.model_info(name).weights
        if "hub" in row:
            assert {"hub", "file", "source", "licence"} <= row.keys(), name
            assert "image" not in plait.model_info(name).takes or {"mean", "std"} <= row.keys(), name
