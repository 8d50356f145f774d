"""UniXcoder: three modes by a token and a mask, and trees as sequences."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import plait
from plait.core.catalog import build
from plait.systems.text import unixcoder
from plait.systems.text.unixcoder import BOTH, READ, WRITE, flatten, unflatten

NAME = "unixcoder_toy"


def example():
    ids = torch.randint(5, 64, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 2
    return ids, torch.arange(12) < torch.tensor([12, 7, 3])[:, None]


def tree(node: ast.AST):
    """A syntax tree of Python with names, texts and numbers as its leaves."""
    below = []
    for name, value in ast.iter_fields(node):
        parts = value if isinstance(value, list) else [value]
        below.append((name, [tree(p) if isinstance(p, ast.AST) else f"={p!r}" for p in parts]))
    return type(node).__name__, below


@pytest.mark.parametrize("module", [unixcoder, ast], ids=lambda m: m.__name__)
def test_a_syntax_tree_comes_back_from_its_sequence(module):
    whole = tree(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))
    words = flatten(whole)
    assert unflatten(words) == whole and len(words) > 1000


LEAF = st.text("ab,", max_size=3).filter(lambda w: not w.endswith((",left", ",right")))
TREES = st.recursive(
    LEAF, lambda below: st.tuples(st.text("xy", max_size=2), st.lists(below, max_size=3)), max_leaves=8
)


@settings(max_examples=60, deadline=None)
@given(TREES, TREES)
def test_different_trees_have_different_sequences(one, two):
    assert unflatten(flatten(one)) == one
    assert (flatten(one) == flatten(two)) == (one == two)


@pytest.mark.parametrize("words", [[], ["a", "b"], ["x,left"], ["x,right"], ["x,left", "y,left", "x,right", "y,right"]])
def test_what_is_no_tree_is_refused(words):
    with pytest.raises(ValueError, match="got"):
        unflatten(words)


@torch.no_grad()
@pytest.mark.parametrize("mode", [READ, WRITE, BOTH])
def test_who_sees_whom(mode):
    model, (ids, _) = plait.create_model(NAME).eval(), example()
    other = ids.clone()
    other[:, -1] = (other[:, -1] - 4) % 59 + 5
    before, after = (model.tokens(x, mode=mode).x for x in (ids, other))
    same = (before == after).all(-1).all(0)  # (N + 2,)
    assert same.tolist() == [mode == WRITE] * 13 + [False]


@torch.no_grad()
def test_the_mode_stands_between_beginning_and_end_before_the_text():
    model, (ids, keep) = plait.create_model(NAME, modes=(61, 62, 63)).eval(), example()
    said = torch.cat([torch.tensor([[2, 61, 3]]).expand(3, 3), ids[:, 1:]], 1)
    plain = model.stack(model.text_embedding(said, torch.cat([torch.ones(3, 2, dtype=torch.bool), keep], 1)))
    torch.testing.assert_close(model.tokens(ids, keep).x, plain.x)
    left = torch.stack([row.roll(12 - int(n)) for row, n in zip(ids, keep.sum(1))])
    torch.testing.assert_close(model(left, keep.flip(1)), model(ids, keep), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_modes_differ_where_masks_are_the_same():
    model, (ids, _) = plait.create_model(NAME).eval(), example()
    assert (model.tokens(ids, mode=READ).x - model.tokens(ids, mode=BOTH).x).abs().max() > 1e-3


def test_published_words_tell_reading_alone():
    assert plait.model_info("unixcoder_base").roles == ("embedder",)
    with pytest.raises(ValueError, match="no mode but reading"):
        build("unixcoder_base", depth=1).tokens(torch.zeros(1, 4, dtype=torch.int64, device="meta"), mode=WRITE)
