"""Attention of binary codes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.block import Attention
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.methods.attention.ecoformer import HashedAttend, KernelHash, alike, energy, fitting


def hashed(seed=0, width=32, heads=2, bits=16):
    host = nn.Sequential(initialise(Attention(width, heads), seed=seed))
    nn.init.normal_(host[0].qkv.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    plait.apply_method(host, "ecoformer", bits=bits)
    return host[0]


def crowd(seed=0, rows=4, n=48, width=32):
    """Tokens around eight middles, so that some belong together."""
    g = torch.Generator().manual_seed(seed)
    middles = torch.randn(8, width, generator=g)
    return Tokens(middles[torch.randint(8, (rows, n), generator=g)] + 0.4 * torch.randn(rows, n, width, generator=g))


def test_the_linear_order_is_the_explicit_matrix_of_codes():
    mixer, t = hashed(), crowd()
    q, k, v = mixer.project(t)
    a, b = mixer.attend.hash(q), mixer.attend.hash(k)
    assert set(a.unique().tolist()) == {-1.0, 1.0}
    distance = (a[:, :, :, None] != b[:, :, None]).sum(-1)  # (B, H, N, N)
    weights = 16 - 2 * distance + 17.0
    assert weights.min() >= 1
    want = mixer.merge(t.replace(x=weights / weights.sum(-1, keepdim=True) @ v)).x
    torch.testing.assert_close(mixer(t).x, want, rtol=1e-5, atol=1e-5)


def test_padding_and_weights():
    mixer, t = hashed(), crowd(n=12)
    keep = torch.ones(4, 12, dtype=torch.bool)
    keep[:, 8:] = False
    torch.testing.assert_close(mixer(t.replace(keep=keep)).x[:, :8], mixer(Tokens(t.x[:, :8])).x, rtol=1e-5, atol=1e-5)
    counts = torch.tensor([1, 3, 2] * 4)
    heavy = mixer(t.replace(weight=counts.float().expand(4, -1))).x.repeat_interleave(counts, 1)
    torch.testing.assert_close(heavy, mixer(Tokens(t.x.repeat_interleave(counts, 1))).x, rtol=1e-5, atol=1e-5)


def ranked(codes: torch.Tensor, likes: torch.Tensor) -> float:
    """How often a pair that is alike has the larger product of codes than one that is not, for the same query; ties are
    half."""
    gaps = codes[..., :, None] - codes[..., None, :]
    pairs = (likes[..., :, None] == 1) & (likes[..., None, :] == -1)
    return ((gaps > 0).float() + 0.5 * (gaps == 0))[pairs].mean().item()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fitted_codes_rank_pairs_better_than_chance_ones_on_rows_not_seen(seed):
    mixer, seen, new = hashed(seed, bits=8), crowd(seed), crowd(seed).replace(x=crowd(seed, rows=6).x[4:])
    q, k, _ = mixer.project(new)
    likes = alike(q, k, torch.ones(2, 48, dtype=torch.bool))
    g = torch.Generator().manual_seed(seed)
    planes = torch.randn(16, 8, generator=g)
    chance = max(
        ranked(mixer.attend.hash(q) @ mixer.attend.hash(k).mT, likes),
        ranked((q @ planes).sign() @ (k @ planes).sign().mT, likes),
    )
    with fitting(mixer):
        mixer(seen)
    assert ranked(mixer.attend.hash(q) @ mixer.attend.hash(k).mT, likes) > chance + 0.05


def test_padding_teaches_nothing():
    one, two, t = hashed(bits=4), hashed(bits=4), crowd(n=20)
    keep = torch.ones(4, 20, dtype=torch.bool)
    keep[:, 14:] = False
    garbage = t.x.masked_fill(~keep[..., None], 7.0)
    for mixer, x in ((one, t.x), (two, garbage)):
        with fitting(mixer):
            mixer(Tokens(x, keep=keep))
    for a, b in zip(one.attend.hash.buffers(), two.attend.hash.buffers()):
        torch.testing.assert_close(a, b)


def test_gradients_pass_the_codes():
    unit, x = initialise(KernelHash(2, 8, 4, 10)), torch.randn(3, 2, 5, 8, requires_grad=True)
    y = (unit.kernel(x) - unit.mean) @ unit.weight
    unit(x).sum().backward()
    got = x.grad.clone()
    x.grad = None
    (y * (y.abs() < 1)).sum().backward()
    torch.testing.assert_close(got, x.grad, rtol=1e-4, atol=1e-6)


def test_cost_is_linear_and_energy_what_the_paper_counts():
    def cost(n):
        with FlopCounterMode(display=False) as counter:
            mixer(Tokens(torch.randn(1, n, 32)))
        return counter.get_total_flops()

    mixer = hashed()
    assert cost(4096) == 4 * cost(1024)
    stages = [(3136, 32, 1), (784, 64, 2), (196, 160, 5)]  # PVTv2-B0 at 224: tokens, width, heads, two layers of each
    softmax, codes = (sum(2 * energy(*stage)[i] for stage in stages) for i in (0, 1))
    assert abs((softmax - codes) / 1e9 - (9.3 - 2.5)) < 0.3 and codes < 0.05 * softmax


def test_models_are_fitted_layer_by_layer():
    model, x = plait.create_model("vit_toy").eval(), torch.rand(4, 3, 32, 32)
    with pytest.raises(ValueError, match="no hash functions"), fitting(model):
        model(x)
    plait.apply_method(model, "ecoformer", bits=4)
    before = model(x)
    with fitting(model):
        during = model(x)
    assert torch.equal(model(x), during) and not torch.equal(before, during)
    assert sum(isinstance(m, HashedAttend) for m in model.modules()) == 2
    with pytest.raises(ValueError, match="at least one"):
        plait.apply_method(plait.create_model("vit_toy"), "ecoformer", bits=0)
