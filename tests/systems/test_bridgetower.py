"""BridgeTower: every head at once, the bridges, and the layer in which two streams ask each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import plait
from plait.core.catalog import model_info
from plait.core.tokens import Tokens
from plait.errors import PlaitError
from tests.contract.examples import example
from tests.parity.bridgetower import HEADS, config, difference, inputs, peers, state_of
from tests.parity.compare import count, perturb, whole_files
from tests.parity.norms import epsilons

TEXT = dict(
    vocab_size=64, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=512,
    max_position_embeddings=18,
)  # fmt: skip
EYES = dict(hidden_size=128, num_hidden_layers=3, patch_size=8, image_size=32)
SAME = dict(
    width=128, image_width=128
)  # their heads are 64 wide in the picture's tower, and their vectors want one width


def tiny(given: tuple[str, ...] = tuple(HEADS)) -> nn.ModuleDict:
    """transformers' classes in about the toy's size."""
    own = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4)
    contrast = dict(contrastive_hidden_size=16, logit_scale_init_value=2.0)
    from transformers import BridgeTowerConfig

    return perturb(peers(BridgeTowerConfig(text_config=TEXT, vision_config=EYES, **own, **contrast), given))


def toy(seed: int = 0, **arguments) -> nn.Module:
    return perturb(plait.create_model("bridgetower_toy", seed=seed, **arguments)).eval()


def test_every_head_agrees_and_goes_back():
    found = tiny()
    state = state_of(found)
    ours = plait.load_weights(plait.create_model("bridgetower_toy", **SAME).eval(), state, "transformers_whole")
    assert count(ours) == count(found) and epsilons(ours) == epsilons(found)
    assert difference(ours, found, inputs(64, 32, 4)) < 1e-5
    back = plait.save_weights(ours, "transformers_whole")
    assert back.keys() == state.keys() and all(torch.equal(v, back[k]) for k, v in state.items())


def test_the_bare_encoder_has_a_layout_and_older_files_hold_more():
    found = tiny(())
    found["encoder"].text_model.pooler = nn.ModuleDict({"dense": nn.Linear(128, 128)})  # of which nothing is read
    with whole_files():
        state = found["encoder"].state_dict()
    assert any(key.endswith("position_ids") for key in state)
    bare = dict(guess=False, match=False, embed_width=0)
    ours = plait.load_weights(plait.create_model("bridgetower_toy", **SAME, **bare).eval(), state, "transformers")
    assert difference(ours, found, inputs(64, 32, 4)) < 1e-5
    with pytest.raises(PlaitError, match="got embed_width=0, build it with a width"):
        ours.embed(example(ours))


def test_the_published_size_is_the_default_of_transformers_but_for_a_pooler_nobody_asks():
    with torch.device("meta"):
        found = peers(config("", {}), ())
    assert model_info("bridgetower_base").parameters + 768 * 768 + 768 == count(found) + 590_592 == 326_347_008


class Burnt(nn.Module):
    """A bridge over which nothing comes."""

    def __init__(self, bridge: nn.Module):
        super().__init__()
        self.norm = bridge.norm

    def forward(self, t: Tokens, said: torch.Tensor) -> Tokens:
        return t.replace(x=self.norm(t.x))


@torch.no_grad()
@pytest.mark.parametrize("slot", ["image", "text"])
@pytest.mark.parametrize("k", [0, 1])
def test_without_a_bridge_other_things_are_said(slot, k):
    model = toy(depth=3)
    batch = example(model)
    before = model(batch)
    model.bridges[slot][k] = Burnt(model.bridges[slot][k])
    after = model(batch)
    for key in ("fused", "match", "words", "pair"):
        assert (after[key] - before[key]).abs().max() > 1e-2 * before[key].abs().max(), key
    assert all(torch.equal(after[slot], before[slot]) for slot in model.takes)  # which end below the bridges


@torch.no_grad()
@pytest.mark.parametrize("slot", ["image", "text"])
@pytest.mark.parametrize("height", [1, 2, 3])
def test_each_of_the_top_layers_reaches_the_fusion_by_its_own_bridge(slot, height):
    """What a layer says is changed on its bridge alone, its tower goes on as before: each of the three is heard."""
    model = toy(depth=3, image_depth=4, text_depth=4)
    batch = example(model)
    found, said, _ = model.read(batch)
    assert [len(t) for t in found.values()] == [3, 3]
    before = model.pool(model.cross(found, said))
    said[slot][height - 1] = said[slot][height - 1].flip(2)
    assert (model.pool(model.cross(found, said)) - before).abs().max() > 1e-2


def test_more_cross_modal_layers_than_a_tower_has_layers_are_refused():
    with pytest.raises(PlaitError, match="got 3 cross-modal layers above towers of 2 and 3 layers"):
        plait.create_model("bridgetower_toy", depth=3, image_depth=2)


@torch.no_grad()
def test_both_streams_ask_what_the_other_was_before_the_layer():
    """Neither waits for the other: each is its own block over the streams as they came."""
    model = toy()
    layer, width = model.layers[0], 48
    text, image = Tokens(torch.randn(2, 5, width)), Tokens(torch.randn(2, 7, width))
    got = layer(text.reading(image=image))
    torch.testing.assert_close(got.x, layer.text(text.reading(image=image)).x)
    torch.testing.assert_close(got.read("image").x, layer.image(image.reading(text=text)).x)


@torch.no_grad()
def test_a_bridge_is_the_norm_of_a_sum():
    model = toy()
    bridge, t, said = model.bridges["text"][0], torch.randn(2, 5, 48), torch.randn(2, 5, 48)
    norm = bridge.norm
    x = t + said
    want = (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(bridge(Tokens(t), said).x, want * norm.weight + norm.bias)
    assert count(bridge) == 2 * 48  # and nothing else, "almost negligible"


@torch.no_grad()
def test_vectors_are_each_sides_own_and_an_absent_one_is_zeros():
    model = toy()
    batch, other = example(model), example(model, seed=1)
    whole = model.embed(batch)
    for slot in model.takes:
        changed = model.embed({**batch, slot: other[slot]})
        assert not torch.equal(changed[slot], whole[slot])
        assert all(torch.equal(changed[s], whole[s]) for s in model.takes if s != slot)
        absent = model.embed({**batch, "present": {slot: torch.tensor([True, False, True])}})[slot]
        assert not absent[1].any() and torch.allclose(absent[[0, 2]], whole[slot][[0, 2]], atol=1e-6)
