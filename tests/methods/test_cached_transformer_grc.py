"""Attention with a cache that outlives the input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import plait
from plait.core.block import Attention, Stack
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.methods.attention.cached_transformer_grc import Cache, CachedAttention, advancing, apart, forget, spread
from plait.parts.towers.encoder import pre_norm_blocks


def cached(length=4, **how):
    host = nn.Sequential(initialise(Attention(16, 2)))
    plait.apply_method(host, "cached_transformer_grc", length=length, **how)
    for p in host.parameters():
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    return host[0]


def test_with_no_share_of_the_cache_it_is_the_attention():
    mixer, t = cached(), Tokens(torch.randn(2, 7, 16))
    assert not torch.allclose(mixer(t).x, mixer.attention(t).x, atol=1e-3)
    nn.init.constant_(mixer.share, float("-inf"))
    assert torch.equal(mixer(t).x, mixer.attention(t).x)


def test_the_renewal_is_a_recurrent_unit_and_the_mixture_its_formula():
    mixer, x = cached(), torch.randn(3, 7, 16)
    c = mixer.cache
    nn.init.normal_(c.tokens)
    y = mixer.attention(Tokens(x)).x
    news = F.interpolate(y[..., :8].transpose(1, 2), 4).transpose(1, 2)
    want = []
    for row in news:
        old = c.tokens[0]
        r = torch.sigmoid(F.linear(torch.cat([old, row], 1), c.forget.weight, c.forget.bias))
        z = torch.sigmoid(F.linear(torch.cat([old, row], 1), c.update.weight, c.update.bias))
        new = F.layer_norm(
            F.gelu(F.linear(torch.cat([r * old, row], 1), c.add.weight, c.add.bias)), (8,), c.norm.weight, c.norm.bias
        )
        want.append(old - z * old + z * new)
    want = torch.stack(want)
    torch.testing.assert_close(c(news), want, rtol=1e-5, atol=1e-5)
    seen = mixer.cross(Tokens(x[..., :8]).reading(stream=Tokens(want))).x
    a = mixer.share.sigmoid()
    got = mixer(Tokens(x)).x
    # the first head's
    torch.testing.assert_close(got[..., :4], (1 - a[0]) * y[..., :4] + a[0] * seen[..., :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[..., 4:8], (1 - a[0]) * y[..., 4:8], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[..., 8:12], (1 - a[1]) * y[..., 8:12] + a[1] * seen[..., 4:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n, count", [(7, 4), (16, 4), (5, 9), (12, 12), (1, 3)])
def test_places_are_those_of_nearest_interpolation_over_what_is_real(n, count):
    places = torch.arange(n).expand(2, n)
    want = F.interpolate(places[None].float(), count)[0].long()
    assert torch.equal(spread(Tokens(torch.zeros(2, n, 1)), count), want)
    keep = torch.cat([torch.zeros(2, 3, dtype=torch.bool), places >= 0, torch.zeros(2, 2, dtype=torch.bool)], 1)
    assert torch.equal(spread(Tokens(torch.zeros(2, n + 5, 1), keep=keep), count), want + 3)


def test_forward_is_pure_and_only_advancing_goes_on():
    model, x = plait.create_model("vit_toy"), torch.rand(2, 3, 32, 32)
    undo = plait.apply_method(model, "cached_transformer_grc", length=8)
    first = model.train()(x)
    assert torch.equal(model(x), first)
    with advancing(model):
        assert torch.equal(model(x), first)
    kept = [m.tokens.clone() for m in model.modules() if isinstance(m, Cache)]
    assert all(k.shape == (1, 8, 16) and k.abs().sum() > 0 and not k.requires_grad for k in kept)
    assert not torch.equal(model(x), first) and torch.equal(model(x), model(x))
    assert sum(".cache.tokens" in k for k in model.state_dict()) == 2
    forget(model)
    assert torch.equal(model(x), first)
    undo()
    with pytest.raises(ValueError, match="no caches"), advancing(model):
        model(x)


def test_gradients_reach_the_gates():
    mixer = cached()
    with advancing(mixer, apart):
        mixer(Tokens(torch.randn(2, 7, 16)))
    mixer(Tokens(torch.randn(2, 7, 16))).x.square().sum().backward()
    gates = [mixer.cache.forget, mixer.cache.update, mixer.cache.add]
    assert (
        all(g.weight.grad.abs().sum() > 0 and g.bias.grad.abs().sum() > 0 for g in gates)
        and (mixer.share.grad != 0).all()
    )


def test_what_does_not_fit_is_told():
    for options in (dict(ratio=0.3), dict(length=0), dict(ratio=0.0)):
        with pytest.raises(ValueError, match="ratio"):
            plait.apply_method(plait.create_model("vit_toy"), "cached_transformer_grc", **options)
    with pytest.raises(ValueError, match="ahead"):
        plait.apply_method(plait.create_model("clip_toy").towers["text"], "cached_transformer_grc")


class Recaller(nn.Module):
    """Words (B, N) -> what the first token answers, one of four."""

    scheme = {nn.Embedding: lambda m: nn.init.normal_(m.weight)}

    def __init__(self):
        super().__init__()
        self.words, self.out, self.stack = nn.Embedding(6, 16), nn.Linear(16, 4), Stack(*pre_norm_blocks(16, 1, 1, 32))

    def forward(self, x):
        return self.out(self.stack(Tokens(self.words(x))).x[:, 0])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_segment_is_told_what_the_one_before_it_said(seed):
    def accuracy(model, goes_on):
        g = torch.Generator().manual_seed(seed)
        optimizer, right = torch.optim.AdamW(model.parameters(), 1e-2), []
        for _ in range(120):
            secret = torch.randint(4, (32,), generator=g)
            goes_on(model, secret[:, None].expand(-1, 4))
            answer = model(torch.full((32, 4), 5))  # the second segment only asks
            optimizer.zero_grad()
            F.cross_entropy(answer, secret).backward()
            optimizer.step()
            right.append((answer.argmax(1) == secret).float().mean())
        return torch.stack(right[-20:]).mean()

    def remember(model, first):
        forget(model)
        with advancing(model, apart), torch.no_grad():
            model(first)

    with_cache, twin = initialise(Recaller(), seed=seed), initialise(Recaller(), seed=seed)
    plait.apply_method(with_cache, "cached_transformer_grc", length=4, ratio=1.0)
    assert any(isinstance(m, CachedAttention) for m in with_cache.modules())
    assert accuracy(with_cache, remember) > 0.95
    assert accuracy(twin, lambda model, first: model(first)) < 0.4
