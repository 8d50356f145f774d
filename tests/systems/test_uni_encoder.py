"""Uni-Encoder: one answer is read as a cross-encoder reads it, and no answer sees another."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import with_backend
from plait.core.tokens import Tokens, mean
from plait.errors import PlaitError
from plait.runs.console import Console
from plait.systems.text.uni_encoder import diagonal, square


def example(rows=3, answers=4):
    g = torch.Generator().manual_seed(0)
    talk, said = torch.randint(5, 64, (rows, 12), generator=g), torch.randint(5, 64, (rows, answers, 7), generator=g)
    keeps = torch.arange(7) < torch.tensor([7, 3, 5, 6])[:answers, None]
    return talk, torch.arange(12) < torch.tensor([12, 7, 4])[:rows, None], said, keeps.expand(rows, -1, -1)


@pytest.fixture(scope="module")
def model():
    return plait.create_model("uni_encoder_toy").eval()


@torch.no_grad()
def test_one_answer_is_read_as_bert_reads_both(model):
    bert = plait.create_model("bert_toy", length=32).eval()
    mine = {k: v for k, v in model.state_dict().items() if not k.startswith("score.")}
    bert.load_state_dict(mine, strict=False)
    talk, keep, answers, keeps = example(answers=1)
    got = model.read(talk, keep, answers, keeps)[:, 0]
    for row, n in enumerate(keep.sum(1)):
        ids = torch.cat([talk[row, :n], answers[row, 0]])[None]
        t = bert.tokens(ids, kinds=(torch.arange(n + 7) >= n).long()[None])
        torch.testing.assert_close(got[row], t.x[0, n:].mean(0), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_answers_in_another_order_have_the_same_scores(model):
    talk, keep, answers, keeps = example()
    order = torch.tensor([2, 0, 3, 1])
    first = model.scores(talk, keep, answers, keeps)
    moved = model.scores(talk, keep, answers[:, order], keeps[:, order])
    torch.testing.assert_close(moved, first[:, order], rtol=1e-6, atol=1e-6)
    same = model.scores(talk, keep, answers[:, [0, 0]], keeps[:, [0, 0]])
    torch.testing.assert_close(same[:, 0], same[:, 1], rtol=1e-6, atol=1e-6)  # they begin at one place


@torch.no_grad()
def test_who_sees_whom(model):
    talk, keep, answers, keeps = example()
    other = answers.clone()
    other[:, 1] = other[:, 1].flip(-1)
    for sees, sides_meet, answers_meet in ((None, True, False), (diagonal, False, False), (square, True, True)):
        how = {} if sees is None else {"sees": sees}
        layer = model.stack.blocks
        model.stack.blocks = layer[:1]  # in one layer nobody has been told of others yet
        found, changed, asked = (
            model.read(x, keep, y, keeps, **how) for x, y in ((talk, answers), (talk, other), (talk.flip(1), answers))
        )
        model.stack.blocks = layer
        apart = [not torch.allclose(found[:, i], changed[:, i], atol=1e-6) for i in range(4)]
        assert apart == [answers_meet, True, answers_meet, answers_meet]
        assert torch.allclose(found, asked, atol=1e-6) != sides_meet


@torch.no_grad()
def test_without_the_arrow_it_is_an_encoder_of_each_side(model):
    talk, keep, answers, keeps = example()
    t = model.tokens(talk, keep, answers, keeps, diagonal)
    alone = model.stack(model.text_embedding.at(talk, keep, torch.arange(12), 0))
    torch.testing.assert_close(mean(Tokens(t.x[:, :12], keep=keep)), mean(alone))
    places = keep.sum(1)[:, None] + torch.arange(7)
    for i in range(4):
        one = model.stack(model.text_embedding.at(answers[:, i], keeps[:, i], places, 1))
        torch.testing.assert_close(model.read(talk, keep, answers, keeps, diagonal)[:, i], mean(one))


def products(model, *given) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.scores(*given)
    return counter.get_total_flops()


def test_a_long_talk_is_read_once():
    """By products alone: of N + K M tokens where a cross-encoder has K (N + M)."""
    model = with_backend(plait.create_model("uni_encoder_toy", length=256, heads=1).eval(), "eager")
    n, k, m = 192, 10, 8
    talk, answers = torch.full((1, n), 7), torch.full((1, k, m), 9)
    together = products(model, talk, talk > 0, answers, answers > 0)
    alone = products(model, talk.expand(k, -1), (talk > 0).expand(k, -1), answers.mT[:, :1].new_full((k, 1, m), 9),
                     torch.ones(k, 1, m, dtype=torch.bool))  # fmt: skip
    d, long, short = 32, n + k * m, n + m
    cost = [2 * (2 * (12 * d * d * x + 2 * x * x * d)) for x in (long, short)]  # two layers, of a row
    assert alone / together == pytest.approx(k * cost[1] / cost[0], rel=0.01) and alone > 5 * together


def test_texts_that_are_too_long_and_answers_of_other_rows_are_refused(model):
    talk, keep, answers, keeps = example()
    with pytest.raises(PlaitError, match="a sequence of 20 tokens, but there are positions for 16"):
        model.read(F.pad(talk, (0, 8)), F.pad(keep, (0, 8)), answers, keeps)
    with pytest.raises(PlaitError, match="got the answers of 2 rows, expected those of 3"):
        model.read(talk, keep, answers[:2], keeps[:2])


def test_it_learns_which_answer_is_to_what_was_said(tmp_path):
    rng = np.random.default_rng(0)
    things = "lamp door river stone cloud apple horse bread".split()
    names = "anna bela carl dora emil fritz gerd hans ida jens kurt lena".split()
    rows = [(things[a], names[b], names[c]) for a, b, c in rng.integers(0, [8, 12, 12], (450, 3))]
    table = pa.table({
        "talk": [f"where did {who} leave the {thing} today" for thing, who, _ in rows],
        "answer": [f"{who} put a {thing} behind the house" for thing, _, who in rows],
    })  # fmt: skip
    how = dict(task="match", inputs=["talk", "answer"], kinds=dict(talk="text", answer="text"), folds=1)
    run = plait.fit(table, out=tmp_path / "run", system="uni_encoder_toy", epochs=30, lr=3e-3, batch_size=64,
                    console=Console(quiet=True), **how)  # fmt: skip
    found, *_ = run.assessments["test"].scores
    usual = next(s for s in run.assessments["test"].baseline if s.name == found.name)
    assert found.value > usual.value + 0.2, (found, usual)
