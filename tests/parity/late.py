"""Encoders whose texts are kept as several vectors, on transformers' BERT: what is kept of its tokens is computed here
from its outputs once more, as the papers write it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import build
from plait.core.create import rules_of
from plait.core.weights import convert, under
from tests.parity.compare import Row, count_whole, perturb, relative_error
from tests.parity.norms import epsilons
from tests.parity.roberta import texts
from tests.peers import declare_torchvision

SHAPES = {"base": (768, 12, 12), "large": (1024, 24, 16)}
LIMIT = 4e8  # parameters of a model that is compared whole


@torch.no_grad()
def parity(
    name: str, reference: str, own: Callable[[nn.Module], int],
    wanted: Callable[[nn.Module, Callable[[Tensor, Tensor], Tensor], Tensor, Tensor], list],
) -> Row:  # fmt: skip
    """own(ours): how many parameters are of the paper alone. wanted(ours, read, ids (B, N), keep) -> the vectors of a
    slot that asks and of one that answers; read(ids, keep) -> (B, N, D) what theirs makes of them."""
    declare_torchvision()
    from transformers import BertConfig, BertModel

    width, depth, heads = SHAPES[reference.split("-")[2]]
    made = BertConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width
    )
    make = partial(BertModel, made, add_pooling_layer=False)
    parameters = plait.model_info(name).parameters, count_whole(make) + own(build(name))
    if parameters[0] != parameters[1]:
        return Row(name, f"transformers {reference}", *parameters, float("inf"))
    theirs = perturb(make())
    slots = {side: {"kind": "text", "vocab": made.vocab_size} for side in ("a", "b")}
    ours = plait.create_model(name, slots=slots).eval()
    rest = {k: t for k, t in ours.state_dict().items() if not k.startswith("tower.")}
    rules = under(rules_of(ours.tower, "transformers"), ours="tower.")
    plait.load_weights(ours, convert(theirs.state_dict(), rules) | rest)
    assert epsilons(ours) == epsilons(theirs)
    ids, keep = texts(made.vocab_size, 0)

    def read(ids: Tensor, keep: Tensor) -> Tensor:
        return theirs(input_ids=ids, attention_mask=keep.long()).last_hidden_state

    got = ours.embed({"a": ids, "b": ids, "keep": {"a": keep, "b": keep}})
    error = max(relative_error(got[side], want) for side, want in zip("ab", wanted(ours, read, ids, keep)))
    return Row(name, f"transformers {reference}", *parameters, error)
