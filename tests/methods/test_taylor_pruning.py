"""Pruning by first-order importance: which parts go, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import plait
from plait.core.block import Attention, FeedForward
from plait.core.init import initialise
from plait.core.recipe import Recipe
from plait.core.tokens import Tokens


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(model, x):
    """A loss of `model`, its gradients left in the weights."""
    model.zero_grad()
    loss = model(x).square().sum()
    loss.backward()
    return float(loss)


@pytest.mark.parametrize("by", ["weights", "gradients"])
def test_a_pruned_model_answers_as_if_what_went_were_silent(by):
    model, x = plait.create_model("vit_toy", heads=4).eval(), draw(2, 3, 32, 32)
    measured(model, x)
    silent = plait.create_model("vit_toy", heads=4).eval()
    with torch.no_grad():
        for ours, theirs in zip(model.stack.blocks, silent.stack.blocks):
            for (own, other), count in (
                ((ours.mix.f.out, theirs.mix.f.out), 4),
                ((ours.feed.f.down, theirs.feed.f.down), 128),
            ):
                g = own.weight.grad if by == "gradients" else own.weight
                worth = [
                    float(w.sum() ** 2 if by == "gradients" else w.sum()) for w in (own.weight * g).chunk(count, 1)
                ]
                for i in sorted(range(count), key=lambda i: worth[i])[: count // 2]:
                    other.weight.chunk(count, 1)[i].zero_()
    undo = plait.apply_method(model, "taylor_pruning", by=by)
    first = model.stack.blocks[0]
    assert first.mix.f.qkv.weight.shape == (48, 32) and first.mix.f.out.weight.shape == (32, 16)
    assert first.feed.f.up.weight.shape == (64, 32) and first.mix.f.heads == 2
    torch.testing.assert_close(model(x), silent(x), rtol=1e-5, atol=1e-6)
    undo()
    assert torch.equal(model(x), plait.create_model("vit_toy", heads=4).eval()(x))


def test_gradients_say_what_the_loss_would_miss():
    """A head of small weights that the loss hangs on stays; a large one that it does not hear goes."""
    host = nn.Sequential(initialise(Attention(8, 2))).requires_grad_(True)
    with torch.no_grad():
        host[0].out.weight[:, :4] *= 0.1
        host[0].out.weight[:4, 4:] = 0  # the second head speaks to the last four channels, and loudly
        host[0].out.weight[4:, 4:] *= 10
    want = host[0].out.weight[:, :4].clone()
    t = Tokens(draw(1, 5, 8))
    host(t).x[..., :4].sum().backward()  # which the loss does not read
    undo = plait.apply_method(host, "taylor_pruning", by="gradients")
    assert torch.equal(host[0].out.weight, want)
    undo()
    plait.apply_method(host, "taylor_pruning", by="weights")
    assert not torch.equal(host[0].out.weight, want)


def test_a_recipe_says_the_shapes_and_the_same_weights_are_pruned_alike():
    recipe = Recipe("vit_toy", {"heads": 4}, ["taylor_pruning:share=0.75"])
    one, two, empty = recipe.build(), recipe.build(), recipe.build_on_meta()
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in one.state_dict().items()}
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert one.stack.blocks[0].mix.f.heads == 1 and one.stack.blocks[0].feed.f.up.out_features == 32


def test_gradients_and_masks_pass_a_pruned_layer():
    model = plait.create_model("bert_toy").eval()
    plait.apply_method(model, "taylor_pruning", heads=False, share=0.9)
    assert {m.heads for m in model.modules() if type(m) is Attention} == {2}
    assert {m.up.out_features for m in model.modules() if type(m) is FeedForward} == {13}


@pytest.mark.parametrize(
    "options, why",
    [
        (dict(share=1.0), "more than 0 and less than 1"),
        (dict(by="luck"), "expected one of weights, gradients"),
        (dict(by="gradients"), "weights without gradients"),
        (dict(heads=False, units=False), "parts could go"),
    ],
)
def test_what_cannot_be_done_is_told(options, why):
    with pytest.raises(ValueError, match=why):
        plait.apply_method(plait.create_model("vit_toy"), "taylor_pruning", **options)
    if "by" in options:
        return
    for name in ("int8", "lora"):
        model = plait.create_model("vit_toy")
        plait.apply_method(model, name)
        with pytest.raises(ValueError, match="prune before other methods"):
            plait.apply_method(model, "taylor_pruning")
