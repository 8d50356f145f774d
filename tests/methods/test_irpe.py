"""Relative positions of pictures: buckets, scores, values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import plait
from plait.core.attend import recorded
from plait.core.block import Attention
from plait.core.tokens import Tokens
from plait.methods.attention.irpe import SCHEMES, Buckets, irpe

RECORDED = json.loads(Path(__file__).with_name("irpe.json").read_text())["rows"]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
WAYS = [
    ("bias", "k"),
    ("bias", "q"),
    ("contextual", "k"),
    ("contextual", "q"),
    ("contextual", "v"),
    ("contextual", "qkv"),
]


class Host(nn.Module):
    """One attention, which reads pictures' tokens."""

    def __init__(self):
        super().__init__()
        self.mix = Attention(16, 2)
        for p in self.parameters():
            nn.init.normal_(p, std=0.3)


def changed(**options):
    host = Host()
    irpe(host, **options)
    for p in host.mix.attend.encodings.parameters():
        nn.init.normal_(p)
    return host.mix.eval()


@pytest.mark.parametrize("row", RECORDED, ids=lambda r: f"{r['scheme']}-{r['ratio']}-{r['head']}")
def test_buckets_are_those_of_the_authors(row):
    buckets = Buckets(row["scheme"], row["ratio"])
    index = buckets(tuple(row["grid"]), row["head"], torch.device("cpu"))
    assert index[:, 0].tolist() == row["first"] and index[:, -1].tolist() == row["last"]
    assert index[:, :, row["head"]].tolist() == row["column"]
    assert buckets.count == row["count"]


def naive(mix: Attention, t: Tokens) -> torch.Tensor:
    """All vectors of all pairs, N x N x E, and softmax written out."""
    q, k, v = mix.project(t)
    index = mix.attend.buckets(t.grid, t.prefix, t.x.device)
    rows = {
        c: sum(e.table[s][:, ..., index[s]] for s in range(len(index))) for c, e in mix.attend.encodings.items()
    }  # bias (H', N, N); contextual (H', E, N, N)
    scores = q @ k.mT
    scale = q.shape[-1] ** -0.5
    extra = torch.zeros_like(scores)
    for c, row in rows.items():
        if c == "k":
            extra = extra + (
                row[None] if row.dim() == 3 else scale * torch.einsum("bhie,heij->bhij", q, row.expand(2, -1, -1, -1))
            )
        if c == "q":
            extra = extra + (
                row[None].mT
                if row.dim() == 3
                else scale * torch.einsum("bhje,heji->bhij", k, row.expand(2, -1, -1, -1))
            )
    scores = scale * scores + extra
    if t.keep is not None:
        scores = scores.masked_fill(~t.keep[:, None, None], float("-inf"))
    maps = scores.softmax(-1)
    heard = maps @ v
    if "v" in rows:
        heard = heard + torch.einsum("bhij,heij->bhie", maps, rows["v"].expand(2, -1, -1, -1))
    return mix.merge(t.replace(x=heard)).x


@torch.no_grad()
@every_scheme
@pytest.mark.parametrize(("mode", "on"), WAYS)
@pytest.mark.parametrize("shared", [True, False])
def test_what_is_gathered_equals_all_pairs_written_out(scheme, mode, on, shared):
    mix, x = changed(scheme=scheme, mode=mode, on=on, shared=shared), torch.randn(2, 1 + 35, 16)
    for t in (
        Tokens(x, grid=(5, 7), prefix=1),
        Tokens(x[:, :35], grid=(7, 5), keep=torch.arange(35)[None].expand(2, -1) < 30),
    ):
        torch.testing.assert_close(mix(t).x, naive(mix, t), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@every_scheme
def test_tables_of_zeros_change_nothing(scheme):
    x = torch.rand(2, 3, 32, 40)
    for name in ("vit", "deit3", "dinov2", "twins"):
        model = plait.create_model(f"{name}_toy").eval()
        plain = model(x)
        plait.apply_method(model, "irpe", scheme=scheme, on="qkv")
        torch.testing.assert_close(model(x), plain, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@every_scheme
def test_pairs_are_scored_by_their_offset_alone(scheme):
    """Tokens in a 3 x 3 corner of a 6 x 6 grid, then moved to the opposite corner: their maps among each other are the
    same."""
    mix, x = changed(scheme=scheme, on="qk"), torch.randn(1, 9, 16)
    maps = []
    for start in (0, 3):
        place = (torch.arange(start, start + 3)[:, None] * 6 + torch.arange(start, start + 3)).flatten()
        t = Tokens(
            torch.zeros(1, 36, 16).index_copy(1, place, x),
            grid=(6, 6),
            keep=torch.zeros(1, 36).index_fill(1, place, 1).bool(),
        )
        watched, seen = recorded(mix)
        watched(t)
        maps.append(seen[0][:, :, place][..., place])
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-5, atol=1e-6)


def test_options_and_models_that_do_not_fit_are_told():
    for options in (dict(scheme="polar"), dict(mode="loud"), dict(on="x"), dict(on=""), dict(on="v", mode="bias")):
        with pytest.raises(ValueError, match="expected"):
            plait.apply_method(plait.create_model("vit_toy"), "irpe", **options)
    for name in ("bert", "clip"):
        with pytest.raises(ValueError, match="pictures"):
            plait.apply_method(plait.create_model(f"{name}_toy"), "irpe")
    with pytest.raises(ValueError, match="one for each place"):
        changed()(Tokens(torch.zeros(1, 5, 16), grid=(2, 3)))
