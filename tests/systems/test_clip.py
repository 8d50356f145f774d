"""CLIP: what is absent, where a text ends, other picture sizes; the sizes that are too large to check whole."""

from __future__ import annotations

import copy

import pytest
import torch

import plait
from tests.parity.clip import difference
from tests.parity.compare import count, perturb
from tests.peers import declare_torchvision

TOO_LARGE = [
    "vit_h_14_worldwide_quickgelu",
    "vit_h_14_worldwide_378",
    "vit_g_14",
    "vit_bigg_14",
    "vit_bigg_14_quickgelu",
]
TOO_LARGE += ["vit_bigg_14_worldwide", "vit_bigg_14_worldwide_378"]


@pytest.fixture
def model():
    return plait.create_model("clip_toy").eval()


def batch() -> dict:
    g = torch.Generator().manual_seed(0)
    keep = torch.arange(12) < torch.tensor([12, 5, 9])[:, None]
    return {
        "image": torch.randn(3, 3, 32, 32, generator=g),
        "text": torch.randint(1, 64, (3, 12), generator=g) * keep,
        "keep": {"text": keep},
    }


@torch.no_grad()
def test_vectors_are_unit_and_absent_ones_zero(model):
    out = model(
        {**batch(), "present": {"image": torch.tensor([True, False, True]), "text": torch.tensor([True, True, False])}}
    )
    torch.testing.assert_close(out["image"].norm(dim=-1), torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(out["text"].norm(dim=-1), torch.tensor([1.0, 1.0, 0.0]))
    assert out["logit_scale"].shape == (1,)
    assert model.embed({"text": batch()["text"]})["image"].abs().sum() == 0


@torch.no_grad()
def test_without_a_mask_a_text_reaches_to_its_last_id(model):
    whole = batch()
    bare = {"text": whole["text"]}
    torch.testing.assert_close(model.embed(bare)["text"], model.embed(whole)["text"])
    inside = whole["text"].clone()
    inside[0, 3] = 0  # an id of 0 inside a text is a word like others
    longer = torch.cat([inside, inside.new_zeros(3, 4)], 1)
    torch.testing.assert_close(model.embed({"text": longer})["text"][0], model.embed({"text": inside})["text"][0])


@torch.no_grad()
def test_a_text_is_read_at_its_end_and_causally(model):
    """The vector of a text cut after five tokens is that of its first five tokens within a longer row."""
    ids = batch()["text"]
    alone = model.embed({"text": ids[1:2, :5]})["text"]
    torch.testing.assert_close(model.embed(batch())["text"][1:2], alone)
    tower = model.towers["text"]
    full = torch.ones_like(ids[:1], dtype=torch.bool)
    changed = ids[:1].clone()
    changed[0, 8:] = 1
    torch.testing.assert_close(tower.tokens(ids[:1], full).x[:, :8], tower.tokens(changed, full).x[:, :8])


@torch.no_grad()
def test_pictures_of_another_size(model):
    assert model.embed({"image": torch.randn(2, 3, 48, 24)})["image"].shape == (2, 16)
    with pytest.raises(ValueError, match="patches"):
        model.embed({"image": torch.randn(2, 3, 33, 32)})


def test_a_text_that_is_too_long_is_refused(model):
    with pytest.raises(ValueError, match="positions for 16"):
        model.embed({"text": torch.ones(1, 17, dtype=torch.int64)})


@torch.no_grad()
@pytest.mark.parametrize("size", TOO_LARGE)
def test_one_layer_of_the_sizes_that_are_too_large_agrees_with_open_clip(size):
    """Full widths, one layer in each tower, a vocabulary of 1,000 words, pictures of four patches."""
    declare_torchvision()
    import open_clip

    config = copy.deepcopy(open_clip.get_model_config(plait.model_info(f"clip_{size}").references["open_clip"]))
    config["vision_cfg"] |= {"layers": 1, "image_size": 28}
    config["text_cfg"] |= {"layers": 1, "vocab_size": 1000}
    theirs = perturb(open_clip.CLIP(**config))
    ours = plait.create_model(f"clip_{size}", image=(28, 28), depth=1, text_depth=1, vocab=1000).eval()
    plait.load_weights(ours, theirs.state_dict(), "open_clip")
    ids = torch.zeros(2, 77, dtype=torch.int64)
    ids[0, :4], ids[1, :3] = torch.tensor([7, 5, 9, 999]), torch.tensor([8, 6, 999])
    if theirs.text_pool_type == "eos":
        ids[ids == 999] = theirs.text_eos_id
    x = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    images, text = theirs.encode_image(x, normalize=True), theirs.encode_text(ids, normalize=True)
    assert count(ours) == count(theirs)
    assert difference(ours, {"image": x, "text": ids}, images, text, theirs.logit_scale) < 1e-5
