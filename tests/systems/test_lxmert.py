"""LXMERT: two streams that grow together, regions as a set, and its pre-training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import plait
from plait.core.catalog import build
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.parts.objectives import two_streams
from plait.parts.objectives.two_streams import Asked, exchanged, region_losses
from plait.systems.pairs.lxmert import LXMERT, TwoWays, cells, objective
from tests.contract.examples import example

ROWS, REGIONS, WIDE = 16, 6, 10  # of what is given below
SIZED = dict(features=WIDE, width=48, heads=4)


def given(seed: int = 0) -> dict:
    """Rows of things, each of a kind that its features are; what the text says is which things there are, in order."""
    g = torch.Generator().manual_seed(seed)
    kinds = torch.randint(6, (ROWS, REGIONS), generator=g)
    looks = torch.randn(6, WIDE, generator=g)
    corners = torch.rand(ROWS, REGIONS, 2, 2, generator=g).sort(2).values.flatten(2)
    ids = torch.cat([torch.full((ROWS, 1), 2), 10 + kinds], 1)
    target = {"objects": kinds, "attributes": kinds % 5, "answers": kinds[:, 0]}
    return {"text": ids, "regions": looks[kinds], "boxes": corners, "target": target}


def reader(seed: int = 0) -> torch.nn.Module:
    """The toy that is given regions."""
    own = {k: v for k, v in plait.model_info("lxmert_toy").arguments.items() if k not in ("vision", "dilated")}
    with torch.device("meta"):
        model = LXMERT(**own | SIZED)
    return initialise(model, seed=seed)


def test_the_sizes_are_those_of_the_peer():
    bare = dict(guess=False, objects=0, attributes=0, answers=0)
    counts = [sum(p.numel() for p in build("lxmert_base_uncased", **how).parameters()) for how in (bare, {})]
    assert [round(n / 1e6, 2) for n in counts] == [207.94, 228.05]


# --- the layer that both streams pass


def layer() -> TwoWays:
    with torch.device("meta"):
        made = TwoWays(16, 2, 0.0)
    return initialise(made, seed=3).eval()


@torch.no_grad()
def test_words_and_regions_ask_each_other_through_one_set_of_weights():
    """So the streams may change places, if what each does alone does too."""
    here, g = layer(), torch.Generator().manual_seed(0)
    there = copy.deepcopy(here)
    there.words, there.regions = here.regions, here.words
    a, b = (Tokens(torch.randn(2, n, 16, generator=g)) for n in (5, 3))
    one, two = here(a.reading(regions=b)), there(b.reading(regions=a))
    torch.testing.assert_close(one.x, two.read("regions").x)
    torch.testing.assert_close(one.read("regions").x, two.x)
    assert not torch.allclose(here(b.reading(regions=a)).x, two.x)  # of their own they have different weights


@torch.no_grad()
def test_each_stream_hears_the_other_as_it_was_before_the_layer():
    model, g = layer(), torch.Generator().manual_seed(0)
    words, regions = (Tokens(torch.randn(2, n, 16, generator=g)) for n in (5, 3))
    before = regions.x.clone()
    out = model(words.reading(regions=regions))
    want = model.regions(model.ask(regions.reading(other=words)).replace(context=None))
    torch.testing.assert_close(out.read("regions").x, want.x)
    assert torch.equal(regions.x, before) and out.read("regions").losses is None


# --- regions


@torch.no_grad()
def test_regions_are_a_set_and_boxes_say_where_each_lies():
    model, batch, order = reader().eval(), given(), torch.randperm(REGIONS)
    del batch["target"]
    before = model.fuse(batch)["fused"]
    turned = batch | {"regions": batch["regions"][:, order], "boxes": batch["boxes"][:, order]}
    torch.testing.assert_close(model.fuse(turned)["fused"], before, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.fuse(batch | {"boxes": batch["boxes"].flip(1)})["fused"], before, atol=1e-3)


@torch.no_grad()
def test_of_a_picture_regions_are_the_places_of_the_map_with_their_cells():
    box = cells(torch.zeros(1, 7, 2, 4))
    assert box[0].tolist() == [0.0, 0.0, 0.25, 0.5] and box[6].tolist() == [0.5, 0.5, 0.75, 1.0]
    model = plait.create_model("lxmert_toy").eval()
    _, _, seen = model.open({"image": torch.randn(2, 3, 32, 64)})
    assert seen.x.shape == (2, 2 * 4, 16) and torch.equal(seen.pos, cells(torch.zeros(1, 1, 2, 4)))


@torch.no_grad()
def test_what_is_not_real_of_a_picture_is_no_region():
    model = plait.create_model("lxmert_toy").eval()
    x, keep = torch.randn(2, 3, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool)
    keep[1, 16:] = False
    dirty = torch.where(keep[:, None], x, torch.full_like(x, float("nan")))
    batch = {"text": torch.randint(5, 64, (2, 6)), "keep": {"image": keep}}
    seen = model.open(batch | {"image": x})[2]
    assert seen.keep.tolist() == [[True] * 4, [True, True, False, False]]
    clean, soiled = (model.fuse(batch | {"image": pixels})["fused"] for pixels in (x, dirty))
    assert torch.equal(clean, soiled)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda b: b.pop("boxes"), r"got regions \(16, 6, 10\): expected regions \(B, R, 10\), and boxes"),
        (lambda b: b.pop("regions"), r"got boxes \(16, 6, 4\): expected"),
        (lambda b: b.update(regions=torch.zeros(16, 6, 9)), r"got regions \(16, 6, 9\), boxes"),
        (lambda b: b.update(boxes=torch.zeros(16, 5, 4)), r"boxes \(16, 5, 4\): expected"),
        (lambda b: b.update(image=torch.zeros(16, 3, 32, 32)), "'image', which the model does not read"),
    ],
)
def test_regions_that_do_not_go_with_their_boxes_are_refused(change, told):
    batch = given()
    change(batch)
    with pytest.raises(PlaitError, match=told):
        reader().fuse(batch)


# --- its pre-training


def test_half_of_the_texts_are_exchanged_and_never_within_a_group():
    pairs, group = torch.ones(2000, dtype=torch.bool), torch.arange(2000) % 3
    pairs[::10] = False
    other, match = exchanged(pairs, group, torch.Generator().manual_seed(0))
    own = other == torch.arange(2000)
    assert torch.equal(match == -100, ~pairs) and torch.equal(match[pairs] == 1, own[pairs]) and own[~pairs].all()
    assert abs(float(own[pairs].float().mean()) - 0.5) < 0.04
    assert pairs[other[~own]].all() and (group[other[~own]] != group[~own]).all()


def test_of_regions_only_the_hidden_ones_are_asked_and_only_real_ones_counted():
    hidden, there = torch.tensor([[True, False, True, False]]), torch.tensor([[True, True, False, False]])
    features = torch.zeros(1, 4, 3)
    said = {"features": torch.tensor([3.0, 5.0, 7.0, 9.0])[None, :, None].expand(1, 4, 3)}
    found = region_losses(said, there, Asked(torch.zeros(1, 1), torch.zeros(1), hidden, features))
    assert found.keys() == {"features"} and abs(float(found["features"]) - 2.5 / 2 / 0.15) < 1e-5


def test_an_exchanged_text_is_no_pair_and_its_question_is_not_asked(monkeypatch):
    model, batch, seen = reader(), given(), []
    monkeypatch.setattr(two_streams, "losses", lambda model, words, regions, asked: seen.append(asked) or {})
    objective(model, batch, None, torch.Generator().manual_seed(0))
    (asked,) = seen
    assert 0 < asked.match.sum() < ROWS
    answers = batch["target"]["answers"]
    assert torch.equal(asked.answers, torch.where(asked.match == 1, answers, -100))
    assert torch.equal(asked.features, batch["regions"]) and asked.hidden.any() and not asked.hidden.all()


def test_what_finds_regions_is_not_taught_by_the_objective():
    model = plait.create_model("lxmert_toy").train()
    found = objective(model, example(model, rows=8), None, torch.Generator().manual_seed(0))
    assert found.keys() == {"words", "match", "features"} and all(loss.isfinite() for loss in found.values())
    sum(found.values()).backward()
    taught = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert "vision" not in taught and {"fusion", "relate", "reader", "guess", "regions", "match"} <= taught


def measured(model: torch.nn.Module, batch: dict) -> dict[str, Tensor]:
    """Each loss, of twenty draws of what is hidden."""
    with torch.no_grad():
        drawn = [objective(model.eval(), batch, None, torch.Generator().manual_seed(1000 + n)) for n in range(20)]
    model.train()
    return {name: torch.stack([d[name] for d in drawn]).mean() for name in drawn[0]}


def test_every_loss_falls():
    """Of things that the text names in order: what is hidden on one side is told by the other."""
    model, batch = reader().train(), given()
    before = measured(model, batch)
    assert before.keys() == {"words", "match", "features", "objects", "attributes", "answers"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(200):
        loss = sum(objective(model, batch, None, torch.Generator().manual_seed(step)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = measured(model, batch)
    shares = {name: float(after[name] / before[name]) for name in before}
    assert all(share < 0.6 for share in shares.values()), shares
