"""The encoder of DEXML against transformers' DistilBERT under sentence-transformers' pooling and norm, on padded texts.

The losses are the paper's alone: tests/parts/test_multilabel.py.
"""

from __future__ import annotations

from functools import partial

import torch

import plait
from plait.core.catalog import build
from plait.core.create import rules_of
from plait.core.weights import convert, under
from tests.parity import distilbert
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.parity.norms import epsilons
from tests.parity.roberta import texts
from tests.peers import declare_torchvision

SYSTEM, REFERENCE = "decoupled_softmax_dexml", "distilbert/distilbert-base-uncased"
CASES = {f"{SYSTEM}_{size}": REFERENCE for size in ("base", "base_top_5")}


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers import DistilBertModel

    made = distilbert.config("base-uncased")
    parameters = plait.model_info(name).parameters, count_whole(partial(DistilBertModel, made))
    if parameters[0] != parameters[1]:
        return Row(name, f"transformers {REFERENCE}", *parameters, float("inf"))
    theirs, last = perturb(DistilBertModel(made)), [Pooling(made.dim, pooling_mode="mean"), Normalize()]
    ours = build(name).to_empty(device="cpu").eval()
    rules = under(rules_of(ours.tower, "transformers"), ours="tower.")
    plait.load_weights(ours, convert(theirs.state_dict(), rules))
    ours.reset()
    assert count(ours) == count(theirs) and epsilons(ours) == epsilons(theirs)
    ids, keep = texts(made.vocab_size, 0)
    x = {"token_embeddings": theirs(input_ids=ids, attention_mask=keep.long()).last_hidden_state}
    x["attention_mask"] = keep.long()
    for module in last:
        x = module(x)
    got = ours.embed({"text": ids, "keep": {"text": keep}})["text"]
    return Row(name, f"transformers {REFERENCE}", *parameters, relative_error(got, x["sentence_embedding"]))
