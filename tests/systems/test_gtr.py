"""GTR: one vector of 768 numbers whatever reads, and published folders with their layer behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import plait
from plait.core.catalog import build


@pytest.mark.parametrize("size", ["base", "large", "xl", "xxl"])
def test_the_vector_is_as_long_whatever_the_tower(size):
    model = build(f"gtr_{size}")
    assert model.embed_width == 768 and model.project.weight.shape == (768, model.tower.width)
    assert model.project.bias is None


@torch.no_grad()
def test_it_is_the_mean_of_what_t5_reads_through_a_layer_at_length_one():
    model = plait.create_model("gtr_toy").eval()
    ids, keep = torch.arange(5, 17)[None], torch.arange(12)[None] < 9
    x = model.tower.tokens(ids[:, :9]).x.mean(1)
    torch.testing.assert_close(model(ids, keep), F.normalize(x @ model.project.weight.T, dim=-1))
    assert model(ids, keep).norm().item() == pytest.approx(1, abs=1e-6)


def test_nothing_that_writes_is_left_of_the_tower():
    whole, bare = build("t5_toy"), build("gtr_toy").tower
    gone = {key.split(".")[0] for key in whole.state_dict().keys() - bare.state_dict().keys()}
    assert gone == {"stack", "near_written", "norm"} and bare.state_dict().keys() <= whole.state_dict().keys()


def test_a_folder_as_it_is_published_is_read_with_the_table_told_twice_or_once(tmp_path):
    small = dict(tower="t5_toy", embed=16)
    model = plait.create_model("gtr_base", seed=3, **small)
    state = plait.save_weights(model, "sentence_transformers")
    assert {"shared.weight", "encoder.embed_tokens.weight", "2_Dense.linear.weight"} <= state.keys()
    (tmp_path / "2_Dense").mkdir()
    save_file({"linear.weight": state.pop("2_Dense.linear.weight")}, tmp_path / "2_Dense" / "model.safetensors")
    for twice in (True, False):
        if not twice:
            del state["encoder.embed_tokens.weight"]
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
        other = plait.create_model("gtr_base", pretrained=tmp_path, **small).state_dict()
        assert all(torch.equal(v, other[k]) for k, v in model.state_dict().items())
