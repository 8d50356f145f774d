"""Cached gradients: those of the whole batch, of the same random numbers, in the memory of a piece."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import plait
from plait.core.batches import some_rows
from plait.parts.objectives.cached import cached
from plait.parts.objectives.contrastive import contrastive, same_content

ROWS = 21


def batch(rows: int = ROWS) -> dict:
    g = torch.Generator().manual_seed(0)
    keep = torch.arange(12) < torch.randint(2, 13, (rows, 1), generator=g)
    ids = torch.randint(1, 64, (rows, 12), generator=g) * keep
    return {"image": torch.randn(rows, 3, 32, 32, generator=g), "text": ids, "keep": {"text": keep}}


def gradients(model: nn.Module, read, size: int | None, rows: int = ROWS) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    torch.manual_seed(3)
    v = cached(read, batch(rows), size, model)
    loss = contrastive(v["text"], v["image"], model.logit_scale)["contrastive"]
    loss.backward()
    return loss.detach(), [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def far(found: list[Tensor], expected: list[Tensor]) -> float:
    apart = sum((a - b).square().sum() for a, b in zip(found, expected))
    return float((apart / sum(b.square().sum() for b in expected)).sqrt())


@pytest.mark.parametrize("size", [1, 8, 20])
def test_gradients_are_those_of_the_whole_batch(size):
    model = plait.create_model("clip_toy").train()
    loss, expected = gradients(model, model.embed, None)
    found, grads = gradients(model, model.embed, size)
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=1e-6)
    assert far(grads, expected) < 1e-5
    assert all(g.abs().sum() > 0 for g in grads[-3:]) and model.logit_scale.grad.abs() > 0


def test_halves_added_up_are_something_else():
    """What is measured above can be told from gradients of smaller batches."""
    model = plait.create_model("clip_toy").train()
    _, expected = gradients(model, model.embed, None)
    summed = [torch.zeros_like(p) for p in model.parameters()]
    for part in (slice(0, 11), slice(11, ROWS)):
        model.zero_grad()
        v = model.embed(some_rows(batch(), part))
        contrastive(v["text"], v["image"], model.logit_scale)["contrastive"].backward()
        summed = [s + p.grad / 2 for s, p in zip(summed, model.parameters())]
    assert far(summed, expected) > 0.1


class Noisy(nn.Module):
    """A tower that draws: each piece must see the same numbers in both passes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.logit_scale = nn.Linear(8, 8), nn.Parameter(torch.ones(1))

    def embed(self, batch: dict) -> dict[str, Tensor]:
        out = {s: F.normalize(self.layer(F.dropout(batch[s], 0.5)), dim=-1) for s in ("text", "image")}
        return out | {"drawn": out["text"] > 0}


def test_both_passes_draw_the_same_numbers_and_leave_the_state_alone():
    """Beside one graph over all pieces, drawn piece by piece."""
    model = Noisy()
    g = torch.Generator().manual_seed(1)
    whole = {s: torch.randn(9, 8, generator=g) for s in ("text", "image")}

    def run(read) -> tuple[list[Tensor], Tensor]:
        model.zero_grad()
        torch.manual_seed(5)
        v = read()
        after = torch.rand(1)
        contrastive(v["text"], v["image"], model.logit_scale)["contrastive"].backward()
        return [p.grad.clone() for p in model.parameters()], torch.stack([after, torch.rand(1)])

    def together() -> dict[str, Tensor]:
        parts = [model.embed({k: x[i : i + 4] for k, x in whole.items()}) for i in (0, 4, 8)]
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

    expected, state = run(together)
    found, own = run(lambda: cached(model.embed, whole, 4, model))
    assert far(found, expected) < 1e-6 and torch.equal(own, state)
    assert cached(model.embed, whole, 4, model)["drawn"].dtype == torch.bool


def test_in_bfloat16_every_weight_gets_its_gradient():
    """Weights that autocast casts without a graph, in the first pass, must not be used with one."""
    model = plait.create_model("clip_toy").train()
    with torch.autocast("cpu", torch.bfloat16):
        _, expected = gradients(model, model.embed, None)
        expected = [g.clone() for g in expected]
        _, found = gradients(model, model.embed, 8)
    assert far(found, expected) < 0.05
    assert all(bool(a.abs().sum()) == bool(b.abs().sum()) for a, b in zip(found, expected))


def test_nothing_is_kept_but_vectors_and_one_piece():
    """What is alive between the passes does not grow with the batch, but for its vectors; 4 pieces and 16."""
    model = plait.create_model("clip_toy").train()

    def alive(rows: int, size: int | None) -> int:
        given = batch(rows)
        gc.collect()
        kept: list[int] = []
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def note(x: Tensor) -> Tensor:
            if x.untyped_storage().data_ptr() not in weights:
                kept.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            v = cached(model.embed, given, size, model)
        assert v["text"].shape == (rows, 16)
        return sum(kept)

    assert alive(64, 4) == pytest.approx(alive(16, 4), rel=0.3)
    assert alive(64, None) > 8 * alive(64, 4)


def test_what_mixes_rows_is_refused_and_what_needs_no_gradient_is_not():
    model = plait.create_model("mobileclip_toy").train()
    with pytest.raises(plait.errors.UsageError, match="BatchNorm2d.*leave micro_batch out"):
        cached(model.embed, batch(), 8, model)
    model.eval()
    with torch.no_grad():
        pieces, whole = cached(model.embed, batch(), 8, model), model.embed(batch())
    for side in ("image", "text"):
        torch.testing.assert_close(pieces[side], whole[side], rtol=1e-5, atol=1e-6)


def test_gradients_come_once():
    model = Noisy()
    v = cached(model.embed, {s: torch.randn(5, 8) for s in ("text", "image")}, 2, model)
    loss = contrastive(v["text"], v["image"], model.logit_scale)["contrastive"]
    loss.backward(retain_graph=True)
    with pytest.raises(plait.errors.PlaitError, match="twice, expected once"):
        loss.backward()


def test_same_content_of_whole_numbers_is_that_of_all_compared():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (300, 4), generator=g)
    assert torch.equal(same_content(x), (x[:, None] == x[None]).all(-1))
    assert same_content(x).sum() > 300
