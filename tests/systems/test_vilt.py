"""ViLT: published layouts old and new, and pictures of several shapes in one frame."""

from __future__ import annotations

import pytest
import torch

import plait
from tests.parity.compare import perturb
from tests.parity.vilt import difference, peer
from tests.peers import declare_torchvision

TINY = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=32,
    patch_size=8,
    max_position_embeddings=16,
)  # fmt: skip


def ours(**heads):
    return plait.create_model("vilt_toy", **{"guess": False, "match": False, "answers": 0, **heads}).eval()


@pytest.mark.parametrize(
    "name, heads", [("mlm", {"guess": True}), ("coco", {"match": True}), ("vqa", {"answers": 3129})]
)
def test_every_head_agrees_and_goes_back(name, heads):
    theirs, source = peer(name, **TINY), "transformers_words" if "guess" in heads else "transformers_heads"
    model = plait.load_weights(ours(**heads), theirs.state_dict(), source)
    assert difference(model, theirs, 32, 8, 64, 12) < 1e-5
    back = plait.save_weights(model, source)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(v, back[k]) for k, v in theirs.state_dict().items())


def test_the_bare_encoder_has_a_layout():
    declare_torchvision()
    from transformers import ViltConfig, ViltModel

    theirs = perturb(ViltModel(ViltConfig(**TINY)))
    model = plait.load_weights(ours(), theirs.state_dict(), "transformers")
    assert plait.save_weights(model, "transformers").keys() == theirs.state_dict().keys()


def test_older_files_and_untied_heads():
    state = dict(peer("mlm", **TINY).state_dict())
    state["mlm_score.bias"] = state["mlm_score.decoder.bias"]
    state["vilt.embeddings.text_embeddings.position_ids"] = torch.arange(16)[None]
    model = plait.load_weights(ours(guess=True), state, "transformers_words")
    assert torch.equal(model.guess.bias, state["mlm_score.bias"])
    state["mlm_score.decoder.weight"] = state["mlm_score.decoder.weight"] + 1
    with pytest.raises(ValueError, match="differ"):
        plait.load_weights(model, state, "transformers_words")


@torch.no_grad()
@pytest.mark.parametrize("height, width", [(24, 40), (8, 32), (32, 32)])
def test_a_picture_in_a_larger_frame_says_the_same(height, width):
    model = ours(match=True)
    x, ids = torch.randn(2, 3, height, width), torch.randint(5, 64, (2, 9))
    framed, pixels = torch.full((2, 3, 48, 56), 7.0), torch.zeros(2, 48, 56, dtype=torch.bool)
    framed[:, :, :height, :width], pixels[:, :height, :width] = x, True
    alone = model({"image": x, "text": ids})
    together = model({"image": framed, "text": ids, "keep": {"image": pixels}})
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model({"image": framed, "text": ids})["fused"], alone["fused"], atol=1e-3)
