"""Attention at two resolutions, against dense attention and a dense construction of itself."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import attend
from plait.methods.attention.mra_attention import multi_resolution


def walks(rows=2, heads=3, n=64, e=8, seed=0):
    """Queries, keys and values that change slowly along the tokens, as those of texts and pictures do."""
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(rows, heads, n, e, generator=g).cumsum(2) / 4 for _ in range(2))
    return q, k, torch.randn(rows, heads, n, e, generator=g), torch.ones(rows, n)


def dense(q, k, v, weight, block, fine, background):
    """The same, one row of tokens, one head and one pair of blocks after another, all scores as one matrix."""
    out = torch.zeros_like(v)
    for b in range(q.shape[0]):
        n = int((weight[b] > 0).nonzero().max()) + 1
        runs = [slice(i, min(i + block, n)) for i in range(0, n, block)]
        w = weight[b]
        for h in range(q.shape[1]):
            exact = q[b, h] @ k[b, h].T * q.shape[-1] ** -0.5
            low = torch.tensor(
                [[(_mean(q[b, h], w, i) @ _mean(k[b, h], w, j)) * q.shape[-1] ** -0.5 for j in runs] for i in runs]
            )
            best = (low - low.amax(1, keepdim=True)).flatten().topk(min(fine, len(runs)) * len(runs)).indices.tolist()
            map_, value = torch.zeros(n, n), v[b, h, :n]
            means = torch.zeros(n, n)
            for r, i in enumerate(runs):
                for c, j in enumerate(runs):
                    if r * len(runs) + c in best:
                        map_[i, j] = exact[i, j].exp() * w[j]
                    elif background:
                        means[i, j] = low[r, c].exp() * w[j]
            total = (map_ + means).sum(-1, keepdim=True)
            out[b, h, :n] = (map_ + means) @ value / total
    return out


def _mean(x, w, run):
    return (x[run] * w[run, None]).sum(0) / w[run].sum()


@pytest.mark.parametrize("n", [64, 61])
def test_all_blocks_refined_is_attention(n):
    q, k, v, w = walks(n=n)
    for background in (True, False):
        torch.testing.assert_close(
            multi_resolution(q, k, v, w, block=8, fine=8, background=background), attend(q, k, v)
        )


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("n, fine", [(32, 1), (32, 2), (29, 2)])
def test_it_is_what_the_dense_construction_gives(n, fine, background):
    q, k, v, w = walks(n=n)
    w = w * (1 + torch.arange(n) % 3)  # tokens that stand for one, two and three
    w[1, 18:] = 0  # and a row that ends sooner
    got = multi_resolution(q, k, v, w, block=4, fine=fine, background=background)
    got[1, :, 18:] = 0
    torch.testing.assert_close(got, dense(q, k, v, w, 4, fine, background), rtol=1e-4, atol=1e-5)


def test_a_heavy_token_is_a_repeated_one():
    q, k, v, w = walks(n=16)
    twice = [x.repeat_interleave(2, 2) for x in (q, k, v)]
    got = multi_resolution(q, k, v, 2 * w, block=4, fine=2)
    torch.testing.assert_close(
        got, multi_resolution(*twice, torch.ones(2, 32), block=8, fine=2)[:, :, ::2], rtol=1e-4, atol=1e-5
    )


def test_padding_and_garbage_in_it_change_nothing():
    q, k, v, w = walks(n=40)
    alone = multi_resolution(*(x[:, :, :22] for x in (q, k, v)), w[:, :22], block=4, fine=2)
    w[:, 22:] = 0
    v[:, :, 22:] = float("nan")
    torch.testing.assert_close(multi_resolution(q, k, v, w, block=4, fine=2)[:, :, :22], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("background", [True, False])
def test_the_error_falls_with_every_block_refined(background):
    q, k, v, w = walks(rows=8, n=128)
    errors = [
        (multi_resolution(q, k, v, w, block=8, fine=f, background=background) - attend(q, k, v)).norm()
        for f in range(1, 17)
    ]
    assert all(b < a for a, b in zip(errors[:-1], errors[1:])) and errors[-1] < 1e-4 * errors[0]


def test_the_background_is_worth_having():
    q, k, v, w = walks(rows=8, n=128)
    with_it, without = (
        (multi_resolution(q, k, v, w, block=8, fine=2, background=b) - attend(q, k, v)).norm() for b in (True, False)
    )
    assert with_it < 0.9 * without


def test_cost_is_less_than_quadratic():
    def cost(n):
        with FlopCounterMode(display=False) as counter:
            multi_resolution(*walks(rows=1, heads=1, n=n, e=32), block=32, fine=4)
        return counter.get_total_flops()

    assert cost(2048) / cost(1024) < 2.1 and cost(4096) < 0.04 * 4 * 4096 * 4096 * 32


def test_models_with_small_blocks():
    model, x = plait.create_model("vit_toy").eval(), torch.rand(2, 3, 32, 32)
    plain = model(x)
    undo = plait.apply_method(model, "mra_attention", block=4, fine=5)
    torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-4)
    undo()
    plait.apply_method(model, "mra_attention", block=4, fine=2)
    assert 0 < (model(x) - plain).abs().max() < 0.1
    with pytest.raises(ValueError, match="at least one"):
        plait.apply_method(model, "mra_attention", fine=0)
