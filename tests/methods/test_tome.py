"""Tokens that merge: against one pair after another, and what must not change."""

from __future__ import annotations

import io
import math
import re

import pytest
import torch

import plait
from plait.core.attend import recorded, with_backend
from plait.core.block import Stack
from plait.core.catalog import systems
from plait.core.recompute import recompute
from plait.core.tokens import Tokens
from plait.methods.token_reduction.tome import MergingBlock, merged, schedule
from plait.parts.towers.encoder import pre_norm_blocks

EYES = [s for s in systems().values() if s.takes == ("image",) and "backbone" in s.roles]
PLAIN = {
    "cct", "crate", "deit", "deit3", "dinov2", "duoformer", "t2t_vit", "univitar", "vit", "vit_beit3", "vit_clip",
    "vitamin",
}  # fmt: skip


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_by_one(x, keys, weight, prefix, r):
    """The paper's steps for one row, in plain lists: [(which tokens, their weight, their mean)]."""
    first = list(range(prefix + 1, len(x), 2))
    second = list(range(prefix, len(x), 2))

    def cosine(i, j):
        return sum(a * b for a, b in zip(keys[i], keys[j])) / math.sqrt(
            sum(a * a for a in keys[i]) * sum(b * b for b in keys[j])
        )

    edges = [(max((cosine(i, j), -j) for j in second), i) for i in first]
    edges.sort(reverse=True)
    chosen = {i: -j for (_, j), i in edges[: min(r, len(first))]}
    groups = [[j, *(i for i in first if chosen.get(i) == j)] for j in range(len(x)) if j not in chosen]
    out = []
    for group in groups:
        total = sum(weight[i] for i in group)
        out.append((group, total, [sum(weight[i] * x[i][c] for i in group) / total for c in range(len(x[0]))]))
    return out


