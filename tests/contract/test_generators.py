"""What every system that writes promises, checked on its toy: a cache is a plain value, and remembering changes
nothing."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from tests.contract.examples import SYSTEMS, example, toy

every_generator = pytest.mark.parametrize(
    "system", [pytest.param(s, id=s.name) for s in SYSTEMS if "generator" in s.roles]
)


def words(rows: int, count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(5, 64, (rows, count), generator=torch.Generator().manual_seed(seed))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@every_generator
def test_cached_equals_uncached(system):
    model = toy(system).eval()
    batch, ids = example(model), words(3, 6)
    whole, after = model.step(ids, model.prefill(batch))
    cache = model.prefill(batch)
    for i in range(6):
        logits, cache = model.step(ids[:, i : i + 1], cache)
        close(logits[:, 0], whole[:, i])
        close(logits[:, 0], model.step(ids[:, : i + 1], model.prefill(batch))[0][:, -1])
    for a, b in zip(tree_leaves(cache), tree_leaves(after), strict=True):
        close(a, b)


@torch.no_grad()
@every_generator
def test_a_cache_is_a_tree_of_tensors_with_rows_first_and_a_step_leaves_it_alone(system):
    model = toy(system).eval()
    cache = model.prefill(example(model))
    assert all(isinstance(leaf, torch.Tensor) and leaf.shape[0] == 3 for leaf in tree_leaves(cache))
    before = tree_map(torch.clone, cache)
    model.step(words(3, 2), cache)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(cache), tree_leaves(before), strict=True))
    order = torch.tensor([2, 0, 0, 1])
    picked, _ = model.step(words(3, 1)[order], tree_map(lambda leaf: leaf[order], cache))
    close(picked, model.step(words(3, 1), cache)[0][order])


@torch.no_grad()
@every_generator
def test_words_that_are_not_real_change_nothing(system):
    model = toy(system).eval()
    cache, ids = model.prefill(example(model)), words(3, 4)
    keep = torch.tensor([[True, True, True, True], [False, True, False, True], [True, True, False, False]])
    logits, _ = model.step(ids, cache, keep)
    other, _ = model.step(torch.where(keep, ids, 63), cache, keep)
    assert torch.equal(logits[keep], other[keep])
    for row in range(3):  # the row alone, without its gaps
        alone, _ = model.step(ids[row][keep[row]][None], tree_map(lambda leaf: leaf[row : row + 1], cache))
        close(logits[row][keep[row]], alone[0])


@torch.no_grad()
@every_generator
def test_what_a_generator_says_of_itself_is_so(system):
    model = toy(system).eval()
    batch = example(model)
    # a text there already takes places too; of a model of words alone nothing is left to read
    cache = model.prefill({slot: value for slot, value in batch.items() if slot != "text"})
    logits, _ = model.step(words(3, 2), cache)
    assert logits.shape[:2] == (3, 2) and 0 <= model.begin < logits.shape[2] and 0 <= model.end < logits.shape[2]
    assert model.step(words(3, model.length), cache)[0].isfinite().all()
    with pytest.raises(ValueError, match="places"):
        model.step(words(3, model.length + 1), cache)


class Step(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, cache):
        return self.model.step(tokens, cache)


@torch.no_grad()
@every_generator
def test_a_step_exports_with_a_dynamic_batch_and_a_cache_that_grows(system):
    model = toy(system).eval()
    cache = model.step(words(3, 2), model.prefill(example(model)))[1]
    longer = model.step(words(3, 1), cache)[1]
    rows, seen = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("seen", min=2, max=4096)

    def dims(leaf, after):
        return {0: rows} | {d: seen for d in range(1, leaf.dim()) if leaf.shape[d] != after.shape[d]}

    shapes = tree_map(dims, cache, longer)
    assert any(seen in found.values() for found in tree_leaves(shapes, is_leaf=lambda x: type(x) is dict))
    program = torch.export.export(Step(model), (words(3, 1), cache), dynamic_shapes=({0: rows}, shapes)).module()
    cache = model.step(words(5, 2), model.prefill(example(model, rows=5, seed=2)))[1]
    mine = cache
    for i in range(4):  # hands its own cache back to itself
        ids = words(5, 1, seed=i)
        (got, cache), (expected, mine) = program(ids, cache), model.step(ids, mine)
        close(got, expected)
