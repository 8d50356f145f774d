"""ViTamin's own claims: convolutions to a sixteenth, then one resolution, with a feed-forward that costs half of a
gated one of 4 D."""

from __future__ import annotations

import torch

import plait
from plait.core.attend import recorded
from plait.core.catalog import build


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
