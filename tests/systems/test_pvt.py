"""PVT: maps at four strides, also of pictures that are not square; keys and values are fewer than queries; the class
token comes last."""

from __future__ import annotations

import torch

import plait
from plait.core.attend import recorded


@torch.no_grad()
def test_maps_at_strides_of_4_8_16_and_32():
    model = plait.create_model("pvt_tiny_224", depths=(1, 1, 1, 1)).eval()
    for size in ((64, 96), (224, 160), (50, 70)):
        maps = model.maps(torch.rand(1, 3, *size))
        assert [tuple(m.shape[1:]) for m in maps] == [
            (w, -(-size[0] // s), -(-size[1] // s)) for w, s in zip((64, 128, 320, 512), (4, 8, 16, 32))
        ]


@torch.no_grad()
def test_what_is_asked_is_reduced_until_the_last_stage_whose_class_token_reads():
    model = plait.create_model("pvt_toy").eval()
    watched, maps = recorded(model)
    watched(torch.rand(1, 3, 32, 32))
    assert [m.shape[2:] for m in maps] == [(256, 16), (64, 16), (16, 4), (5, 5)]
    t = model.tokens(torch.rand(1, 3, 32, 32))
    assert t.prefix == 1 and t.grid == (2, 2)
    torch.testing.assert_close(model.pool(t), model.norm(t.x[:, 0]))
