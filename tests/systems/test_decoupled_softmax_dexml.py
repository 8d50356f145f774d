"""DEXML: what its objective makes of a batch of pairs of texts and labels."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.parts.objectives.multilabel import decoupled_softmax, soft_topk_loss
from plait.systems.text.decoupled_softmax_dexml import objective

SLOTS = {"text_0": {"kind": "text", "vocab": 64}, "text_1": {"kind": "text", "vocab": 64}}
ASK, ANSWER = [0, 0, 1, 2], [0, 1, 0, 2]  # a has x and y, b has x, c has z


def batch(present=(True,) * 4):
    ids = torch.arange(5, 65).view(5, 12).clamp(max=63)
    here = torch.tensor(present)
    return {
        "text_0": ids[ASK], "text_1": ids.flip(1)[ANSWER], "same": torch.tensor([0, 0, 0, 3]),
        "present": {"text_0": torch.ones(4, dtype=torch.bool), "text_1": here},
    }  # fmt: skip


@pytest.mark.parametrize("top", [0, 2])
def test_a_label_is_right_for_every_text_that_has_it_somewhere_in_the_batch(top):
    model = plait.create_model("decoupled_softmax_dexml_toy", slots=SLOTS, top=top).eval()
    v = model.embed({k: x for k, x in batch().items() if k != "same"})
    s = 20 * v["text_0"] @ v["text_1"].mT
    right = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]).bool()
    wrong = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0]]).bool()
    want = soft_topk_loss(s, right, right | wrong, 2) if top else decoupled_softmax(s, right, wrong)
    torch.testing.assert_close(objective(model, batch(), None, torch.Generator())["labels"], want)


def test_a_row_without_a_label_neither_asks_nor_answers():
    model = plait.create_model("decoupled_softmax_dexml_toy", slots=SLOTS).eval()
    gone, fewer = batch((True, True, True, False)), batch()
    fewer = {
        k: {s: p[:3] for s, p in x.items()} if k == "present" else x[:3] for k, x in fewer.items()
    }  # fmt: skip
    losses = [objective(model, b, None, torch.Generator())["labels"] for b in (gone, fewer)]
    torch.testing.assert_close(*losses)
