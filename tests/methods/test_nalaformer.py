"""Linear attention that knows how long its queries are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.block import Attention
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.methods.attention.nalaformer import (
    causal_linear_attention,
    halves,
    key_features,
    linear_attention,
    query_features,
    step,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(q, k):
    """The map that linear attention never makes, from the words of the paper: one number after another."""
    length = q.norm(dim=-1, keepdim=True)
    power = 3 * (0.5 + torch.tanh(length))
    up = [(q / length).clamp(min=0) ** power, (-q / length).clamp(min=0) ** power]
    down = [k.clamp(min=0) ** 3, (-k).clamp(min=0) ** 3]
    scores = sum(a @ b.mT for a, b in zip(up, down))
    return scores / scores.sum(-1, keepdim=True)


def test_the_map_of_directions_keeps_lengths_and_never_goes_below_zero():
    x = draw(100, 16)
    assert halves(x).min() >= 0
    torch.testing.assert_close(halves(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(halves(x) @ halves(x).T, (x.relu() @ x.relu().T) + ((-x).relu() @ (-x).relu().T))
    assert (halves(x) * halves(-x)).abs().max() == 0  # opposite signs do not meet
    assert query_features(draw(50, 16), 3.0).min() >= 0 and key_features(draw(50, 16)).min() >= 0


def test_a_model_computes_the_map_times_the_values():
    host = nn.Sequential(initialise(Attention(32, 2)))
    nn.init.normal_(host[0].qkv.weight, std=0.2)
    t, attention = Tokens(draw(2, 9, 32)), host[0]
    plait.apply_method(host, "nalaformer")
    q, k, v = attention.project(t)
    torch.testing.assert_close(host[0](t).x, attention.merge(t.replace(x=weights(q, k) @ v)).x, rtol=1e-5, atol=1e-5)
    heavy = t.replace(weight=torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0]).expand(2, -1))
    repeated = Tokens(t.x.repeat_interleave(torch.tensor([1, 2, 1, 1, 1, 3, 1, 1, 1]), 1))
    torch.testing.assert_close(host[0](heavy).x[:, -1], host[0](repeated).x[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 63, 64, 150])
def test_parallel_and_recurrent_forms_agree(n):
    q, k, v = query_features(draw(2, 3, n, 8), 3.0), key_features(draw(2, 3, n, 8, seed=1)), draw(2, 3, n, 5, seed=2)
    state, ys = torch.zeros(2, 3, 16, 6), []
    for i in range(n):
        y, state = step(q[:, :, i], k[:, :, i], v[:, :, i], state)
        ys.append(y)
    causal = causal_linear_attention(q, k, v)
    torch.testing.assert_close(torch.stack(ys, 2), causal, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear_attention(q, k, v)[:, :, -1], causal[:, :, -1], rtol=1e-5, atol=1e-5)


def test_entropy_falls_as_queries_grow_and_stands_still_without_norms():
    q, k = draw(64, 16), draw(200, 16, seed=1)

    def entropies(features):
        maps = [features(q * s) @ key_features(k).T for s in (0.01, 0.05, 0.1, 0.2, 0.4, 0.8)]
        maps = [m / m.sum(-1, keepdim=True) for m in maps]
        return torch.stack([-(m * m.clamp(min=1e-30).log()).sum(-1) for m in maps])  # (scales, queries)

    aware, plain = entropies(lambda x: query_features(x, 3.0)), entropies(halves)
    assert (aware.mean(1).diff() < 0).all() and (aware.diff(dim=0) < 0).float().mean() > 0.9
    assert aware[0].mean() - aware[-1].mean() > 0.2
    torch.testing.assert_close(plain, plain[:1].expand_as(plain), rtol=1e-4, atol=1e-4)


def test_cost_is_linear():
    def cost(n, f):
        with FlopCounterMode(display=False) as counter:
            f(*torch.empty(3, 1, 1, n, 8, device="meta"))
        return counter.get_total_flops()

    for f in (linear_attention, causal_linear_attention):
        assert cost(65536, f) == 64 * cost(1024, f)


def test_no_query_and_no_key_is_no_trouble():
    q = torch.zeros(1, 1, 3, 4, requires_grad=True)
    y = linear_attention(query_features(q, 3.0), key_features(torch.zeros(1, 1, 3, 4)), draw(1, 1, 3, 4))
    y.sum().backward()
    assert (y == 0).all() and q.grad.isfinite().all()
    with pytest.raises(ValueError, match="above zero"):
        plait.apply_method(plait.create_model("vit_toy"), "nalaformer", power=0)
