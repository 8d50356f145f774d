"""Two pictures: which is which matters, an absent one is not looked at, and what two layers share is one tensor."""

from __future__ import annotations

import pytest
import torch

import plait
from tests.contract.examples import example


@pytest.fixture(scope="module")
def model():
    return plait.create_model("albef_nlvr_toy", seed=0).eval()


@torch.no_grad()
def test_which_picture_is_which_matters(model):
    batch = example(model)
    turned = {**batch, "image_0": batch["image_1"], "image_1": batch["image_0"]}
    same = {**batch, "image_1": batch["image_0"]}
    assert not torch.allclose(model.fuse(batch)["fused"], model.fuse(turned)["fused"], atol=1e-3)
    both = {**same, "image_0": same["image_1"]}
    torch.testing.assert_close(model.fuse(same)["fused"], model.fuse(both)["fused"])


@torch.no_grad()
@pytest.mark.parametrize("eye", ["image_0", "image_1"])
def test_an_absent_picture_is_not_looked_at(model, eye):
    batch = example(model)
    gone = {**batch["present"], eye: torch.zeros(3, dtype=torch.bool)}
    one, other = (model.fuse({**batch, eye: x, "present": gone})["fused"] for x in (batch[eye], batch[eye] + 1))
    assert torch.equal(one, other) and not torch.allclose(one, model.fuse(batch)["fused"], atol=1e-3)


def test_keys_of_two_layers_that_differ_are_refused(model):
    state = plait.save_weights(model, "official")
    name = "text_encoder.encoder.layer.2.crossattention.self.key.weight"
    assert torch.equal(state[name], state[name.replace("layer.2", "layer.3")])
    with pytest.raises(ValueError, match="differ"):
        plait.load_weights(model, state | {name: state[name] + 1}, "official")