@pytest.mark.parametrize("prefix, n, r", [(0, 12, 3), (1, 12, 4), (2, 15, 100), (0, 3, 1), (1, 3, 5)])
def test_it_does_what_the_paper_says_one_pair_after_another(prefix, n, r):
    x, keys, weight = draw(2, n, 6), draw(2, n, 4, seed=1), torch.rand(2, n) + 0.5
    pos = torch.arange(n)[:, None] * torch.tensor([1, 10])
    got = merged(Tokens(x, weight=weight, prefix=prefix, pos=pos), keys, r)
    for row in range(2):
        want = one_by_one(x[row].tolist(), keys[row].tolist(), weight[row].tolist(), prefix, r)
        assert len(want) == got.x.shape[1] == n - min(r, (n - prefix) // 2)
        torch.testing.assert_close(got.x[row], torch.tensor([w[2] for w in want]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got.weight[row], torch.tensor([w[1] for w in want]))
        assert got.pos[row].tolist() == [[w[0][0], 10 * w[0][0]] for w in want]
    assert got.grid is None and got.prefix == prefix


def test_padding_merges_with_nothing_that_is_real_and_goes_when_nothing_else_is_left():
    x, keys = draw(1, 15, 6), draw(1, 15, 4, seed=1)
    alone = merged(Tokens(x[:, :9], prefix=1), keys[:, :9], 3)
    keep = torch.arange(15)[None] < 9
    dirty = x.masked_fill(~keep[..., None], float("nan"))
    padded = merged(Tokens(dirty, keep=keep, prefix=1), keys, 3)
    assert padded.keep.sum() == 6 and padded.x.isfinite().all()
    torch.testing.assert_close(padded.x[padded.keep], alone.x[0])
    assert torch.equal(padded.weight[padded.keep], alone.weight[0])
    few = torch.arange(15)[None] < 4  # three that may merge, one pair of them: the rest of what goes is padding
    got = merged(Tokens(x, keep=few, prefix=1), keys, 6)
    assert got.x.shape[1] == 9 and got.keep.sum() == 3 and got.weight[got.keep].sum() == 4
    nothing = merged(Tokens(dirty, keep=few & False), keys, 5)
    assert not nothing.keep.any() and nothing.x.isfinite().all()


@torch.no_grad()
def test_tokens_that_are_the_same_merge_and_nothing_changes():
    """Each token stands there twice; the first layer merges all pairs, and goes on as if each stood there twice."""
    plain = torch.nn.Sequential(Stack(*pre_norm_blocks(32, 3, 2, 64))).requires_grad_(False)
    for p in plain.parameters():
        p.copy_(0.3 * torch.randn(p.shape) + (p.dim() == 1))
    t = Tokens(draw(2, 9, 32).repeat_interleave(torch.tensor([1] + [2] * 8), 1), prefix=1)
    want = plain(t)
    plait.apply_method(plain, "tome", r=(8, 0, 0))
    got = plain(t)
    assert got.x.shape[1] == 9 and (got.weight == torch.tensor([1.0] + [2.0] * 8)).all()
    torch.testing.assert_close(got.x, torch.cat([want.x[:, :1], want.x[:, 1::2]], 1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in EYES])
def test_all_picture_systems_merge_but_those_bound_to_the_grid(system):
    model, x = plait.create_model(f"{system.name}_toy").eval(), draw(2, 3, 32, 32)
    before, want = model.tokens(x), model(x)
    try:
        undo = plait.apply_method(model, "tome", r=1)
        t = model.tokens(x)
    except ValueError as error:
        assert system.name not in PLAIN
        why = "is bound to the grid by|counts tokens one by one|layers whose attention hands tokens on"
        assert re.search(why, str(error)), error
        return
    own = [m for m in model.stack.modules() if isinstance(m, MergingBlock)]
    assert before.x.shape[1] - t.x.shape[1] == len(own) > 0
    torch.testing.assert_close(t.weight.sum(1), torch.full((2,), float(before.x.shape[1])))
    assert t.prefix == before.prefix and model(x).shape == want.shape
    undo()
    plait.apply_method(model, "tome", r=0)  # nothing merges, nothing changes
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-6)


def test_the_class_token_of_a_tower_of_two_still_answers():
    model = plait.create_model("clip_toy").eval()
    tower = next(m for m in model.modules() if type(m).__name__ == "ImageTower")
    plait.apply_method(tower, "tome", r=2)
    batch = {"image": draw(2, 3, 32, 32), "text": torch.ones(2, 5, dtype=torch.int64)}
    batch |= {"keep": {"text": torch.ones(2, 5, dtype=torch.bool)}}
    assert tower.tokens(batch["image"]).x.shape[1] == 17 - 4 and model.embed(batch)["image"].shape == (2, 16)


@torch.no_grad()
def test_maps_and_backends_reach_the_attention_within():
    model, x = plait.create_model("vit_toy").eval(), draw(2, 3, 32, 32)
    plait.apply_method(model, "tome", r=3)
    watched, maps = recorded(model)
    watched(x)
    assert [m.shape for m in maps] == [(2, 2, 17, 17), (2, 2, 14, 14)]
    torch.testing.assert_close(with_backend(model, "eager")(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_layer_that_is_computed_again_merges_the_same():
    model, x, found = plait.create_model("vit_toy"), draw(2, 3, 32, 32), []
    plait.apply_method(model, "tome", r=3)
    for change in (lambda m: None, recompute):
        change(model)
        model.zero_grad()
        model(x).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_schedules():
    assert schedule(8, 3, False) == (8, 8, 8) and schedule(8, 3, True) == (16, 8, 0) and schedule((1, 2), 2, False)
    for r, depth, falling in (((1, 2), 3, False), (-1, 2, False), ((1, 2), 2, True)):
        with pytest.raises(ValueError, match="expected"):
            schedule(r, depth, falling)


def test_what_merged_tokens_cannot_keep_is_refused():
    stack = torch.nn.Sequential(Stack(*pre_norm_blocks(32, 1, 2, 64)))
    plait.apply_method(stack, "tome")
    t = Tokens(draw(1, 6, 32))
    for bad in (t.replace(lengths=(2, 4)), t.replace(kinds=(("a", 6),)), t.reading(allow=torch.ones(6, 6) > 0)):
        with pytest.raises(ValueError, match="expected"):
            stack(bad)
    late = plait.create_model("vit_toy")
    plait.apply_method(late, "tome")
    plait.apply_method(late, "kv_transformer")
    with pytest.raises(ValueError, match="apply tome after"):
        late(draw(1, 3, 32, 32))


@torch.no_grad()
def test_an_exported_program_merges_the_same_in_every_size():
    model = plait.create_model("vit_toy").eval()
    plait.apply_method(model, "tome", r=13)  # more than half of the smallest picture's
    rows, height = torch.export.Dim("rows", min=2, max=16), torch.export.Dim("height", min=3, max=64)
    file = io.BytesIO()
    torch.export.save(
        torch.export.export(model, (draw(3, 3, 40, 32),), dynamic_shapes=({0: rows, 2: 8 * height},)), file
    )
    file.seek(0)
    program = torch.export.load(file).module()
    for x in (draw(2, 3, 64, 32), draw(4, 3, 24, 32), draw(2, 3, 256, 32)):
        torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-5)
