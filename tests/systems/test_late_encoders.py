"""Systems that keep several vectors of a text: ME-BERT and poly-encoders."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

import plait
from plait.parts.objectives.late import PLAIN, Late
from plait.runs.console import Console
from plait.tasks.bind import bind
from plait.tasks.match import Match
from plait.tasks.retrieve import PAIR, Retrieve

SLOTS = {s: {"kind": "text", "vocab": 64} for s in ("text_0", "text_1")}


def example():
    ids = torch.randint(5, 64, (3, 12), generator=torch.Generator().manual_seed(0))
    return ids, torch.arange(12) < torch.tensor([12, 7, 2])[:, None]


@torch.no_grad()
def test_me_bert_keeps_the_first_tokens_of_an_answer_and_one_of_a_question():
    model, (ids, keep) = plait.create_model("me_bert_toy", slots=SLOTS, project=None).eval(), example()
    x = model.tower.tokens(ids, keep).x
    found = model.embed({"text_0": ids, "text_1": ids, "keep": {"text_0": keep, "text_1": keep}})
    which = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 0]])  # the third text has two tokens
    many = F.normalize(torch.stack([row[i] for row, i in zip(x, which)]), dim=-1)
    torch.testing.assert_close(model.late.apart(found["text_1"]), many)
    torch.testing.assert_close(model.late.apart(found["text_0"]), many[:, :1].expand_as(many))
    best = torch.einsum("ae,bve->abv", many[:, 0], many).amax(-1)
    torch.testing.assert_close(model.late(found["text_0"], found["text_1"]), best)


@torch.no_grad()
def test_me_bert_of_one_vector_is_the_plain_encoder():
    one = plait.create_model("me_bert_toy", slots=SLOTS, views=1).eval()
    plain = plait.create_model("sentence_encoder_toy", slots=SLOTS, pooling="cls", project=None).eval()
    plain.tower.load_state_dict(one.tower.state_dict())
    ids, keep = example()
    batch = {"text_0": ids, "text_1": ids.flip(1), "keep": {"text_0": keep}}
    for slot, v in one.embed(batch).items():
        x = plain.tower.tokens(batch[slot], batch["keep"].get(slot)).x[:, 0]
        torch.testing.assert_close(v, F.normalize(one.project(x), dim=-1))
    assert one.late == PLAIN


@torch.no_grad()
def test_codes_find_by_products_and_an_answer_weighs_what_they_found():
    model, (ids, keep) = plait.create_model("poly_encoder_toy", slots=SLOTS).eval(), example()
    x = model.tower.tokens(ids, keep).x
    found = model.embed({"text_0": ids, "text_1": ids, "keep": {"text_0": keep, "text_1": keep}})
    weights = (model.codes.table @ x.mT).masked_fill(~keep[:, None], -torch.inf).softmax(-1)
    context, answer = F.normalize(weights @ x, dim=-1), F.normalize(x[:, 0], dim=-1)
    s = torch.einsum("ave,be->abv", context, answer)
    want = ((20 * s).softmax(-1) * s).sum(-1)
    torch.testing.assert_close(model.late(found["text_0"], found["text_1"]), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["me_bert", "poly_encoder"])
def test_a_run_scores_tells_and_searches_by_the_same_comparison(name, tmp_path):
    french = "un deux trois quatre cinq six sept huit neuf".split()
    english = "one two three four five six seven eight nine".split()
    both = [(f"{a} {b}", f"{c} {d}") for a, c in zip(english, french) for b, d in zip(english, french)]
    table = pa.table({"asked": [a for a, _ in both], "said": [b for _, b in both]})
    kinds = dict.fromkeys(table.column_names, "text")
    how = dict(task="retrieve", inputs=table.column_names, kinds=kinds, epochs=2, precision="fp32")
    plait.fit(table, system=f"{name}_toy", out=tmp_path / "run", console=Console(quiet=True), **how)
    run = plait.load(tmp_path / "run")
    how = run.model.bound.system.late
    assert isinstance(how, Late) and how.views == 3
    vectors = run.embed(table)
    columns = (vectors.column(f"vector_{c}").to_pylist() for c in ("asked", "said"))
    asked, said = (torch.tensor(cells, dtype=torch.float32) for cells in columns)
    scores = how(asked, said)
    hits = run.search(table, asked="three five", k=5)
    row = table.column("asked").to_pylist().index("three five")
    order = scores[row].argsort(descending=True, stable=True)[:5]
    np.testing.assert_allclose([h.score for h in hits], scores[row][order].numpy(), atol=1e-5)
    assert [h.score for h in hits] != pytest.approx((asked[row] @ said.T)[order].tolist(), abs=1e-3)
    told = run.predict(table).column("similarity").to_numpy()
    np.testing.assert_allclose(told, scores.diagonal().numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["me_bert", "poly_encoder"])
def test_training_compares_as_answering_does(name):
    bound = bind(plait.create_model(f"{name}_toy", slots=SLOTS).eval(), "embedder", SLOTS)
    ids, keep = example()
    there = {"text_0": keep, "text_1": keep.flip(0)}
    batch = {"text_0": ids, "text_1": ids.flip(0), "keep": there, "present": {s: keep.any(1) for s in there}}
    system = bound.system
    v = bound.vectors(batch)
    a, b = v["text_0"], v["text_1"]
    target = {PAIR: torch.arange(3)[:, None].expand(-1, 3)}
    loss = Retrieve(tuple(SLOTS), ("a", "b")).model(bound)(batch | {"target": target}, torch.Generator())
    want = (
        F.cross_entropy(20 * system.late(a, b), torch.arange(3)),
        F.cross_entropy(20 * system.late(b, a), torch.arange(3)),
    )
    torch.testing.assert_close(loss["contrastive"], sum(want) / 2)
    match = Match("match", 0.5).model(bound)
    odds = match.agreement(*match.features(batch))
    torch.testing.assert_close(odds[:, 0], 20 * system.late.rows(a, b))
