"""Idefics2 in small: held to transformers whole, and what stands where."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.memory import Memory
from plait.core.tokens import Tokens
from tests.parity import idefics2 as peers
from tests.parity.compare import count, perturb
from tests.peers import declare_torchvision

MARK, AROUND = 61, 62


@pytest.fixture(scope="module")
def pair():
    """transformers' model of a tiny configuration, and ours with its weights."""
    declare_torchvision()
    from transformers import Idefics2Config, Idefics2ForConditionalGeneration

    torch.manual_seed(0)
    made = Idefics2Config(
        vision_config=dict(
            hidden_size=32, image_size=56, intermediate_size=128, num_attention_heads=2, num_hidden_layers=2, patch_size=8,
        ),
        perceiver_config=dict(
            hidden_size=32, rms_norm_eps=1e-5, resampler_n_latents=3, resampler_depth=2, resampler_n_heads=4,
            resampler_head_dim=6, num_key_value_heads=2,
        ),
        text_config=dict(
            model_type="mistral", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=64, rms_norm_eps=1e-5, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        ),
        image_token_id=MARK,
    )  # fmt: skip
    theirs = perturb(Idefics2ForConditionalGeneration(made))
    for p in theirs.parameters():
        if p.dim() > 1:
            p.data.mul_(5)  # from 0.02, at which a tiny model says the same of everything
    words = plait.create_model("llama_toy", tied=False)
    ours = peers_model(words)
    plait.load_weights(ours, theirs.state_dict(), "transformers")
    return ours, theirs


def peers_model(words):
    from plait.systems.pairs.idefics2 import Idefics2

    vision = plait.create_model("vit_siglip_toy", image=(56, 56), native=True, asks=False, num_classes=0, tanh=True)
    made = Idefics2(
        vision=vision, words=words, hidden=64, latents=3, layers=2, heads=4, kv_heads=2, head_width=6, mark=MARK,
        around=AROUND,
    )  # fmt: skip
    return made.eval()


@pytest.mark.parametrize("split", [False, True])
def test_several_padded_pictures_of_any_shape_whole_and_split(pair, split):
    ours, theirs = pair
    assert count(ours) == count(theirs)
    for least, most in ((24, 61), (40, 90)):  # smaller and larger than positions were learned for
        assert peers.differs(ours, theirs, split, least, most, words=4, mark=MARK, around=AROUND) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("split", [False, True])
def test_greedy_writing_behind_a_memory_is_the_same(pair, split):
    ours, theirs = pair
    image, real = peers.prepared(split, 24, 61)
    ids, keep = peers.texts(split, 4, MARK, AROUND)
    told, heard = peers.spread(ids, keep, 3, MARK)
    pictures = dict(pixel_values=image, pixel_attention_mask=real.long())
    expected = theirs.generate(
        input_ids=told, attention_mask=heard.long(), max_new_tokens=12, do_sample=False, use_cache=True, **pictures
    )[:, told.shape[1] :]
    batch = {"image": image, "text": ids[:, :-1], "keep": {"image": real, "text": keep[:, :-1]}}
    logits, cache = ours.step(ids[:, -1:], ours.prefill(batch))
    got = []
    for _ in range(12):
        got.append(logits[:, -1].argmax(1))
        logits, cache = ours.step(got[-1][:, None], cache)
    assert torch.equal(torch.stack(got, 1), expected) and len(expected.unique()) > 4
