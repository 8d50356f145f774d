"""Attention by keys and values alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import plait
from plait.core.attend import recorded
from plait.core.block import Attention, Stack
from plait.core.init import initialise
from plait.core.packing import pack, unpack
from plait.core.tokens import Tokens
from plait.parts.towers.encoder import pre_norm_blocks


def one(positions=0, width=32, heads=2, **how):
    host = nn.Sequential(initialise(Attention(width, heads, **how) if how else Attention(width, heads)))
    nn.init.normal_(host[0].qkv.weight, generator=torch.Generator().manual_seed(0))
    plait.apply_method(host, "kv_transformer", positions=positions)
    return host[0]


def test_it_is_attention_whose_queries_are_its_keys():
    model, x = plait.create_model("vit_toy").eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, Attention):
                m.qkv.weight[:32], m.qkv.bias[:32] = m.qkv.weight[32:64], m.qkv.bias[32:64]
    tied = model(x)
    plait.apply_method(model, "kv_transformer")
    torch.testing.assert_close(model(x), tied, rtol=1e-6, atol=1e-6)


def test_scores_are_symmetric_and_each_layer_loses_its_queries():
    mixer, t = one(), Tokens(0.1 * torch.randn(2, 9, 32))
    watched, maps = recorded(mixer)
    watched(t)
    # a score less the logarithm of its row's sum: symmetric but for a term of the row and one of the column
    odds = maps[0].log()
    own = mixer.kv(t.x)[..., :32].unflatten(2, (2, 16)).transpose(1, 2).square().sum(-1, keepdim=True) / 4
    scores = odds - odds.diagonal(dim1=-2, dim2=-1)[..., None] + own
    torch.testing.assert_close(scores, scores.mT, rtol=1e-5, atol=1e-5)
    model = plait.create_model("vit_toy")
    before = sum(p.numel() for p in model.parameters())
    plait.apply_method(model, "kv_transformer")
    assert before - sum(p.numel() for p in model.parameters()) == 2 * (32 * 32 + 32)


def test_the_position_term_is_the_map_of_scores_and_codes():
    # an identity, not what rounding makes of it
    mixer, x = one(positions=8).double(), torch.randn(2, 7, 32, dtype=torch.float64)
    nn.init.normal_(mixer.positions.weight)
    k, v = mixer.kv(x).unflatten(2, (2, 2, 16)).permute(2, 0, 3, 1, 4)
    place = torch.arange(7.0)[:, None] * torch.tensor([1.0, 0.01])
    code = torch.stack([place.sin(), place.cos()], -1).flatten(1)  # (N, 4)
    code = torch.cat([code[:, None].expand(-1, 7, -1), code[None].expand(7, -1, -1)], -1)  # (N, N, 8)
    scores = ((k @ k.mT / 4)[..., None] + code) @ mixer.positions.weight
    want = mixer.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(Tokens(x)).x, want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(scores, scores.mT)


@pytest.mark.parametrize("positions", [0, 8])
def test_packed_rows_and_the_past(positions):
    mixer, rows = one(positions, causal=True), [torch.randn(n, 32) for n in (5, 3, 6)]
    if positions:
        nn.init.normal_(mixer.positions.weight)
    for got, row in zip(unpack(mixer(pack(rows))), rows):
        torch.testing.assert_close(got, mixer(Tokens(row[None])).x[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got[:2], mixer(Tokens(row[None, :2])).x[0], rtol=1e-5, atol=1e-5)


def test_it_starts_symmetric_and_odd_codes_are_told():
    x = torch.randn(1, 6, 32)
    torch.testing.assert_close(one(positions=12)(Tokens(x)).x, one()(Tokens(x)).x, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        plait.apply_method(plait.create_model("vit_toy"), "kv_transformer", positions=10)


class Lists(nn.Module):
    """Digits (B, N) in, one digit for each place out."""

    def __init__(self, count: int):
        super().__init__()
        self.words, self.places, self.out = nn.Embedding(10, 32), nn.Embedding(count, 32), nn.Linear(32, 10)
        self.stack = Stack(*pre_norm_blocks(32, 1, 1, 64))

    def forward(self, x):
        return self.out(self.stack(Tokens(self.words(x) + self.places.weight)).x)


@pytest.mark.parametrize(
    "task, steps", [(lambda x: x.flip(1), 200), (lambda x: x.sort(1).values, 500)], ids=["reverse", "sort"]
)
def test_lists_are_reversed_and_sorted(task, steps):
    model = initialise(Lists(6))
    for p in (model.words, model.places):
        nn.init.normal_(p.weight, generator=torch.Generator().manual_seed(0))
    plait.apply_method(model, "kv_transformer", positions=8)
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for _ in range(steps):
        x = torch.randint(10, (64, 6), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), task(x).flatten()).backward()
        optimizer.step()
        schedule.step()
    x = torch.randint(10, (1000, 6), generator=g)
    assert (model.eval()(x).argmax(-1) == task(x)).float().mean() > 0.99
