"""Meta-Transformer: a frozen encoder that many tokenizers share."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.tokens import Tokens
from tests.contract.examples import example
from tests.parity.meta_transformer import published


def toy(**arguments):
    return plait.create_model("meta_transformer_toy", **arguments)


def test_only_the_encoder_is_frozen_and_gradients_pass_through_it():
    model = toy()
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for n, p in model.named_parameters() if not n.startswith("encoder."))
    model.fuse(example(model))["fused"].square().sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.slots.parameters())
    assert all(p.requires_grad for p in toy(frozen=False).parameters())
    assert all(p.requires_grad for p in plait.create_model("meta_transformer_nano").parameters())


def test_the_published_encoder_loads_alone(tmp_path):
    official = published(32, 2, 2)
    torch.save(official.state_dict(), tmp_path / "encoder.pth")
    model = toy()
    before = {k: v.clone() for k, v in model.slots.state_dict().items()}
    plait.load_weights(model.encoder, official.state_dict(), "official")
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.slots.state_dict().items())
    back = plait.save_weights(model.encoder, "official")
    assert all(torch.equal(v, back[k]) for k, v in official.state_dict().items()) and len(back) == len(
        official.state_dict()
    )
    with pytest.raises(ValueError, match="missing"):
        plait.load_weights(
            model.encoder, {k: v for k, v in official.state_dict().items() if not k.startswith("1.")}, "official"
        )


def test_pretrained_reads_the_part_that_is_published(tmp_path):
    official = published(32, 2, 2)
    torch.save(official.state_dict(), tmp_path / "encoder.pth")
    small = dict(slots={"number": {"kind": "number", "features": 4}}, width=32, depth=2, heads=2)
    model = plait.create_model("meta_transformer_b16", pretrained=tmp_path / "encoder.pth", **small)
    x = torch.randn(1, 5, 32)
    torch.testing.assert_close(model.eval().encoder(Tokens(x)).x, official(x))


def test_slots_of_one_kind_and_what_each_says_alone():
    slots = {
        "image_0": {"kind": "image", "size": (30, 50)},
        "image_1": {"kind": "image", "size": (32, 32)},
        "text_0": {"kind": "text", "vocab": 64},
    }
    model = toy(slots=slots).eval()
    batch = {
        "image_0": torch.rand(2, 3, 30, 50),
        "image_1": torch.rand(2, 3, 32, 32),
        "text_0": torch.randint(1, 64, (2, 7)),
    }
    out = model.fuse(batch)
    assert model.takes == tuple(slots) == tuple(out["parts"]) and model.part_widths == dict.fromkeys(slots, 32)
    torch.testing.assert_close(out["fused"], torch.stack(list(out["parts"].values())).mean(0))
    alone = model.fuse({"text_0": batch["text_0"]})
    torch.testing.assert_close(alone["parts"]["text_0"], out["parts"]["text_0"])
    torch.testing.assert_close(alone["fused"], alone["parts"]["text_0"])
    with pytest.raises(ValueError, match="'video'"):
        toy(slots={"video_0": {"kind": "video"}})
