"""ViTamin's own claims: convolutions to a sixteenth, then one resolution, with a feed-forward that costs half of a
gated one of 4 D."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.attend import recorded
from plait.core.catalog import build
from plait.errors import PlaitError
from tests.parity.compare import perturb, relative_error
from tests.peers import declare_torchvision


@torch.no_grad()
def test_convolutions_leave_a_sixteenth_and_attention_keeps_that_resolution():
    model = plait.create_model("vitamin_toy").eval()
    watched, maps = recorded(model)
    t = watched.tokens(torch.rand(1, 3, 64, 96))
    assert t.grid == (4, 6) and [m.shape[2:] for m in maps] == 2 * [(24, 24)]
    assert model.tokens(torch.rand(1, 3, 65, 97)).grid == (5, 7)


def test_published_sizes():
    """In millions, with the projection that the towers were published with."""
    towers = (("small_224", 384, 22.0), ("base_224", 512, 87.5), ("large_224", 768, 333.3), ("xlarge_256", 1152, 436.1))
    for size, embed, published in towers:
        count = sum(p.numel() for p in build(f"vitamin_{size}", num_classes=embed).parameters())
        assert abs(count / 1e6 / published - 1) < 0.003


@torch.no_grad()
def test_a_published_pair_of_towers_is_read_as_timm_reads_it(tmp_path):
    """Its picture's tower, and the projection as the head."""
    declare_torchvision()
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    theirs = perturb(timm.create_model("vitamin_small_224", num_classes=384))
    pair = {f"visual.trunk.{k}": v.clone() for k, v in theirs.state_dict().items() if not k.startswith("head.")}
    pair |= {"visual.head.proj.weight": 0.1 * torch.randn(384, 384), "logit_scale": torch.tensor(2.0)}
    pair |= {"text.positional_embedding": torch.zeros(77, 384), "text.ln_final.weight": torch.ones(384)}
    torch.save(pair, tmp_path / "pytorch_model.bin")
    theirs.load_state_dict(checkpoint_filter_fn(pair, theirs))
    ours = plait.create_model("vitamin_small_224.datacomp1b_clip", pretrained=tmp_path / "pytorch_model.bin").eval()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert relative_error(ours(x), theirs(x)) < 1e-5
    again = plait.save_weights(ours, "open_clip")
    assert all(torch.equal(again[k], pair[k]) for k in again) and "visual.head.proj.weight" in again
    ours.head.bias.fill_(1.0)
    with pytest.raises(PlaitError, match="bias of the head has no place"):
        plait.save_weights(ours, "open_clip")
